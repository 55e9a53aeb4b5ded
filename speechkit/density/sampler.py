"""Drawing bytes from a density model, one after the other, over a cache of each layer.

A step costs what its patterns read: about as much at any position for local attention, rows / l for
strided attention of stride l.

Shapes: B sequences, P bytes of a prompt, T steps, d width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechkit.density.corpus import Bytes
from speechkit.density.model import DensityModel
from speechkit.errors import JobError, RequestError
from speechkit.kernels.decoding import DecodingCache
from speechkit.ranges import require
from speechkit.sparse_transformer import Block


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How a byte is drawn from its distribution.

    Parameters
    ----------
    temperature
        logits are divided by it; 1 is the model's own distribution, 0 always takes the likeliest.
    top_k
        only the so many likeliest bytes; 0 for all.
    seed
        of the draws; sequence i is the same however many are drawn beside it.
    """

    temperature: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, "seed", at_least=0)
        if not 0 <= self.temperature < float("inf"):
            raise RequestError(f"temperature {self.temperature}: give 0 or more, such as 1.0")
        if self.top_k < 0:
            raise RequestError(f"top_k {self.top_k}: give 1 or more, or 0 for all")

    def draw(self, logits_bv: Tensor, uniform_b: NDArray[np.float64]) -> Bytes:
        """Return a byte (B,) of each distribution, by numbers (B,) from [0, 1).

        Raises
        ------
        JobError
            if logits are NaN or infinite.
        """
        logits = logits_bv.double().cpu().numpy()
        if not np.isfinite(logits.max(axis=1)).all():
            raise JobError("the model gives NaN or infinity: its weights are damaged; train again")
        if self.temperature == 0:
            return logits.argmax(axis=1).astype(np.uint8)
        if 0 < self.top_k < logits.shape[1]:
            # in a stable order: of equal ones the first, as the likeliest is found
            ranks = (-logits).argsort(axis=1, kind="stable").argsort(axis=1)
            logits = np.where(ranks < self.top_k, logits, -np.inf)
        weights = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.temperature)
        reached = weights.cumsum(axis=1)
        return (reached <= uniform_b[:, None] * reached[:, -1:]).sum(axis=1).astype(np.uint8)


class Sampler:
    """A model that is fed byte by byte; it gives the logits of the next one.

    Parameters
    ----------
    model
        is put into evaluation mode.
    batch
        B, sequences side by side.
    precision
        gives the context in which the model runs; scores of attention are in float32 in any.
    """

    def __init__(
        self,
        model: DensityModel,
        *,
        batch: int,
        precision: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model.eval()
        self.batch = batch
        self.precision = precision
        self.position = -1
        self._blocks = cast(Sequence[Block], model.stack.blocks)
        self._caches: list[DecodingCache] = []

    @torch.no_grad()
    def start(self, prompt: Tensor) -> Tensor:
        """Take in a prompt (B, P), at once; return the logits (B, V) of the byte behind it."""
        self._check(prompt.shape[1])
        # the embedding shifts by one: a last byte that nobody reads makes room for the prompt's
        padded = torch.nn.functional.pad(prompt, (0, 1))
        self.position = prompt.shape[1]
        with self.precision():
            x = self.model.embedding(padded)
            turn = self.model.stack.turn(torch.arange(x.shape[1], device=x.device))
            self._caches = []
            for block in self._blocks:
                q, k, v = block.project(x, turn)
                cache = self._cache(block, q, v)
                cache.prefill(k, v)
                self._caches.append(cache)
                x = block.finish(x, block.attend(q, k, v))
            return self.model.logits(self.model.stack.norm(x[:, -1]))

    @torch.no_grad()
    def step(self, byte: Tensor) -> Tensor:
        """Take in the next byte (B,); return the logits (B, V) of the one behind it."""
        self._check(self.position + 1)
        here = torch.tensor([self.position], device=byte.device)
        self.position += 1
        with self.precision():
            x = self.model.embedding.embed(byte[:, None], here)
            turn = self.model.stack.turn(here + 1)
            for block, cache in zip(self._blocks, self._caches, strict=True):
                gathered = cache.append_and_attend(*block.project(x, turn))
                x = block.finish(x, gathered)
            return self.model.logits(self.model.stack.norm(x[:, 0]))

    def _cache(self, block: Block, q: Tensor, v: Tensor) -> DecodingCache:
        return DecodingCache(
            block.attention.pattern,
            batch=self.batch,
            heads=q.shape[1],
            head_size=q.shape[3],
            value_size=v.shape[3],
            dtype=q.dtype,
            device=q.device,
        )

    def _check(self, position: int) -> None:
        if position >= self.model.config.context:
            raise RequestError(
                f"byte {position + 1:,}: the model's context ends after "
                f"{self.model.config.context:,}; ask for fewer bytes or give a shorter prompt"
            )


def sample(
    model: DensityModel,
    *,
    count: int,
    length: int,
    prompt: Bytes | None = None,
    config: DrawConfig = DrawConfig(),
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Bytes]:
    """Yield one byte (B,) of each of ``count`` sequences after the other, ``length`` times.

    Parameters
    ----------
    prompt
        (P,) bytes to go on from, the same for all.

    Raises
    ------
    RequestError
        if prompt and length together are longer than the model's context, or the prompt has bytes
        that the model does not know.
    """
    known = np.zeros(0, dtype=np.uint8) if prompt is None else prompt
    if count < 1 or length < 1:
        raise RequestError(f"{count} sequences of {length} bytes: give 1 or more of both")
    context = model.config.context
    if len(known) + length > context:
        raise RequestError(
            f"a prompt of {len(known):,} bytes and {length:,} more: the model's context is "
            f"{context:,}; give a length of at most {max(0, context - len(known)):,}, or a shorter "
            "prompt"
        )
    vocabulary = model.config.vocabulary
    if len(known) and int(known.max()) >= vocabulary:
        raise RequestError(
            f"a prompt with byte {int(known.max())}: the model knows those below {vocabulary}"
        )
    place = next(model.parameters()).device
    generators = [np.random.default_rng([config.seed, index]) for index in range(count)]
    sampler = Sampler(model, batch=count, precision=precision)
    logits = sampler.start(torch.from_numpy(np.tile(known, (count, 1))).to(place))
    for drawn in range(length):
        byte = config.draw(logits, np.array([generator.random() for generator in generators]))
        yield byte
        if drawn + 1 < length:
            logits = sampler.step(torch.from_numpy(byte).to(place))
