"""Our beam search against torchaudio's (flashlight, C++): time, errors, and who finds more.

    python recipes/asr_beam.py --model out/an4/model --cuts out/an4/cuts --out out/beam

Both search the same posteriors, without language model or lexicon, at equal beam; log p is the mean
exact log-probability of what they find. Needs the extra lm.
"""

import statistics
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from speechkit import ctc, manifests
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.scoring import Transcript, score
from speechkit.asr.tokenizer import BLANK
from speechkit.asr.transcriber import Transcriber
from speechkit.cli import run_recipe
from speechkit.ctc_beam import BeamConfig, beam_search
from speechkit.errors import JobError
from speechkit.reports import markdown_table, provenance, write_report


def asr_beam(
    *, model: Path, cuts: list[Path], out: Path, beam: int = 16, tokens: int = 20, batch: int = 16
) -> None:
    """Decode cuts by both searches and compare.

    Parameters
    ----------
    model
        a recogniser of characters.
    cuts
        manifests of transcribed cuts.
    out
        gets report.json and report.md.
    beam, tokens
        prefixes kept, and tokens tried at a frame.
    batch
        utterances that our search takes at once; torchaudio's takes them singly.
    """
    recogniser = Recogniser.load(model)
    spoken = [cut for cut in manifests.read_all(cuts) if recogniser.reference(cut)]
    recogniser.hear(spoken)
    listener = Transcriber(recogniser)
    posteriors = [listener.log_probs(cut) for cut in spoken]
    config = BeamConfig(beam=beam, max_tokens=tokens)
    groups = [posteriors[at : at + batch] for at in range(0, len(posteriors), batch)]
    theirs = flashlight(recogniser, beam, tokens)
    searches: dict[str, Callable[[], list[tuple[int, ...]]]] = {
        "speechkit": lambda: [best for group in groups for best in ours(group, config)],
        "torchaudio": lambda: [theirs(one) for one in posteriors],
    }
    found = {name: search() for name, search in searches.items()}
    taken_s = {name: timeit.repeat(search, number=1, repeat=3) for name, search in searches.items()}
    length_s = sum(cut.duration for cut in spoken)
    report: dict[str, Any] = {"beam": beam, "utterances": len(spoken), "length_s": length_s}
    report |= provenance(seed=None, data={"cuts": manifests.fingerprint(spoken)})
    for name, transcripts in found.items():
        scored = score(
            Transcript(cut.id, recogniser.reference(cut) or "", recogniser.text_of(best))
            for cut, best in zip(spoken, transcripts, strict=True)
        )
        exact = [log_p(x, best) for x, best in zip(posteriors, transcripts, strict=True)]
        report[name] = {
            "wer": scored.words.rate,
            "cer": scored.characters.rate,
            "log_p": statistics.fmean(exact),
            "real_time_factor": statistics.median(taken_s[name]) / length_s,
        }
    rows = [[name, *(f"{value:.5f}" for value in report[name].values())] for name in searches]
    table = markdown_table(["", *report["speechkit"]], rows)
    write_report(out, report, f"# Beam of {beam}\n\n{table}")
    print(table)


def ours(group: list[torch.Tensor], config: BeamConfig) -> list[tuple[int, ...]]:
    """Return the best transcripts of some utterances."""
    lengths = torch.tensor([len(one) for one in group])
    found = beam_search(pad_sequence(group, batch_first=True), lengths, config=config)
    return [hypotheses[0].tokens for hypotheses in found]


def flashlight(
    recogniser: Recogniser, beam: int, tokens: int
) -> Callable[[torch.Tensor], tuple[int, ...]]:
    """Return torchaudio's search, as a function from (T, V) to the best transcript."""
    try:
        from torchaudio.models.decoder import ctc_decoder
    except ImportError as error:
        raise JobError("needs an extra: pip install 'sparse-speechkit[lm]'") from error
    names = [f"t{token}" for token in range(recogniser.output_layer.out_features)]
    (space,) = recogniser.tokenizer.encode(" ")
    options = {"beam_size": beam, "beam_size_token": tokens, "log_add": True}
    search = ctc_decoder(None, names, blank_token=names[BLANK], sil_token=names[space], **options)

    # the token between words stands at both ends too
    def best(x: torch.Tensor) -> tuple[int, ...]:
        found: list[int] = search(x[None])[0][0].tokens.tolist()
        return tuple(found[found[0] == space : len(found) - (found[-1] == space)])

    return best


def log_p(posteriors: torch.Tensor, tokens: tuple[int, ...]) -> float:
    """Return the exact log-probability of a transcript."""
    return float(ctc.log_likelihood(ctc.log_posteriors(posteriors), [tokens], clips=[0])[0])


if __name__ == "__main__":
    sys.exit(run_recipe(asr_beam))
