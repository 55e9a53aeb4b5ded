"""``speechkit kws export``: a spotter as ONNX graphs, for a runtime on a device."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor, nn

from speechkit.errors import JobError, RequestError
from speechkit.files import atomic_path, write_json
from speechkit.kws.detector import Detector
from speechkit.kws.spotter import Spotter
from speechkit.kws.stream_graph import STATE, StreamGraph

logger = logging.getLogger(__name__)

# of log-odds, since operating points lie within thousandths of 1
_TOLERANCE = 1e-2
# what the front-end gives speech
_LARGEST_FEATURE = 4.0
_CHECKED_WINDOWS = (1, 5)
_CHECKED_S = 4.0

Scores = NDArray[np.float64]


def export(*, model: Path, out: Path) -> None:
    """Write the spotter as ONNX, whole and as its network alone, and what a device needs besides.

    stream.onnx takes a chunk of audio of one shift and a state, and gives the smoothed scores of
    the keywords and the state that goes with the next chunk; at the start the state is zeros.
    spotter.onnx maps windows of features (batch, frames, bands) to scores (batch, keywords), for
    devices with a front-end of their own. spotter.json has the states' shapes, the front-end's
    constants, the shift, smoothing, refractory time and thresholds. Both graphs are run and
    compared before they are there.

    Parameters
    ----------
    model
        the folder that `speechkit kws train` wrote as OUT/model.
    out
        gets stream.onnx, spotter.onnx and spotter.json.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter works with it
    except ImportError:
        raise RequestError(
            "exporting needs an extra: pip install 'sparse-speechkit[export]'"
        ) from None
    spotter = Spotter.load(model)
    scorer, stream = _OnWindows(spotter), StreamGraph(spotter)
    windows = torch.randn(2, spotter.window_frames, spotter.frontend.bands)
    _write(
        out / "spotter.onnx",
        scorer,
        {"windows": windows},
        results=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        check=lambda path: _on_windows(
            scorer, onnxruntime.InferenceSession(path), windows.shape[1:]
        ),
    )
    _write(
        out / "stream.onnx",
        stream,
        {"chunk": torch.zeros(stream.chunk_samples), **stream.start()},
        results=["scores", *(f"{name}_next" for name in STATE)],
        check=lambda path: _on_a_stream(stream, spotter, onnxruntime.InferenceSession(path)),
    )
    write_json(out / "spotter.json", _description(spotter, stream))


def _description(spotter: Spotter, stream: StreamGraph) -> dict[str, Any]:
    detection = spotter.config.detection
    return {
        "keywords": list(spotter.keywords),
        "frontend": spotter.frontend.describe(),
        "window_frames": spotter.window_frames,
        "shift_frames": spotter.shift_frames,
        "smoothing_windows": detection.smoothing_windows,
        "refractory_s": detection.refractory_s,
        "thresholds": {keyword: spotter.threshold(keyword) for keyword in spotter.keywords},
        "stream": {
            "sample_rate": spotter.frontend.config.sample_rate,
            "chunk_samples": stream.chunk_samples,
            "chunks_without_score": stream.first_chunk,
            "state": {
                name: {"shape": list(zeros.shape), "type": str(zeros.numpy().dtype)}
                for name, zeros in stream.start().items()
            },
        },
    }


def _write(
    path: Path,
    module: nn.Module,
    given: dict[str, Tensor],
    *,
    results: list[str],
    check: Callable[[Path], float],
    **options: Any,
) -> None:
    """Write a graph under its name if ``check``, the largest difference, finds it right."""
    with atomic_path(path) as temporary:
        with warnings.catch_warnings():
            # the exporter speaks of its own internals
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                tuple(given.values()),
                temporary,
                input_names=list(given),
                output_names=results,
                external_data=False,
                verbose=False,
                **options,
            )
        difference = check(temporary)
        # NaN is neither above nor below
        if not difference <= _TOLERANCE:
            raise JobError(
                f"{path.name}: the exported graph differs by {difference:.1e} in log-odds"
            )
    logger.info("%s: log-odds equal within %.1e", path, difference)


class _OnWindows(nn.Module):
    """The spotter behind its front-end."""

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()
        self.spotter = spotter

    def forward(self, windows: Tensor) -> Tensor:
        return self.spotter.keyword_scores(windows)


def _on_windows(scorer: nn.Module, session: Any, shape: torch.Size) -> float:
    """Compare with onnxruntime for batches of sizes that were not traced."""
    worst = 0.0
    for count in _CHECKED_WINDOWS:
        windows = _LARGEST_FEATURE * torch.rand(count, *shape)
        (found,) = session.run(None, {"windows": windows.numpy()})
        with torch.inference_mode():
            wanted = scorer(windows).numpy()
        worst = np.maximum(worst, _difference(found, wanted))
    return float(worst)


def _on_a_stream(stream: StreamGraph, spotter: Spotter, session: Any) -> float:
    """Compare with the detector on noise that comes and goes."""
    rng = np.random.default_rng(0)
    detector = Detector(spotter)
    state = {name: zeros.numpy() for name, zeros in stream.start().items()}
    worst, size = 0.0, stream.chunk_samples
    for number in range(round(_CHECKED_S * detector.sample_rate / size)):
        level = 10 ** rng.uniform(-3, -0.5)
        chunk = (level * rng.standard_normal(size)).clip(-1, 1).astype(np.float32)
        found, *following = session.run(None, {"chunk": chunk, **state})
        state = dict(zip(state, following, strict=True))
        wanted = detector.scores(chunk)
        if len(wanted) != (number >= stream.first_chunk):
            return float("nan")
        if len(wanted):
            worst = np.maximum(worst, _difference(found, wanted[0]))
    return float(worst)


def _difference(found: Scores, wanted: Scores) -> float:
    difference = np.abs(logit(found) - logit(wanted))
    # where both are 1, or both 0, infinity less infinity is no number
    return float(np.where(found == wanted, 0.0, difference).max())
