"""The pictures of the patterns in README.md; drawn by ``python -m speechkit.kernels.pictures``.

One PNG a pattern: queries down, keys across; dark where a query sees a key when causal, light where
only when bidirectional.
"""

from pathlib import Path

from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Fixed,
    Local,
    Merged,
    OwnBlock,
    Pattern,
    Strided,
)

FOLDER = Path(__file__).with_name("pictures")
# divides no stride below: the last block is partial
LENGTH = 45
_LAYOUT = ((1, 0, 0, 0), (0, 1, 0, 1), (1, 1, 1, 0), (0, 0, 1, 1))
PATTERNS: dict[str, Pattern] = {
    "dense": Dense(),
    "local": Local(8),
    "strided": Strided(8),
    "dilated": Dilated(3, 4),
    "own_block": OwnBlock(8),
    "columns": Columns(8, 2),
    "fixed": Fixed(8, 2),
    "local_strided": Merged(Local(8), Strided(8)),
    "blocks": Blocks(_LAYOUT, 12),
}


def draw(folder: Path = FOLDER) -> list[Path]:
    """Write the pictures into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(folder / f"{name}.png", pattern) for name, pattern in PATTERNS.items()]


def draw_heads(path: Path = FOLDER / "spread_heads.png", heads: int = 4) -> Path:
    """Write the picture of columns that spread over heads, side by side."""
    from matplotlib.figure import Figure

    pattern = Columns(8, 2, spread_heads=True)
    figure = Figure(figsize=(2.0 * heads, 2.1), layout="constrained")
    for head, axes in enumerate(figure.subplots(1, heads)):
        axes.imshow(
            _shades(pattern, heads)[head], cmap="Blues", vmin=0, vmax=2, interpolation="nearest"
        )
        axes.set(title=f"head {head}", xticks=[], yticks=[])
    figure.savefig(path, dpi=70)
    return path


def _draw(path: Path, pattern: Pattern) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(_shades(pattern, 1)[0], cmap="Blues", vmin=0, vmax=2, interpolation="nearest")
    axes.set(xlabel="key", ylabel="query", xticks=[0, 8, 16, 24, 32, 40], yticks=[])
    figure.savefig(path, dpi=70)
    return path


def _shades(pattern: Pattern, heads: int) -> list[list[list[int]]]:
    """Return 2 for pairs of the causal pattern, 1 for others of the bidirectional one, else 0."""
    causal, both = (pattern.mask(LENGTH, causal=c, heads=heads).int() for c in (True, False))
    shades: list[list[list[int]]] = (causal + both).tolist()
    return shades


if __name__ == "__main__":
    draw()
    draw_heads()
