"""``speechkit asr align``: where the words of known texts lie in their recordings."""

import logging
import os
from pathlib import Path

from lhotse.cut import Cut
from rich.console import Console
from rich.progress import Progress

from speechkit import manifests
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.hypothesis import Hypothesis
from speechkit.asr.tokenizer import out_of_vocabulary
from speechkit.asr.transcribe import Format, render
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import JobError, RequestError
from speechkit.files import write_text

logger = logging.getLogger(__name__)

# bytes, as most systems have it, less an ending and what a temporary name adds
_LONGEST_NAME = 200


def align(
    *,
    model: Path,
    cuts: list[Path],
    out: Path,
    format: Format = "ctm",
) -> int:
    """Align cuts with their texts; those that cannot be are named, the exit status is then 1.

    Parameters
    ----------
    model
        the folder that `speechkit asr train` wrote as OUT/model.
    cuts
        manifests of transcribed cuts.
    out
        gets a file for each cut, by its id.
    format
        ctm or textgrid for other programs; srt; json with the times of tokens and confidences.
    """
    transcriber = Transcriber.load(model, DecodingConfig(own_lm=False))
    given = list(manifests.read_all(cuts))
    spoken = [cut for cut in given if transcriber.recogniser.reference(cut)]
    if not spoken:
        raise RequestError("no cut has a text to align; give transcribed cuts")
    if len(spoken) < len(given):
        logger.warning("%d cuts without a text left out", len(given) - len(spoken))
    names = {cut.id: cut.id.replace("/", "_") for cut in spoken}
    if len(set(names.values())) < len(names):
        raise RequestError("ids that differ in / and _ alone would share a file; rename one")
    if odd := [id_ for id_, name in names.items() if not _can_be_a_file(name)]:
        raise RequestError(f"id {odd[0]!r}: can be no file's name; rename the cut")
    transcriber.recogniser.inputs.require(spoken)
    transcriber.recogniser.hear(spoken)
    failed = 0
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for cut in progress.track(spoken, description="aligning"):
            try:
                hypothesis = align_cut(transcriber, cut)
            except JobError as error:
                failed += 1
                logger.warning("%s: %s", cut.id, error)
                continue
            suffix = "TextGrid" if format == "textgrid" else format
            text = render(hypothesis, format, name=names[cut.id], duration_s=cut.duration)
            write_text(out / f"{names[cut.id]}.{suffix}", text)
    logger.info("%s: %d of %d cuts aligned", out, len(spoken) - failed, len(spoken))
    return 1 if failed else 0


def _can_be_a_file(name: str) -> bool:
    try:
        return "\0" not in name and len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half a character
        return False


def align_cut(transcriber: Transcriber, cut: Cut) -> Hypothesis:
    """Return the cut's own text with the times of its tokens and words.

    Raises
    ------
    JobError
        if the cut cannot be read, its text holds what the model cannot write, or its frames are too
        few for the text.
    """
    recogniser = transcriber.recogniser
    text = recogniser.reference(cut) or ""
    if unknown := out_of_vocabulary(recogniser.tokenizer, [text]).characters:
        raise JobError(
            f"the model knows no {' '.join(map(repr, sorted(unknown)))}; rewrite the text without"
        )
    tokens = recogniser.tokenizer.encode(text)
    return transcriber.timed(transcriber.log_probs(cut), tokens)
