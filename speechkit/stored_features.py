"""Features that were computed elsewhere and come with the cuts: their form, and reading them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from speechkit.errors import AudioError, RequestError


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """The form of stored features.

    Parameters
    ----------
    bands
        features a frame.
    hop_s
        from one frame to the next.
    """

    bands: int
    hop_s: float = 0.01

    def __post_init__(self) -> None:
        if self.bands < 1 or not self.hop_s > 0:
            raise RequestError(
                f"stored features of {self.bands} bands, {self.hop_s} s a frame: both must be "
                "positive"
            )


def stored_form(cuts: Iterable[Cut]) -> StoredFeatures | None:
    """Return the form of the features that come with cuts; None if none has any.

    Raises
    ------
    RequestError
        if only some cuts have features, or they differ in form.
    """
    forms = {
        StoredFeatures(bands=cut.num_features, hop_s=cut.frame_shift) if cut.has_features else None
        for cut in cuts
    }
    if len(forms) > 1:
        found = ", ".join(sorted("none" if one is None else str(one) for one in forms))
        raise RequestError(f"cuts with different features ({found}): give cuts of one form")
    return next(iter(forms), None)


def load_features(cut: Cut, form: StoredFeatures) -> Tensor:
    """Return the features (T, F) that come with a cut, float32.

    Raises
    ------
    AudioError
        if they cannot be read or hold NaN or infinity.
    RequestError
        if the cut has none, or they are of another form.
    """
    if not cut.has_features:
        raise RequestError(f"{cut.id}: has no features; the model reads features, not audio")
    if cut.num_features != form.bands or not np.isclose(cut.frame_shift, form.hop_s):
        raise RequestError(
            f"{cut.id}: {cut.num_features} features every {cut.frame_shift} s, where "
            f"{form.bands} every {form.hop_s} s are expected"
        )
    try:
        matrix = np.asarray(cut.load_features(), dtype=np.float32)
    except Exception as error:
        # lhotse raises many unrelated types here, all of which mean the same to a caller
        reason = " ".join(str(error).split())
        raise AudioError(f"{cut.id}: its features cannot be read ({reason})") from error
    if matrix.ndim != 2 or matrix.shape[1] != form.bands:
        raise AudioError(
            f"{cut.id}: its features have shape {matrix.shape}, not (frames, {form.bands})"
        )
    if not np.isfinite(matrix).all():
        raise AudioError(f"{cut.id}: its features hold NaN or infinity")
    return torch.from_numpy(np.ascontiguousarray(matrix))
