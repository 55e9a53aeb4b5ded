"""speechkit: keyword spotting, speech recognition and active learning on shared foundations."""

from pathlib import Path

__version__ = "0.1.0"

# A checkout maps kws/ to speechkit.kws and so on when installed; this line makes the same
# names importable from a plain, uninstalled copy.
if (Path(__file__).parent.parent / "pyproject.toml").is_file():
    __path__.append(str(Path(__file__).parent.parent))
