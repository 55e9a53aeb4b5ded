"""A density model on disk: the model folder, and what kind of bytes its model knows."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError

from speechkit import checkpoint
from speechkit.density.corpus import Corpus, ImageShape, Kind
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.errors import JobError, RequestError

TASK = "density"
_LOADER = "speechkit.density.artifact:Artifact"


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """A model and the bytes that it was trained on.

    Parameters
    ----------
    kind, shape, sample_rate
        as of a `Corpus`.
    about
        where the model comes from, as JSON: preset, corpus and the fingerprint of its splits, step,
        bits per byte on valid.
    """

    model: DensityModel
    kind: Kind
    shape: ImageShape | None = None
    sample_rate: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: DensityModel, corpus: Corpus, **about: Any) -> Self:
        """Return the artifact of a model for the bytes of a corpus.

        Raises
        ------
        RequestError
            if the model is for images of another size.
        """
        check_shape(model.config, corpus)
        return cls(
            model=model,
            kind=corpus.kind,
            shape=corpus.shape,
            sample_rate=corpus.sample_rate,
            about={"corpus": corpus.name, **about},
        )

    def check(self, corpus: Corpus) -> None:
        """Raise a RequestError if a corpus has other bytes than the model knows."""
        for name in ("kind", "shape", "sample_rate"):
            own, given = getattr(self, name), getattr(corpus, name)
            if own != given:
                raise RequestError(
                    f"{corpus.name}: {name.replace('_', ' ')} {given}; the model was trained on "
                    f"{self.about.get('corpus', 'a corpus')} of {own}: give data like these"
                )

    def learnt_from_other_splits(self, corpus: Corpus) -> bool:
        """Whether a corpus of the name that the model knows has other bytes, or divides them so.

        What is scored may then be among what the model has learnt.
        """
        known = self.about.get("data")
        same_name = self.about.get("corpus") == corpus.name
        return known is not None and same_name and known != corpus.fingerprint()

    def save(self, folder: Path) -> None:
        """Write the model folder as a whole.

        Raises
        ------
        JobError
            if it cannot be written; a folder of that name stays as it was.
        """
        config = {
            "model": dataclasses.asdict(self.model.config),
            "kind": self.kind,
            "image_shape": dataclasses.astuple(self.shape) if self.shape else None,
            "sample_rate": self.sample_rate,
            "about": dict(self.about),
        }
        try:
            checkpoint.save_folder(
                folder,
                task=TASK,
                loader=_LOADER,
                weights=self.model.state_dict(),
                config=config,
                card=self._card(),
            )
        except (OSError, SafetensorError) as error:
            raise JobError(
                f"{folder}: the model cannot be written ({error}); an older one there is as it was"
            ) from error

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model folder; the model is in evaluation mode.

        Raises
        ------
        RequestError
            if the folder is none of a density model, or is damaged.
        """
        config = checkpoint.load_config(folder, task=TASK)
        weights = checkpoint.load_weights(folder)
        try:
            model = DensityModel(DensityConfig.of(config["model"]))
            model.load_state_dict(weights)
            return cls(
                model=model.eval(),
                kind=config["kind"],
                shape=ImageShape(*config["image_shape"]) if config["image_shape"] else None,
                sample_rate=config["sample_rate"],
                about=dict(config["about"]),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(
                f"{folder}: weights and configuration do not fit together ({reason}); the folder "
                "is damaged: train again"
            ) from error

    def _card(self) -> str:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        about = "\n".join(f"- {name}: {value}" for name, value in self.about.items())
        return (
            f"# Density model of {self.kind}\n\n"
            f"A Sparse Transformer of {size:,} parameters that predicts each byte from those before"
            f" it, over {self.model.config.context:,} bytes.\n\n{about}\n"
        )


def check_shape(config: DensityConfig, corpus: Corpus) -> None:
    """Raise a RequestError if images are of another size than a model's positions."""
    if corpus.shape and config.shape != dataclasses.astuple(corpus.shape):
        height, width, channels = dataclasses.astuple(corpus.shape)
        stride = width * channels
        raise RequestError(
            f"{corpus.name}: images of {corpus.shape}, the model is for "
            f"{'x'.join(map(str, config.shape))}; give other images, scale these, or give --model."
            f"shape [{height},{width},{channels}] with patterns for its rows: --model.patterns "
            f"[Local({stride}),Strided({stride})]"
        )
