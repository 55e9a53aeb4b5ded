"""How posteriors become text: settings, lexicon, and a language model, perhaps the model's own."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from speechkit.asr.fusion import Lexicon, Sum, WordLanguageModel
from speechkit.asr.ngram import NGramModel
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.tokenizer import BLANK
from speechkit.ctc_beam import Scorer
from speechkit.errors import RequestError
from speechkit.files import write_json
from speechkit.ranges import require

# a model folder's language model, and the weights chosen for it
_LM, _LM_WEIGHTS = "lm.arpa", "lm.json"
_LM_WEIGHT = 0.5
_SEARCH_BEAM = 16


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How posteriors become text.

    Parameters
    ----------
    beam
        prefixes that the search keeps, by default 16 with a language model or a lexicon, else 1:
        greedy.
    lm
        an ARPA file of words.
    lm_weight
        factor on the language model's log-probabilities; by default 0.5, or what was chosen for
        the model's own.
    word_bonus
        nats for each word; by default 0, or what was chosen for the model's own.
    own_lm
        without lm, use the language model in the model's folder, if there is one.
    lexicon
        a file of the allowed words, one a line.
    chunk_s, overlap_s
        recordings longer than a chunk are encoded in chunks that overlap, half of each overlap
        being taken from either. chunk_s 0: in one pass. By default encoders with dense attention
        take chunks of 30 s, others one pass.
    """

    beam: int | None = None
    lm: Path | None = None
    lm_weight: float | None = None
    word_bonus: float | None = None
    own_lm: bool = True
    lexicon: Path | None = None
    chunk_s: float | None = None
    overlap_s: float = 4.0

    def __post_init__(self) -> None:
        require(self, "beam", at_least=1)
        require(self, "chunk_s", "overlap_s", "lm_weight", at_least=0)
        require(self, "word_bonus")
        if self.chunk_s and self.chunk_s <= self.overlap_s:
            raise RequestError(
                f"chunk_s {self.chunk_s}, overlap_s {self.overlap_s}: a chunk must be longer than "
                "its overlap"
            )

    @property
    def searches(self) -> bool:
        """Whether a beam search is needed."""
        return (self.beam or 1) > 1 or self.lm is not None or self.lexicon is not None


def attach_language_model(
    folder: Path, model: NGramModel, *, lm_weight: float, word_bonus: float
) -> None:
    """Put a language model into a model folder; it is used from then on, unless told otherwise."""
    model.save(folder / _LM)
    write_json(folder / _LM_WEIGHTS, {"lm_weight": lm_weight, "word_bonus": word_bonus})


def resolved(config: DecodingConfig, folder: Path | None = None) -> DecodingConfig:
    """Return the settings with defaults filled in, the language model of a folder among them.

    Weights stay open where there is nothing to weigh.

    Raises
    ------
    RequestError
        if the folder's weights cannot be read, or weights are given and there is nothing to weigh.
    """
    chosen: dict[str, Any] = {"lm_weight": _LM_WEIGHT, "word_bonus": 0.0}
    if config.own_lm and config.lm is None and folder and (folder / _LM_WEIGHTS).is_file():
        chosen |= _own_weights(folder / _LM_WEIGHTS)
        config = dataclasses.replace(config, lm=folder / _LM)
    chosen["beam"] = _SEARCH_BEAM if config.searches else 1
    if config.lm is None:
        if given := _weights_given(config):
            raise RequestError(f"{given}: there is no language model to weigh; give lm")
        del chosen["lm_weight"], chosen["word_bonus"]
    missing = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def _weights_given(config: DecodingConfig) -> str:
    names = ("lm_weight", "word_bonus")
    values = ((name, getattr(config, name)) for name in names)
    return ", ".join(f"{name} {value:g}" for name, value in values if value is not None)


def _own_weights(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(found[name]) for name in ("lm_weight", "word_bonus")}
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{path}: is damaged ({error}); delete it") from error


def scorer_of(config: DecodingConfig, recogniser: Recogniser) -> Scorer[Any] | None:
    """Return what judges hypotheses by `resolved` settings: language model, lexicon, both, None.

    Raises
    ------
    RequestError
        if a file cannot be read, or holds words that the recogniser cannot write.
    """
    scorers: list[Scorer[Any]] = []
    if config.lm is not None:
        assert config.lm_weight is not None
        assert config.word_bonus is not None
        scorers.append(
            WordLanguageModel(
                NGramModel.load(config.lm),
                recogniser.tokenizer,
                weight=config.lm_weight,
                word_bonus=config.word_bonus,
            )
        )
    if config.lexicon is not None:
        scorers.append(Lexicon(_words(config.lexicon), recogniser.tokenizer))
    if not scorers:
        return None
    return scorers[0] if len(scorers) == 1 else Sum(*scorers)


def _words(path: Path) -> list[str]:
    try:
        # editors of Windows put a mark in front
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(lines, start=1):
        if len(line.split()) > 1:
            raise RequestError(f"{path}, line {number}: {line.strip()!r} is not one word; give one")
    return [line.strip() for line in lines if line.strip()]


def pieces_at_blanks(log_probs: Tensor, frames: int) -> Iterator[Tensor]:
    """Yield posteriors (U, V) in pieces of at most so many frames, cut where nothing is said.

    A cut is made in the second half of a piece, in the middle of the longest stretch of likely
    blanks, or else where the blank is likeliest.
    """
    while len(log_probs) > frames:
        cut = frames // 2 + _quietest(log_probs[frames // 2 : frames, BLANK].exp())
        yield log_probs[:cut]
        log_probs = log_probs[cut:]
    yield log_probs


def _quietest(blank: Tensor) -> int:
    """Return where to cut, 1 to U, by the probabilities of the blank (U,)."""
    edges = torch.diff((functional.pad(blank, (1, 1)) > 0.5).int())
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    if not len(starts):
        return int(blank.argmax()) + 1
    longest = int((ends - starts).argmax())
    return max(1, int(starts[longest] + ends[longest]) // 2)
