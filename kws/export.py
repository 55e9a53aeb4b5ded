"""``speechkit kws export``: a spotter as an ONNX graph, for a runtime on a device."""

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.special import logit
from torch import Tensor, nn

from speechkit.errors import JobError, RequestError
from speechkit.files import atomic_path, write_json
from speechkit.kws.spotter import Spotter

logger = logging.getLogger(__name__)

# of log-odds, since operating points lie within thousandths of 1
_TOLERANCE = 1e-2
# what the front-end gives speech
_LARGEST_FEATURE = 4.0
_CHECKED_WINDOWS = (1, 5)


def export(*, model: Path, out: Path) -> None:
    """Write the network as ONNX, and beside it what a device needs to use it.

    The graph maps windows of features (batch, frames, bands) to the scores of the keywords
    (batch, keywords). The front-end stays outside, to be run once along the stream; its constants,
    the shift, smoothing and thresholds are in the JSON file.

    Parameters
    ----------
    model
        the folder that `speechkit kws train` wrote as OUT/model.
    out
        gets spotter.onnx and spotter.json.
    """
    try:
        import onnxruntime
    except ImportError:
        raise RequestError(
            "exporting needs an extra: pip install 'sparse-speechkit[export]'"
        ) from None
    spotter = Spotter.load(model)
    scorer = _Scorer(spotter)
    windows = torch.randn(2, spotter.window_frames, spotter.frontend.bands)
    with atomic_path(out / "spotter.onnx") as temporary:
        with warnings.catch_warnings():
            # the exporter speaks of its own internals
            warnings.simplefilter("ignore")
            torch.onnx.export(
                scorer,
                (windows,),
                temporary,
                input_names=["windows"],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                external_data=False,
                verbose=False,
            )
        difference = _largest_difference(
            scorer, onnxruntime.InferenceSession(temporary), windows.shape[1:]
        )
        # NaN is neither above nor below
        if not difference <= _TOLERANCE:
            raise JobError(f"the exported graph differs by {difference:.1e} in log-odds")
    config = spotter.config
    write_json(
        out / "spotter.json",
        {
            "keywords": list(spotter.keywords),
            "frontend": spotter.frontend.describe(),
            "window_frames": spotter.window_frames,
            "shift_frames": spotter.shift_frames,
            "smoothing_windows": config.detection.smoothing_windows,
            "refractory_s": config.detection.refractory_s,
            "thresholds": {keyword: spotter.threshold(keyword) for keyword in spotter.keywords},
        },
    )
    logger.info("%s: log-odds equal within %.1e", out / "spotter.onnx", difference)


class _Scorer(nn.Module):
    """The network in float32, as devices have it, and its softmax, in which 1 is not near."""

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()
        self.network = spotter.network
        self.columns = [spotter.config.labels.index(keyword) for keyword in spotter.keywords]

    def forward(self, windows: Tensor) -> Tensor:
        return self.network(windows).double().softmax(dim=1)[:, self.columns]


def _largest_difference(scorer: nn.Module, session: object, shape: torch.Size) -> float:
    """Compare with onnxruntime for batches of sizes that were not traced."""
    worst = 0.0
    for count in _CHECKED_WINDOWS:
        windows = _LARGEST_FEATURE * torch.rand(count, *shape)
        (found,) = session.run(None, {"windows": windows.numpy()})  # type: ignore[attr-defined]
        with torch.inference_mode():
            wanted = scorer(windows).numpy()
        difference = np.abs(logit(found) - logit(wanted))
        # where both are 1, or both 0, infinity less infinity is no number
        worst = np.maximum(worst, np.where(found == wanted, 0.0, difference).max())
    return float(worst)
