"""The paper's density models, and small ones for two cores: sizes and how they are trained.

What the paper (Child et al. 2019, section 7) does not give is ours and marked so: patterns' ratio
and batch follow the authors' later code where that has them; learning rates of text and audio
fall with the width as those that are known do. The music models are given by length, stride near
its root, and millions of parameters alone: 48 layers of 512 make 152M; for 25M and 3M we take 32
and 4 layers of 256, whose blocks and byte tables have 25.4M and 3.3M (25.7M and 3.8M with the
position tables). The tiny ones differ from the paper in two things that a short run gains from:
rotary positions (text and audio) and a higher rate for tables and output layer.
"""

from dataclasses import dataclass

from speechkit.density.model import DensityConfig
from speechkit.errors import RequestError
from speechkit.sparse_transformer import StackConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a density model is trained.

    Parameters
    ----------
    learning_rate, batch
        the largest rate, and sequences in an optimiser step over all devices.
    table_rate
        rate of what is as wide as the vocabulary or the context, in and out, over the others': see
        `speechkit.density.optimisation.parameter_groups`; 1 in the paper.
    epochs, steps
        how long, by either one; the cosine falls to zero at the end.
    warmup_steps
        linear rise of the rate.
    weight_decay
        decoupled, on tensors of more than one axis.
    clip
        bound on the norm of all gradients together.
    betas
        of Adam.
    ema
        decay of the average of weights that is evaluated; 0 for none, as in the paper.
    """

    learning_rate: float
    batch: int
    epochs: int | None = None
    steps: int | None = None
    warmup_steps: int = 5000
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.0
    table_rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and its training."""

    model: DensityConfig
    recipe: Recipe


def _strided(stride: int, *, local: int = 1) -> tuple[str, ...]:
    """Return a cycle of one strided layer behind ``local`` local ones."""
    return (*(f"Local({stride})",) * local, f"Strided({stride})")


def _music(side: int, *, layers: int, width: int, heads: int, learning_rate: float) -> Preset:
    stack = StackConfig(
        layers=layers,
        width=width,
        heads=heads,
        patterns=_strided(side),
        recompute=True,
        feed_forward_steps=8192,
    )
    return Preset(
        model=DensityConfig(stack=stack, shape=(side, side)),
        recipe=Recipe(learning_rate=learning_rate, batch=8, epochs=120),
    )


_CIFAR10 = Preset(
    model=DensityConfig(
        shape=(32, 32, 3),
        stack=StackConfig(
            layers=128,
            width=256,
            heads=2,
            # the later code's order: strided first
            patterns=("Strided(96)", "Local(96)", "Local(96)", "Local(96)"),
            feed_forward_ratio=2,
            half_keys=True,
            dropout=0.25,
            recompute=True,
        ),
    ),
    recipe=Recipe(learning_rate=3.5e-4, batch=16, epochs=120),
)

_ENWIK8 = Preset(
    model=DensityConfig(
        shape=(96, 128),
        stack=StackConfig(
            layers=30,
            width=512,
            heads=8,
            patterns=("Fixed(128, 32, True)",),
            dropout=0.4,
            recompute=True,
        ),
    ),
    recipe=Recipe(learning_rate=2e-4, batch=16, epochs=80),
)

_IMAGENET64 = Preset(
    model=DensityConfig(
        shape=(64, 64, 3),
        stack=StackConfig(
            layers=48,
            width=512,
            heads=16,
            patterns=("Local(128)", "Strided(128)", "Local(128)", "Local(128)"),
            dropout=0.01,
            recompute=True,
        ),
    ),
    recipe=Recipe(learning_rate=1.5e-4, batch=128, epochs=70),
)

_TINY_TEXT = Preset(
    model=DensityConfig(
        shape=(32, 32),
        stack=StackConfig(
            layers=4, width=128, heads=4, patterns=("Fixed(32, 8, True)",), positions="rotary"
        ),
    ),
    recipe=Recipe(learning_rate=2e-3, batch=2, steps=2000, warmup_steps=100, table_rate=20.0),
)

_TINY_IMAGE = Preset(
    model=DensityConfig(
        shape=(8, 8, 1),
        stack=StackConfig(layers=4, width=128, heads=4, patterns=_strided(8), dropout=0.1),
    ),
    recipe=Recipe(learning_rate=1e-3, batch=32, steps=2000, warmup_steps=100, table_rate=20.0),
)

_TINY_AUDIO = Preset(
    model=DensityConfig(
        shape=(128, 128),
        stack=StackConfig(layers=4, width=64, heads=2, patterns=_strided(128), positions="rotary"),
    ),
    recipe=Recipe(learning_rate=2e-3, batch=1, steps=500, warmup_steps=50, table_rate=20.0),
)

PRESETS = {
    "cifar10": _CIFAR10,
    "enwik8": _ENWIK8,
    "imagenet64": _IMAGENET64,
    "music_65k": _music(256, layers=48, width=512, heads=16, learning_rate=1.5e-4),
    "music_262k": _music(512, layers=32, width=256, heads=8, learning_rate=3.5e-4),
    "music_1m": _music(1024, layers=4, width=256, heads=8, learning_rate=3.5e-4),
    "tiny_text": _TINY_TEXT,
    "tiny_image": _TINY_IMAGE,
    "tiny_audio": _TINY_AUDIO,
}


def preset(name: str) -> Preset:
    """Return a preset.

    Raises
    ------
    RequestError
        If there is none of that name.
    """
    if name not in PRESETS:
        raise RequestError(f"preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
