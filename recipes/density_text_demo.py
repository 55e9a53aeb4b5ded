"""Train a small density model of text in minutes, compare it with compressors, let it write.

    python recipes/density_text_demo.py --out out/text-demo                  # text that it makes
    python recipes/density_text_demo.py --out out/my-text --text FILE.txt    # a text of yours

The generated text knows its own entropy, which no model can expect to beat.
"""

import sys
from pathlib import Path

from speechkit.cli import run_recipe
from speechkit.density.evaluate import ScoringConfig, evaluate_with
from speechkit.density.generator import generated_corpus
from speechkit.density.optimisation import FitConfig
from speechkit.density.sample import SampleConfig, sample_with
from speechkit.density.text import read_text
from speechkit.density.train import ModelChanges, train_model

SETTINGS = FitConfig(steps=600, validate_every=100, valid_windows=16)


def density_text_demo(
    *,
    out: Path,
    text: Path | None = None,
    bytes_written: int = 400,
    temperature: float = 0.8,
    model: ModelChanges = ModelChanges(),
    config: FitConfig = SETTINGS,
) -> None:
    """Train on text, print bits per byte beside those of compressors, and a sample.

    Parameters
    ----------
    out
        gets model/, log.jsonl, report/ and sample/.
    text
        a text file, whose last tenth is to validate on; generated text by default.
    bytes_written
        length of the sample.
    temperature
        of the sample.
    """
    corpus = read_text(text) if text else generated_corpus()
    artifact = train_model(corpus, preset="tiny_text", out=out, model=model, config=config)
    half = artifact.model.config.context // 2
    scoring = ScoringConfig(min_context=half, baselines=True)
    found = evaluate_with(artifact, corpus, out=out / "report", config=scoring)
    print(f"bits per byte of {corpus.name}, minimum context {half}:")
    print(f"  this model        {found.score.bits_per_byte:.3f}")
    for one in found.baselines:
        print(f"  {one.name:<17} {one.after_training:.3f}")
    for split, entropy in corpus.entropy.items():
        print(f"  entropy of {split:<6} {entropy:.3f}")
    prompt = corpus.split("valid").draw(0, length=half // 4, seed=0).tobytes()
    drawn = sample_with(
        artifact,
        out=out / "sample",
        config=SampleConfig(
            prompt=prompt.decode(errors="replace"), length=bytes_written, temperature=temperature
        ),
    )
    print(f"a sample:\n{drawn[0].tobytes().decode(errors='replace')}")


if __name__ == "__main__":
    sys.exit(run_recipe(density_text_demo))
