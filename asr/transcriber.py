"""From a recording to a transcript: posteriors in bounded memory, decoding, times, confidences.

Shapes: N samples, T frames of features, F features a frame, U frames of the encoder, V tokens.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import soundfile
import torch
from lhotse.cut import Cut
from numpy.typing import NDArray
from torch import Tensor

from speechkit import ctc, ctc_beam, manifests
from speechkit.asr import alignment
from speechkit.asr.decoding import DecodingConfig, pieces_at_blanks, resolved, scorer_of
from speechkit.asr.hypothesis import Hypothesis
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.tokenizer import SPACE
from speechkit.audio import MOST_HEADER_BYTES, Audio, as_float, chunks, load_cut
from speechkit.ctc_beam import BeamConfig
from speechkit.errors import AudioError, JobError, RequestError, out_of_memory_says
from speechkit.features import Inputs
from speechkit.stored_features import StoredFeatures

Recording: TypeAlias = Path | str | Cut | NDArray[Any]

# samples below this everywhere are no sound: two steps of 16 bits
_SILENT_PEAK = 6e-5
# files are read and heard by this much
_READ_S = 30.0
# beam search takes pieces of a long recording, cut where the blank is surest
_PIECE_S = 60.0
# dense attention reads no more at a time unless it is told to
_DENSE_CHUNK_S = 30.0


class Transcriber:
    """A recogniser with a decoder; what `asr transcribe` and `asr evaluate` both run."""

    def __init__(self, recogniser: Recogniser, config: DecodingConfig = DecodingConfig()) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.recogniser = recogniser.to(device).eval()
        self.config = resolved(config)
        self.scorer = scorer_of(self.config, recogniser)
        default_s = 0.0 if recogniser.network.in_one_pass else _DENSE_CHUNK_S
        self.chunk_s = default_s if config.chunk_s is None else config.chunk_s
        if 0 < self.chunk_s <= config.overlap_s:
            raise RequestError(
                f"overlap_s {config.overlap_s:g}: chunks of {self.chunk_s:g} s must be longer; give"
                " less, or chunk_s"
            )

    @classmethod
    def load(cls, folder: Path | str, config: DecodingConfig = DecodingConfig()) -> Self:
        """Read a model folder.

        Raises
        ------
        RequestError
            if the folder is no recogniser, or language model or lexicon are not of its words.
        """
        return cls(Recogniser.load(folder), resolved(config, Path(folder)))

    def transcribe(self, recording: Recording) -> Hypothesis:
        """Return the transcript of a recording; an empty one where there is nothing to hear.

        Parameters
        ----------
        recording
            an audio file of any rate and length; samples (N,), int16 or floats in [-1, 1], at the
            front-end's rate; a cut. A model of stored features takes a cut that has them, or the
            features (T, F) themselves.

        Raises
        ------
        AudioError
            if it cannot be read, or holds NaN.
        JobError
            if memory runs out.
        """
        with _memory_for(recording):
            return self.decode(self._log_probs(recording))

    def decode(self, log_probs: Tensor) -> Hypothesis:
        """Return the transcript of log-posteriors (U, V)."""
        return self._calibrated(self.timed(log_probs, self._tokens(log_probs)))

    def timed(self, log_probs: Tensor, tokens: Sequence[int]) -> Hypothesis:
        """Return tokens with their times along log-posteriors (U, V), see `alignment.timed`."""
        recogniser = self.recogniser
        return alignment.timed(
            log_probs,
            tokens,
            recogniser.tokenizer,
            frame_s=recogniser.frame_s,
            first_s=recogniser.first_frame_s,
        )

    def log_probs(self, recording: Recording) -> Tensor:
        """Return the log-posteriors (U, V), float32, on the CPU; no frames for silence.

        Raises
        ------
        AudioError, JobError
            as `transcribe` does.
        """
        with _memory_for(recording):
            return self._log_probs(recording)

    @torch.inference_mode()
    def _log_probs(self, recording: Recording) -> Tensor:
        recogniser = self.recogniser
        raw = self._features(recording)
        if len(raw) == 0:
            return torch.zeros(0, recogniser.tokenizer.size)
        speaker = manifests.speaker_of(recording) if isinstance(recording, Cut) else None
        features, _ = _after_frontend(recogniser.inputs)(
            raw[None].to(recogniser.device),
            torch.tensor([len(raw)], device=recogniser.device),
            speakers=[speaker],
            statistics=recogniser.statistics,
        )
        pieces = [self._encode(features, *span) for span in self._spans(len(raw))]
        return torch.cat(pieces).float().log_softmax(dim=-1).cpu()

    def _encode(self, features: Tensor, start: int, end: int, keep: slice) -> Tensor:
        """Return logits (U, V) of some frames, those of ``keep``."""
        lengths = torch.tensor([end - start], device=features.device)
        logits: Tensor = self.recogniser(features[:, start:end], lengths).logits
        return logits[0, keep]

    def _spans(self, frames: int) -> Iterator[tuple[int, int, slice]]:
        """Yield (first frame, frame after the last, frames out to keep) of each chunk."""
        recogniser, config = self.recogniser, self.config
        factor = recogniser.network.factor
        size = round(self.chunk_s / recogniser.frame_s)
        if self.chunk_s and size < 1:
            raise RequestError(
                f"chunk_s {self.chunk_s:g}: is less than a frame of {recogniser.frame_s:g} s; give "
                "more, or 0 for one pass"
            )
        if size == 0 or frames <= size * factor:
            yield 0, frames, slice(None)
            return
        half = min(round(config.overlap_s / recogniser.frame_s), size - 1) // 2
        step = max(1, size - 2 * half)
        outs = -(-frames // factor)
        for start in range(0, outs, step):
            last = start + size >= outs
            keep = slice(half if start else 0, None if last else size - half)
            yield start * factor, min(frames, (start + size) * factor), keep
            if last:
                return

    def _features(self, recording: Recording) -> Tensor:
        """Return features (T, F) before deltas and normalisation, in bounded memory for files."""
        inputs = self.recogniser.inputs
        if inputs.frontend is None:
            if isinstance(recording, Cut):
                return inputs.load(recording)
            return _as_features(recording, inputs.bands)
        stream, peak, parts = None, 0.0, []
        for chunk, sample_rate in self._audio(recording):
            if stream is None:
                stream = inputs.frontend.stream(sample_rate=sample_rate)
            peak = max(peak, float(np.abs(chunk).max(initial=0.0)))
            parts.append(stream.push(chunk))
        if stream is None or peak < _SILENT_PEAK:
            return torch.zeros(0, inputs.bands)
        return torch.cat([*parts, stream.flush()])

    def _audio(self, recording: Recording) -> Iterator[tuple[Audio, int]]:
        frontend = self.recogniser.inputs.frontend
        assert frontend is not None
        rate = frontend.config.sample_rate
        if isinstance(recording, Cut):
            if recording.num_samples != 0:  # None without a recording, which is named
                yield load_cut(recording, sample_rate=rate), rate
        elif isinstance(recording, Path | str):
            if not _holds_nothing(recording):
                yield from chunks(recording, chunk_s=_READ_S)
        else:
            audio = as_float(np.asarray(recording))
            size = round(_READ_S * rate)
            for start in range(0, len(audio), size):
                yield audio[start : start + size], rate

    def _tokens(self, log_probs: Tensor) -> tuple[int, ...]:
        if len(log_probs) == 0:
            return ()
        if not self.config.searches:
            return ctc.greedy(log_probs)[0].tokens
        tokens: list[int] = []
        frames = round(_PIECE_S / self.recogniser.frame_s)
        config = BeamConfig(beam=self.config.beam or 1, nbest=1)
        for piece in pieces_at_blanks(log_probs, frames):
            try:
                best = ctc_beam.beam_search(piece, config=config, scorer=self.scorer)[0][0]
            except MemoryError as error:
                raise JobError(
                    f"memory ran out in the search: lower beam, which is {config.beam}"
                ) from error
            found = best.tokens if best.score > -math.inf else self._whole_words(best.tokens)
            tokens += self._spaced(tokens, found)
        return tuple(tokens)

    def _whole_words(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens without the last word, at whose end the scorer forbids to stop."""
        starts = [
            i for i, token in enumerate(tokens) if self.recogniser.tokenizer.starts_word(token)
        ]
        return tokens[: starts[-1]] if starts else ()

    def _spaced(self, before: list[int], after: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens of a piece, with a space in front if it must be told from the last."""
        tokenizer = self.recogniser.tokenizer
        if not before or not after or tokenizer.starts_word(after[0]):
            return after
        if tokenizer.starts_word(before[-1]) and not tokenizer.pieces[before[-1]].strip():
            return after
        # not by `encode`: SentencePiece takes spaces at the ends away
        space = tokenizer.pieces.index(SPACE) if SPACE in tokenizer.pieces else None
        return after if space is None else (space, *after)

    def _calibrated(self, hypothesis: Hypothesis) -> Hypothesis:
        if not hypothesis.words:
            return hypothesis
        raw = [word.confidence for word in hypothesis.words]
        confidences = self.recogniser.calibration(raw).tolist()  # type: ignore[arg-type]
        words = tuple(
            dataclasses.replace(word, confidence=confidence)
            for word, confidence in zip(hypothesis.words, confidences, strict=True)
        )
        mean = sum(confidences) / len(confidences)
        return dataclasses.replace(hypothesis, words=words, confidence=mean)


def _after_frontend(inputs: Inputs) -> Inputs:
    """Return inputs for what the front-end gives, which then need no audio."""
    form = StoredFeatures(bands=inputs.bands, hop_s=inputs.hop_s)
    return Inputs(form, inputs.config)


def _as_features(recording: Recording, bands: int) -> Tensor:
    if isinstance(recording, Path | str):
        raise RequestError(
            f"{recording}: the model reads stored features, not audio; give a manifest with them"
        )
    array = np.asarray(recording, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != bands:
        raise RequestError(f"features of shape {array.shape}: give (frames, {bands})")
    if not np.isfinite(array).all():
        raise AudioError("features hold NaN or infinity")
    return torch.from_numpy(array)


def _memory_for(recording: Recording) -> AbstractContextManager[None]:
    """Name the recording over which memory runs out, so that others are still heard."""
    return out_of_memory_says(
        f"{_name(recording)}: memory ran out: set chunk_s, or lower it, or cut the recording"
    )


def _name(recording: Recording) -> str:
    """Return what a message calls a recording."""
    if isinstance(recording, Cut):
        return str(recording.id)
    return str(recording) if isinstance(recording, Path | str) else "samples"


def _holds_nothing(path: Path | str) -> bool:
    """Say whether a readable audio file has no samples: silence, rather than damage."""
    try:
        no_frames = soundfile.info(os.fsencode(path)).frames == 0
    except (soundfile.LibsndfileError, TypeError):
        return False  # the reader will say what is wrong
    return bool(no_frames) and Path(path).stat().st_size <= MOST_HEADER_BYTES
