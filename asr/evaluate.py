"""``speechkit asr evaluate``: word and character errors on any transcribed recordings."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from lhotse.cut import Cut
from rich.console import Console
from rich.progress import Progress

from speechkit import manifests
from speechkit.asr import confidence
from speechkit.asr.confidence import Reliability
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.evaluation_report import write_evaluation
from speechkit.asr.hypothesis import Hypothesis
from speechkit.asr.recogniser import reference_of
from speechkit.asr.scoring import CorpusScore, Transcript, score
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import JobError, RequestError
from speechkit.reports import provenance

logger = logging.getLogger(__name__)

_SHOWN = 20


def evaluate(
    *,
    model: Path,
    cuts: list[Path],
    out: Path,
    config: DecodingConfig = DecodingConfig(),
) -> int:
    """Transcribe cuts as `speechkit asr transcribe` does, and count the errors.

    Cuts that cannot be read are named and left out; the exit status is then 1.

    Parameters
    ----------
    model
        the folder that `speechkit asr train` wrote as OUT/model.
    cuts
        manifests of transcribed cuts: compared with ``text_norm``, else with the normalised text.
    out
        gets report.json (with wer and cer), report.md, utterances.jsonl and reliability.png.
    """
    transcriber = Transcriber.load(model, config)
    given = list(manifests.read_all(cuts))
    scored = evaluate_with(transcriber, given, out=out, model=str(model))
    spoken = sum(transcriber.recogniser.reference(cut) is not None for cut in given)
    return int(len(scored.utterances) < spoken)


def evaluate_with(
    transcriber: Transcriber, cuts: Sequence[Cut], *, out: Path, model: str
) -> CorpusScore:
    """Measure a transcriber on cuts; write the report and return the score.

    Raises
    ------
    RequestError
        if no cut has a text.
    JobError
        if no cut can be read.
    """
    normaliser = transcriber.recogniser.normaliser
    references = {cut.id: reference_of(cut, normaliser) for cut in cuts}
    spoken = [cut for cut in cuts if references[cut.id] is not None]
    if not spoken:
        raise RequestError(f"none of {len(cuts)} cuts has a text to compare with")
    transcriber.recogniser.inputs.require(spoken)
    transcriber.recogniser.hear(spoken)
    found, broken = transcribe_cuts(transcriber, spoken)
    if not found:
        raise JobError(f"none of {len(spoken)} cuts can be read: {next(iter(broken.values()))}")
    scored = score(
        Transcript(cut.id, references[cut.id] or "", found[cut.id].text, manifests.speaker_of(cut))
        for cut in spoken
        if cut.id in found
    )
    config = dataclasses.asdict(transcriber.config)
    write_evaluation(
        out,
        scored,
        title=f"Speech recognition: {model}",
        about={
            "model": model,
            "decoding": {k: str(v) if isinstance(v, Path) else v for k, v in config.items()},
            "broken": broken,
            **provenance(seed=0, data={"cuts": manifests.fingerprint(cuts)}),
        },
        notes=_notes(len(cuts) - len(spoken), broken),
        reliability=_reliability(scored, found),
    )
    logger.info(
        "WER %.2f %%, CER %.2f %%", *(100 * c.rate for c in (scored.words, scored.characters))
    )
    logger.info("report: %s", out / "report.md")
    return scored


def transcribe_cuts(
    transcriber: Transcriber, cuts: Sequence[Cut]
) -> tuple[dict[str, Hypothesis], dict[str, str]]:
    """Return id -> hypothesis, and id -> reason of those that cannot be read; with progress."""
    found: dict[str, Hypothesis] = {}
    broken: dict[str, str] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for cut in progress.track(cuts, description="transcribing"):
            try:
                found[cut.id] = transcriber.transcribe(cut)
            except JobError as error:
                broken[cut.id] = str(error)
                logger.warning("%s", error)
    return found, broken


def _reliability(scored: CorpusScore, found: dict[str, Hypothesis]) -> Reliability | None:
    claimed, right = confidences(scored, found)
    return confidence.reliability(claimed, right) if claimed else None


def confidences(
    scored: CorpusScore, found: dict[str, Hypothesis]
) -> tuple[list[float], list[bool]]:
    """Return the confidence of every recognised word, and whether it is right."""
    claimed = [
        word.confidence or 0.0
        for one in scored.utterances
        for word in found[one.transcript.id].words
    ]
    return claimed, [right for one in scored.utterances for right in one.correct]


def _notes(nameless: int, broken: dict[str, str]) -> list[str]:
    notes = []
    if nameless:
        notes.append(f"{nameless} cuts without text left out")
    if broken:
        notes.append(f"{len(broken)} broken cuts left out: {', '.join(sorted(broken)[:_SHOWN])}")
    return notes
