"""What is not worth an annotator's time: silence, clipping, clips too short or too long."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechkit.audio import SAMPLE_RATE, Audio
from speechkit.errors import RequestError

_STEP_S = 0.02
_FULL_SCALE = 0.999
_SILENT_POWER = 1e-10
_SPEECH_PERCENTILE = 90
_NOISE_PERCENTILE = 10


@dataclass(frozen=True, kw_only=True)
class QualityLimits:
    """What a clip must keep to; a quantity that was not measured is not judged.

    Attributes
    ----------
    min_duration_s, max_duration_s
        shortest and longest clip to label.
    silence_dbfs
        a clip whose level, over all of it, lies below is taken for silent.
    clipped_share
        largest share of samples at full scale.
    """

    min_duration_s: float = 0.1
    max_duration_s: float = 60.0
    silence_dbfs: float = -60.0
    clipped_share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.min_duration_s < self.max_duration_s:
            raise RequestError(
                f"durations from {self.min_duration_s:g} to {self.max_duration_s:g} s: give 0 or "
                "more, and the smaller one first"
            )

    def fault(self, row: Mapping[str, Any]) -> str | None:
        """Return why a clip is unfit, from its columns (see `measure`); None if it is fit."""
        duration_s = _number(row, "duration_s")
        if duration_s < self.min_duration_s:
            return f"too short: {duration_s:.3f} s"
        if duration_s > self.max_duration_s:
            return f"too long: {duration_s:.3f} s"
        if _number(row, "level_dbfs") < self.silence_dbfs:
            return f"silent: {row['level_dbfs']:.1f} dBFS"
        if _number(row, "clipped_share") > self.clipped_share:
            return f"clipped: {row['clipped_share']:.2%} of the samples"
        return None


def measure(audio: Audio, *, sample_rate: int = SAMPLE_RATE) -> dict[str, float]:
    """Return level_dbfs, clipped_share and snr_db of a signal (N samples).

    The signal-to-noise ratio is an estimate that needs no reference: the power of the loud steps
    (90th percentile of 20 ms) less that of the quiet ones (10th), over that of the quiet ones; at
    most 100 dB, and NaN of silence.
    """
    power = np.square(audio, dtype=np.float64)
    level_dbfs = 10 * math.log10(max(float(power.mean()) if len(power) else 0.0, _SILENT_POWER))
    clipped = float(np.mean(np.abs(audio) >= _FULL_SCALE)) if len(audio) else 0.0
    snr_db = _snr_db(power, round(_STEP_S * sample_rate))
    return {"level_dbfs": level_dbfs, "clipped_share": clipped, "snr_db": snr_db}


def _snr_db(power: np.ndarray, step: int) -> float:
    steps = len(power) // step
    if steps < 2:
        return math.nan
    levels = power[: steps * step].reshape(steps, step).mean(axis=1)
    loud, quiet = np.percentile(levels, [_SPEECH_PERCENTILE, _NOISE_PERCENTILE])
    if loud <= _SILENT_POWER:
        return math.nan
    quiet = max(quiet, _SILENT_POWER * loud)
    return float(10 * np.log10(max(loud - quiet, _SILENT_POWER * loud) / quiet))


def _number(row: Mapping[str, Any], name: str) -> float:
    """Return a column's number; NaN, which no comparison finds at fault, if it is not there."""
    value = row.get(name)
    return math.nan if value is None else float(value)
