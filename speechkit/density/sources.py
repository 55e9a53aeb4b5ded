"""Which bytes a verb reads: the readers of `speechkit.density` by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speechkit.density.audio import SAMPLE_RATE, AudioConfig, read_audio
from speechkit.density.corpus import Corpus
from speechkit.density.generator import generated_corpus
from speechkit.density.imagenet import read_imagenet64
from speechkit.density.images import ImageConfig, read_cifar10, read_images
from speechkit.density.text import read_enwik8, read_text
from speechkit.errors import RequestError
from speechkit.ranges import require

CorpusName = Literal["text", "enwik8", "cifar10", "imagenet64", "images", "audio", "generated"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How data are read; the published corpora have their own splits and sizes.

    Parameters
    ----------
    valid_fraction, test_fraction
        parts of text, images and audio that are set aside.
    image_size
        height and width to cut and scale pictures to.
    grey
        pictures in one channel.
    sample_rate
        of audio, in Hz.
    generated_bytes, generated_valid_bytes
        of generated text to train and to validate on.
    seed
        of all that is drawn: splits, generated text.
    cache
        the folder for decoded pictures and audio; below the user's cache folder by default.
    """

    valid_fraction: float = 0.1
    test_fraction: float = 0.0
    image_size: tuple[int, int] | None = None
    grey: bool = False
    sample_rate: int = SAMPLE_RATE
    generated_bytes: int = 2_000_000
    generated_valid_bytes: int = 100_000
    seed: int = 0
    cache: Path | None = None

    def __post_init__(self) -> None:
        require(self, "seed", at_least=0)


def open_corpus(
    name: CorpusName, data: Sequence[Path] | None, config: SourceConfig = SourceConfig()
) -> Corpus:
    """Read a corpus.

    Parameters
    ----------
    data
        the files of text, or the one file or folder of another corpus; none for generated text.

    Raises
    ------
    RequestError
        if there are too few or too many paths, and as the readers do.
    """
    paths = list(data or ())
    if name == "generated":
        _expect(not paths, name, paths, "no --data")
        return generated_corpus(
            train_bytes=config.generated_bytes,
            valid_bytes=config.generated_valid_bytes,
            seed=config.seed,
        )
    if name == "text":
        _expect(bool(paths), name, paths, "--data with one or more files")
        return read_text(
            paths, valid_fraction=config.valid_fraction, test_fraction=config.test_fraction
        )
    _expect(len(paths) == 1, name, paths, "--data with one path")
    return _open_one(name, paths[0], config)


def _open_one(name: CorpusName, path: Path, config: SourceConfig) -> Corpus:
    if name == "enwik8":
        return read_enwik8(path)
    if name == "cifar10":
        return read_cifar10(path, seed=config.seed, cache=config.cache)
    if name == "imagenet64":
        return read_imagenet64(path, cache=config.cache)
    if name == "images":
        return read_images(
            path,
            ImageConfig(
                size=config.image_size,
                grey=config.grey,
                valid_fraction=config.valid_fraction,
                test_fraction=config.test_fraction,
                seed=config.seed,
                cache=config.cache,
            ),
        )
    return read_audio(
        path,
        AudioConfig(
            sample_rate=config.sample_rate,
            valid_fraction=config.valid_fraction,
            test_fraction=config.test_fraction,
            seed=config.seed,
            cache=config.cache,
        ),
    )


def _expect(right: bool, name: str, paths: Sequence[Path], wanted: str) -> None:
    if not right:
        raise RequestError(f"corpus {name}: {len(paths)} paths of data; give {wanted}")
