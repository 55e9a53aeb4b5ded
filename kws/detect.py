"""``speechkit kws detect``: listen to a file or to standard input, say what was heard."""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from speechkit.audio import SAMPLE_RATE, Audio, StreamResampler, chunks
from speechkit.errors import RequestError
from speechkit.kws.detector import Detection, Detector
from speechkit.pcm import standard_input

logger = logging.getLogger(__name__)

# a file is read by the second, a microphone is heard at once
_FILE_CHUNK_S = 1.0
_CHUNK_S = 0.1


def detect(
    file: str,
    *,
    model: Path,
    threshold: float | None = None,
    rate: int = SAMPLE_RATE,
    json_lines: bool = False,
) -> None:
    """Print keywords as they are detected, one line each: time in seconds, keyword, score.

    Parameters
    ----------
    file
        an audio file of any rate and number of channels, or - for raw 16-bit mono PCM on standard
        input, such as `arecord -f S16_LE -r 16000 -c 1 -t raw | speechkit kws detect - --model M`.
    model
        the folder that `speechkit kws train` wrote as OUT/model.
    threshold
        for all keywords, in place of those stored in the model.
    rate
        samples per second of the PCM on standard input.
    json_lines
        print a JSON object a line.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise RequestError(f"threshold {threshold}: must lie in 0 to 1")
    if rate <= 0:
        raise RequestError(f"rate {rate}: must be positive")
    detector = Detector.load(model)
    if threshold is not None:
        keywords = detector.spotter.keywords
        detector = Detector(detector.spotter, thresholds=dict.fromkeys(keywords, threshold))
    else:
        _warn_of_thresholds(detector)
    for detection in listen_to(detector, _pieces(file, rate)):
        line = (
            json.dumps(asdict(detection))
            if json_lines
            else f"{detection.time_s:.2f}\t{detection.keyword}\t{detection.score:.4f}"
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _warn_of_thresholds(detector: Detector) -> None:
    spotter = detector.spotter
    if unset := sorted(set(spotter.keywords) - spotter.config.thresholds.keys()):
        names = ", ".join(unset)
        logger.warning("%s: no threshold was frozen, so 0.5 is used; see --threshold", names)


def listen_to(detector: Detector, pieces: Iterator[tuple[Audio, int]]) -> Iterator[Detection]:
    """Yield the detections in (chunk, sample rate) pairs of one rate, as they happen."""
    resampler = None
    for chunk, sample_rate in pieces:
        if resampler is None:
            resampler = StreamResampler(sample_rate, detector.sample_rate)
        yield from detector.push(resampler.push(chunk))
    if resampler is not None:
        yield from detector.push(resampler.flush())
        yield from detector.flush()


def _pieces(file: str, rate: int) -> Iterator[tuple[Audio, int]]:
    if file != "-":
        return chunks(file, chunk_s=_FILE_CHUNK_S)
    return ((chunk, rate) for chunk in standard_input(max(1, round(_CHUNK_S * rate))))
