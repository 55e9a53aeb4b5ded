r"""A wake word from your own recordings: split, train, mine, train again, measure.

    python recipes/kws_wake_word.py --keyword "hey computer" --positives words.jsonl \
        --negatives speech.jsonl talk.jsonl --noise noise.jsonl --rir rir.jsonl --out out/wake

The model is in OUT/model, the report in OUT/report.md. Manifests are NeMo JSONL, lhotse CutSets or
folders that `speechkit data prepare` wrote. Without --positives, synthetic voices serve.
"""

import sys
from pathlib import Path

from speechkit import synthetic
from speechkit.cli import run_recipe
from speechkit.kws.pipeline import PipelineConfig, run


def kws_wake_word(
    *,
    keyword: str,
    negatives: list[Path],
    out: Path,
    positives: list[Path] | None = None,
    noise: list[Path] | None = None,
    rir: list[Path] | None = None,
    config: PipelineConfig = PipelineConfig(),
) -> None:
    """Train a spotter for one keyword and measure it on clips that it never saw.

    Parameters
    ----------
    keyword
        the word or words, as they stand in labels or texts.
    positives
        manifests with the keyword; synthetic voices, saved in OUT/synthetic, without any.
    negatives
        manifests without it, as much as there is: the false alarms are counted here.
    out
        gets model/, report.json, report.md, det.png, snr.png, and a folder a fold.
    noise, rir
        manifests of background noise and of room impulse responses.
    """
    notes = []
    if not positives:
        corpus = synthetic.SyntheticConfig(keywords=(keyword,), negative_hours=0.0, workers=2)
        synthetic.prepare(out / "synthetic", corpus)
        positives = [out / "synthetic"]
        notes.append(
            "the positives are synthetic voices, and so are the near-sounding words among the "
            "negatives: expect more misses with people"
        )
    run(
        [keyword],
        positives=positives,
        negatives=negatives,
        noise=noise or (),
        rir=rir or (),
        out=out,
        config=config,
        notes=notes,
    )
    print((out / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(run_recipe(kws_wake_word))
