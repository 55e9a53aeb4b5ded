"""``speechkit density sample``: text, pictures or sound drawn from a density model."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechkit.audio import load
from speechkit.density.artifact import Artifact
from speechkit.density.audio import SAMPLE_RATE, mulaw_encode, write_wav
from speechkit.density.corpus import Bytes
from speechkit.density.evaluate import autocast, device
from speechkit.density.optimisation import Precision
from speechkit.density.pictures import load_picture, write_grid, write_png
from speechkit.density.sampler import DrawConfig
from speechkit.density.sampler import sample as draw
from speechkit.errors import RequestError
from speechkit.files import atomic_path, write_json
from speechkit.reports import provenance

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(DrawConfig):
    """How samples are drawn.

    Parameters
    ----------
    count
        how many.
    length
        bytes of each behind the prompt; to the end of the model's context by default.
    prompt
        text to go on from, or a file: of text, a picture of the model's size, or audio.
    prompt_bytes
        the so many first bytes of the prompt; all of a text, half of the context of a picture and
        of audio by default.
    precision
        of matrix products: "32", "bf16" or, on a GPU, "16"; scores of attention are in float32.
    """

    count: int = 1
    length: int | None = None
    prompt: str = ""
    prompt_bytes: int | None = None
    precision: Precision = "32"


def sample(*, model: Path, out: Path, config: SampleConfig = SampleConfig()) -> None:
    """Draw samples from a density model.

    Parameters
    ----------
    model
        the folder that `speechkit density train` wrote as OUT/model.
    out
        gets sample-0.txt and so on, .png with all of them in samples.png, or .wav; samples.json
        says how they were drawn.
    """
    sample_with(Artifact.load(model), out=out, config=config, model=str(model))


def sample_with(
    artifact: Artifact,
    *,
    out: Path,
    config: SampleConfig = SampleConfig(),
    model: str = "",
) -> Bytes:
    """Draw samples (N, bytes), prompt included, and write them.

    Raises
    ------
    RequestError
        if the prompt cannot be used, or is too long together with the length.
    """
    prompt = _prompt(artifact, config)
    room = artifact.model.config.context - len(prompt)
    if artifact.shape and room < 1:
        raise RequestError(
            f"prompt_bytes {len(prompt)}: are all of a picture of {artifact.shape}, and nothing is "
            "left to draw; give fewer"
        )
    length = max(1, room) if config.length is None else config.length
    if artifact.shape and len(prompt) + length != artifact.shape.size:
        raise RequestError(
            f"length {length}: a picture of {artifact.shape} has {artifact.shape.size} bytes, "
            f"{len(prompt)} are the prompt; leave length out"
        )
    begun = time.monotonic()
    drawn = np.stack(_drawn(artifact, prompt, length, config), axis=1)
    seconds = time.monotonic() - begun
    whole = np.concatenate([np.tile(prompt, (config.count, 1)), drawn], axis=1)
    about = _about(config, model, len(prompt), length, seconds)
    write_json(out / "samples.json", {"files": _write(out, whole, artifact), **about})
    logger.info(
        "%d samples of %d bytes in %s, %.1f ms a byte", *whole.shape, out, 1e3 * seconds / length
    )
    return whole


def _drawn(artifact: Artifact, prompt: Bytes, length: int, config: SampleConfig) -> list[Bytes]:
    steps = draw(
        artifact.model.to(device()),
        count=config.count,
        length=length,
        prompt=prompt,
        config=config,
        precision=lambda: autocast(config.precision),
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        return list(progress.track(steps, total=length, description="sampling"))


def _prompt(artifact: Artifact, config: SampleConfig) -> Bytes:
    """Return the bytes of a prompt."""
    path = Path(config.prompt)
    wanted = config.prompt_bytes
    if not config.prompt:
        found = np.zeros(0, dtype=np.uint8)
    elif artifact.kind == "text":
        raw = path.read_bytes() if _is_file(path) else config.prompt.encode()
        found = np.frombuffer(raw, dtype=np.uint8)
    elif not _is_file(path):
        raise RequestError(f"prompt {config.prompt}: no such file; give one of {artifact.kind}")
    else:
        found = _decoded(path, artifact)
        half = artifact.model.config.context // 2
        wanted = min(half, len(found)) if wanted is None else wanted
    if wanted is not None and not 0 <= wanted <= len(found):
        raise RequestError(f"prompt_bytes {wanted}: the prompt has {len(found)}; give 0 to that")
    return found[:wanted]


def _decoded(path: Path, artifact: Artifact) -> Bytes:
    """Return the bytes of a picture or of audio."""
    shape = artifact.shape
    if shape is None:
        return mulaw_encode(load(path, sample_rate=artifact.sample_rate or SAMPLE_RATE))
    pixels = load_picture(path, size=(shape.height, shape.width), grey=shape.channels == 1)
    return pixels.reshape(-1)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text too long for a name
        return False


def _write(out: Path, samples: Bytes, artifact: Artifact) -> list[str]:
    """Return the names of the samples' files, beside which there may be others of earlier calls."""
    out.mkdir(parents=True, exist_ok=True)
    suffix = "png" if artifact.shape else "wav" if artifact.kind == "audio" else "txt"
    names = [f"sample-{index}.{suffix}" for index in range(len(samples))]
    for name, one in zip(names, samples, strict=True):
        if artifact.shape:
            write_png(out / name, one, artifact.shape)
        elif artifact.kind == "audio":
            write_wav(out / name, one, sample_rate=artifact.sample_rate or SAMPLE_RATE)
        else:
            with atomic_path(out / name) as temporary:
                temporary.write_bytes(one.tobytes())
    if artifact.shape:
        write_grid(out / "samples.png", samples, artifact.shape)
    return names


def _about(
    config: SampleConfig, model: str, prompt: int, length: int, seconds: float
) -> dict[str, Any]:
    return {
        "model": model,
        "count": config.count,
        "prompt_bytes": prompt,
        "length": length,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "precision": config.precision,
        "seconds_per_byte": seconds / length,
        **provenance(seed=config.seed, data={}),
    }
