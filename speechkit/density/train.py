"""``speechkit density train``: from bytes to a model folder."""

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from speechkit.claims import claim
from speechkit.density.artifact import Artifact, check_shape
from speechkit.density.corpus import Corpus
from speechkit.density.fit import Plan, fit
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.density.optimisation import FitConfig, total_steps
from speechkit.density.presets import preset as preset_of
from speechkit.density.sources import CorpusName, SourceConfig, open_corpus
from speechkit.files import write_json
from speechkit.initialisation import Reading
from speechkit.reports import provenance
from speechkit.seeds import seed_of

logger = logging.getLogger(__name__)

# these change nothing in what a step computes
_FREE = ("accumulate", "log_every", "devices", "nodes", "strategy")


@dataclass(frozen=True, kw_only=True)
class ModelChanges:
    """What differs from the preset's model; None is as there.

    Parameters
    ----------
    layers, width, heads
        residual blocks, their width, attention heads.
    patterns
        what layers attend to, in turn, such as ["Local(32)", "Strided(32)"].
    feed_forward_ratio, half_keys
        width of the feed-forward layer in widths; queries and keys half as wide as values.
    dropout
        at the end of each residual branch.
    shape
        sizes of the position tables, whose product is the context: rows, columns and channels of
        images; rows and columns at the attention's stride of text and audio.
    positions
        "rotary" turns queries and keys besides what the tables tell, "none" does not.
    initialisation, depth_scaling
        how the paper's formula for the weights is read; projections that end a branch start smaller
        by the root of the number of branches.
    recompute, feed_forward_steps
        to save memory.
    backend
        of the attention: auto, reference, dense, cpu or triton.
    """

    shape: list[int] | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    patterns: list[str] | None = None
    feed_forward_ratio: int | None = None
    half_keys: bool | None = None
    dropout: float | None = None
    positions: Literal["none", "rotary"] | None = None
    initialisation: Reading | None = None
    depth_scaling: bool | None = None
    recompute: bool | None = None
    feed_forward_steps: int | None = None
    backend: str | None = None

    def apply(self, config: DensityConfig) -> DensityConfig:
        """Return a model with these changes."""
        changes = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        shape = changes.pop("shape", config.shape)
        return dataclasses.replace(
            config, shape=tuple(shape), stack=dataclasses.replace(config.stack, **changes)
        )


def train(
    *,
    corpus: CorpusName,
    preset: str,
    out: Path,
    data: list[Path] | None = None,
    source: SourceConfig = SourceConfig(),
    model: ModelChanges = ModelChanges(),
    config: FitConfig = FitConfig(),
) -> None:
    """Train a density model.

    Run again after an interruption, the same command goes on where it stopped.

    Parameters
    ----------
    corpus
        what the data are: text files, Enwik8, CIFAR-10, ImageNet-64, a folder of images, a folder
        or manifest of audio, or text that is generated.
    preset
        model and optimisation: tiny_text, tiny_image or tiny_audio, which train on two cores; the
        paper's cifar10, enwik8, imagenet64, music_65k, music_262k or music_1m.
    out
        gets model/ (best on valid), log.jsonl, tensorboard/ where that is installed, resume/ (the
        state of the run) and train.json (what was trained, on what).
    data
        the files of text; the file or folder of another corpus; none for generated text.
    """
    train_model(
        open_corpus(corpus, data, source), preset=preset, out=out, model=model, config=config
    )
    logger.info("the model is in %s", out / "model")


def train_model(
    corpus: Corpus,
    *,
    preset: str,
    out: Path,
    model: ModelChanges = ModelChanges(),
    config: FitConfig = FitConfig(),
) -> Artifact:
    """Train on a corpus; return the model that was best on valid, which stands in OUT/model.

    Raises
    ------
    RequestError
        if corpus, preset and settings do not fit together, or OUT holds another run.
    """
    chosen = preset_of(preset)
    shape = model.apply(chosen.model)
    check_shape(shape, corpus)
    recipe = config.recipe(chosen.recipe)
    plan = Plan(
        training=corpus.training(length=shape.context, seed=config.seed),
        valid=corpus.evaluation(
            "valid", length=shape.context, min_context=config.valid_min_context
        ),
        recipe=recipe,
        steps=total_steps(recipe, corpus, shape.context),
        config=config,
    )
    artifact = Artifact.of(
        new_model(shape, seed=config.seed), corpus, preset=preset, data=corpus.fingerprint()
    )
    run = _describe(corpus, preset, artifact, plan)
    claim(out, run)
    logger.info(
        "%s; %s parameters, %d steps of %d x %d bytes",
        corpus.summary(),
        f"{sum(p.numel() for p in artifact.model.parameters()):,}",
        plan.steps,
        recipe.batch,
        shape.context,
    )
    best = fit(artifact, plan, out=out, progress=sys.stderr.isatty())
    about = provenance(seed=config.seed, data={corpus.name: corpus.fingerprint()})
    write_json(out / "train.json", {"run": run, "best": dict(best.about), **about})
    return best


def new_model(config: DensityConfig, *, seed: int) -> DensityModel:
    """Return an untrained model, whatever random numbers were drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", seed))
        return DensityModel(config)


def _describe(corpus: Corpus, preset: str, artifact: Artifact, plan: Plan) -> dict[str, Any]:
    """Return all that a run depends on, as JSON."""
    settings = dataclasses.asdict(plan.config)
    return {
        "preset": preset,
        "model": dataclasses.asdict(artifact.model.config),
        "recipe": dataclasses.asdict(plan.recipe),
        "settings": {name: value for name, value in settings.items() if name not in _FREE},
        "steps": plan.steps,
        "corpus": corpus.fingerprint(),
    }
