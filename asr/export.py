"""``speechkit asr export``: a recogniser's encoder as an ONNX graph of any length."""

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from speechkit.asr.encoders import SparseConfig
from speechkit.asr.recogniser import Recogniser
from speechkit.errors import JobError, RequestError
from speechkit.files import atomic_path, write_json
from speechkit.kernels.portable import exportable

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3
_TRACED_FRAMES = 203
# lengths that were not traced: short and odd, and of several windows of attention
_CHECKED_FRAMES = (37, 1501)


def export(*, model: Path, out: Path) -> None:
    """Write the encoder as ONNX, and beside it what a program needs to use it.

    The graph maps the features (1, frames, features) of an utterance, after deltas and
    normalisation, to log-posteriors (1, frames out, tokens). The front-end stays outside; its
    constants, the tokens and the period of the frames out are in the JSON file. The graph is
    compared with the model at two lengths that were not traced.

    Parameters
    ----------
    model
        the folder that `speechkit asr train` wrote as OUT/model.
    out
        gets recogniser.onnx and recogniser.json.
    """
    try:
        import onnxruntime
    except ImportError:
        raise RequestError(
            "exporting needs an extra: pip install 'sparse-speechkit[export]'"
        ) from None
    recogniser = Recogniser.load(model)
    if not isinstance(recogniser.network.config, SparseConfig):
        raise RequestError(
            f"{model}: is recurrent, and ONNX's exporter fixes the length of such; export an "
            "attention encoder"
        )
    scorer = _Scorer(recogniser)
    with atomic_path(out / "recogniser.onnx") as temporary:
        _write(scorer, temporary, recogniser.inputs.dimensions)
        session = onnxruntime.InferenceSession(temporary)
        difference = _largest_difference(scorer, session, recogniser.inputs.dimensions)
        if not difference <= _TOLERANCE:
            raise JobError(f"the exported graph differs by {difference:.1e} in its posteriors")
    write_json(out / "recogniser.json", _description(recogniser))
    logger.info("%s: posteriors equal within %.1e", out / "recogniser.onnx", difference)


class _Scorer(nn.Module):
    """The encoder and its softmax, for one utterance; float32."""

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.network = recogniser.network

    def forward(self, features: Tensor) -> Tensor:
        lengths = torch.full((1,), features.shape[1], device=features.device)
        return self.network(features, lengths).logits.log_softmax(dim=-1)


def _write(scorer: nn.Module, path: Path, features: int) -> None:
    with warnings.catch_warnings(), exportable():
        # the exporter speaks of its own internals
        warnings.simplefilter("ignore")
        torch.onnx.export(
            scorer,
            (torch.randn(1, _TRACED_FRAMES, features),),
            path,
            input_names=["features"],
            output_names=["log_probs"],
            dynamic_shapes=({1: torch.export.Dim.DYNAMIC},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )


def _largest_difference(scorer: nn.Module, session: object, features: int) -> float:
    """Compare the probabilities with onnxruntime's."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for frames in _CHECKED_FRAMES:
        x = torch.randn(1, frames, features, generator=generator)
        (found,) = session.run(None, {"features": x.numpy()})  # type: ignore[attr-defined]
        with torch.inference_mode():
            expected = scorer(x).exp().numpy()
        # unlike max, it keeps NaN
        worst = float(np.maximum(worst, np.abs(np.exp(found) - expected).max()))
    return worst


def _description(recogniser: Recogniser) -> dict[str, object]:
    tokenizer = recogniser.tokenizer
    return {
        "inputs": recogniser.inputs.describe(),
        "features": recogniser.inputs.dimensions,
        "frame_s": recogniser.frame_s,
        "blank": recogniser.blank,
        "tokens": [piece.decode("utf-8", "replace") for piece in tokenizer.pieces],
        "tokenizer": tokenizer.describe(),
        "normaliser": recogniser.normaliser.to_dict(),
    }
