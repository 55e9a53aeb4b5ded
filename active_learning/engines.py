"""Who scores the blocks of a pool: this process, the processes of torchrun, or actors of Ray.

In all of them a block is scored by the same object and committed by whoever scored it, so the
parts have the same bytes, and what was committed before a kill is not done again.
"""

import importlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
from lhotse import CutSet
from lhotse.cut import Cut

from speechkit.active_learning.blocks import Block, commit, pending, write_table
from speechkit.active_learning.jsonl import Row
from speechkit.errors import JobError, RequestError

logger = logging.getLogger(__name__)

_FILES_PER_ACTOR = 4

EngineName = Literal["local", "torchrun", "ray"]
Score = Callable[[Sequence[Cut]], list[Row]]


class Engine(Protocol):
    """Scores blocks; returns, in every process, when all of them are committed."""

    @property
    def leads(self) -> bool:
        """Whether this process does what is to be done once."""

    def run(
        self, score: Score, blocks: Sequence[Block], *, cuts: Mapping[str, Cut], folder: Path
    ) -> None:
        """Score the blocks that have no part in the folder yet."""

    def wait(self) -> None:
        """Wait for the other processes."""


def build(name: EngineName, *, actors: int = 1, stall_s: float = 1800.0) -> Engine:
    """Return an engine by its name."""
    if name == "local":
        return Local()
    if name == "torchrun":
        return Torchrun.join()
    if name == "ray":
        return Ray(actors=actors, stall_s=stall_s)
    raise RequestError(f"engine {name!r}: there are local, torchrun, ray")


@dataclass(frozen=True)
class Local:
    """One block after the other in this process."""

    leads: bool = True

    def run(
        self, score: Score, blocks: Sequence[Block], *, cuts: Mapping[str, Cut], folder: Path
    ) -> None:
        """Score the blocks that have no part in the folder yet."""
        left = pending(blocks, folder)
        if len(left) < len(blocks):
            logger.info(
                "%s: %d of %d blocks are done", folder, len(blocks) - len(left), len(blocks)
            )
        _work(score, left, cuts, folder)

    def wait(self) -> None:
        """There is nobody to wait for."""


@dataclass(frozen=True)
class Torchrun:
    """Every process takes each n-th of the blocks that are left."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> "Torchrun":
        """Meet the other processes that torchrun started.

        Raises
        ------
        RequestError
            if torchrun did not start this one.
        """
        import torch.distributed as dist

        if "RANK" not in os.environ:
            raise RequestError(
                "engine torchrun: was not started by it; run "
                "`torchrun --nproc-per-node N -m speechkit al score ... --engine torchrun`"
            )
        if not dist.is_initialized():
            # a shard may take days longer than another
            dist.init_process_group("gloo", timeout=timedelta(days=30))
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def run(
        self, score: Score, blocks: Sequence[Block], *, cuts: Mapping[str, Cut], folder: Path
    ) -> None:
        """Score the blocks that have no part in the folder yet."""
        import torch.distributed as dist

        # decided in one place, since parts appear while others still look
        left: list[Any] = [self._left(blocks, folder)]
        dist.broadcast_object_list(left, src=0)
        if isinstance(left[0], Exception):
            raise left[0]
        mine = set(left[0][self.rank :: self.count])
        _work(score, [block for block in blocks if block.number in mine], cuts, folder)
        self.wait()

    def wait(self) -> None:
        """Wait for the other processes."""
        import torch.distributed as dist

        dist.barrier()

    def _left(self, blocks: Sequence[Block], folder: Path) -> list[int] | Exception | None:
        if not self.leads:
            return None
        try:
            return [block.number for block in pending(blocks, folder)]
        except RequestError as error:
            return error


@dataclass(frozen=True)
class Ray:
    """Actors of Ray Data, on one machine or on a cluster that shares the folder.

    A row is a block; its actor commits the part and hands on a receipt. Ray's own checkpoint spares
    a run that goes on the blocks whose receipts were written; the parts decide where the two
    differ, because Ray knows nothing of a part that was damaged or deleted since.

    Attributes
    ----------
    actors
        copies of the model.
    stall_s
        seconds without a new part after which the job is given up: Ray may wait for ever for
        resources that nobody has.
    """

    actors: int = 1
    stall_s: float = 1800.0
    leads: bool = True

    def run(
        self, score: Score, blocks: Sequence[Block], *, cuts: Mapping[str, Cut], folder: Path
    ) -> None:
        """Score the blocks that have no part in the folder yet."""
        left = pending(blocks, folder)
        if not left:
            return
        work = folder / ".ray"
        _forget_stale(work, {block.part for block in left})
        todo = work / "todo"
        shutil.rmtree(todo, ignore_errors=True)  # of a run with more actors
        # files are what Ray cuts its work by
        for number in range(min(len(blocks), self.actors * _FILES_PER_ACTOR)):
            part = blocks[number :: self.actors * _FILES_PER_ACTOR]
            write_table(_todo(part, cuts), todo / f"{number:04d}.parquet")
        logger.info("%s: %d blocks for %d actors of Ray", folder, len(left), self.actors)
        self._start()
        _within(lambda: self._run(score, todo, folder), folder, self.stall_s)
        if pending(blocks, folder):
            raise JobError(f"{folder}: Ray ended before all blocks were scored; run again to go on")
        shutil.rmtree(work)

    def wait(self) -> None:
        """There is nobody to wait for: the actors have ended."""

    def _start(self) -> None:
        ray = _ray()
        if ray.is_initialized():
            return
        quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
        if cluster := os.environ.get("RAY_ADDRESS"):
            try:
                ray.init(**quiet)
            except (ValueError, ConnectionError) as error:
                raise JobError(f"RAY_ADDRESS {cluster}: no cluster of Ray ({error})") from error
            return
        # logical CPUs beyond the actors', without which Ray's own tasks would never run
        cpus = max(4, self.actors + 3)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)

    def _run(self, score: Score, todo: Path, folder: Path) -> None:
        ray = _ray()
        context = ray.data.DataContext.get_current()
        names = ("checkpoint_config", "enable_progress_bars", "target_max_block_size")
        before = {name: getattr(context, name) for name in names}
        context.enable_progress_bars = False
        # a row of its own each: Ray shares work out, and checkpoints it, by these
        context.target_max_block_size = 1
        context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
            id_column="part",
            checkpoint_path=str((todo.parent / "checkpoint").absolute()),
            delete_checkpoint_on_success=False,
        )
        try:
            files = sorted(str(path.absolute()) for path in todo.glob("*.parquet"))
            rows = ray.data.read_parquet(files, override_num_blocks=len(files))
            receipts = rows.map_batches(
                _Actor,
                fn_constructor_kwargs={"score": score, "folder": folder.absolute()},
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=self.actors),
                num_cpus=1,
            )
            receipts.write_parquet(str((todo.parent / "receipts").absolute()))
        finally:
            for name, value in before.items():
                setattr(context, name, value)


class _Actor:
    """Scores the blocks that Ray hands it; their parts are what counts."""

    def __init__(self, score: Score, folder: Path) -> None:
        self._score = score
        self._folder = folder

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        for number, text in zip(batch["number"], batch["cuts"], strict=True):
            cuts = {cut.id: cut for cut in CutSet.from_dicts(json.loads(text))}
            blocks = pending([Block(int(number), tuple(cuts))], self._folder)
            _work(self._score, blocks, cuts, self._folder)
        return {"part": batch["part"]}


def _work(score: Score, blocks: Sequence[Block], cuts: Mapping[str, Cut], folder: Path) -> None:
    for done, block in enumerate(blocks, start=1):
        commit(block, score([cuts[id_] for id_ in block.ids]), folder)
        logger.info("%s: %s, %d of %d", folder, block.part, done, len(blocks))


def _todo(blocks: Sequence[Block], cuts: Mapping[str, Cut]) -> pa.Table:
    rows = [
        {
            "part": block.part,
            "number": block.number,
            "cuts": json.dumps([cuts[id_].to_dict() for id_ in block.ids]),
        }
        for block in blocks
    ]
    return pa.Table.from_pylist(rows)


def _forget_stale(work: Path, left: set[str]) -> None:
    """Delete Ray's checkpoint if it takes a block for done that is to be scored."""
    import pyarrow.parquet as pq

    for path in sorted((work / "checkpoint").rglob("*.parquet")):
        try:
            known = set(pq.read_table(path, columns=["part"])["part"].to_pylist())
        except (pa.ArrowException, OSError):
            known = left
        if known & left:
            shutil.rmtree(work / "checkpoint")
            return


def _within(job: Callable[[], None], folder: Path, stall_s: float) -> None:
    """Run a job in a thread; give it up when no part appears for too long.

    Raises
    ------
    JobError
        if it stalls, or fails.
    """
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            job()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    parts, since = 0, time.monotonic()
    while thread.is_alive():
        thread.join(timeout=0.2)
        count = sum(1 for _ in folder.glob("part-*.parquet"))
        if count != parts:
            parts, since = count, time.monotonic()
        if time.monotonic() - since > stall_s:
            _ray().shutdown()
            raise JobError(
                f"{folder}: no block was scored for {stall_s:g} s; give Ray more CPUs or fewer "
                "actors and run again to go on"
            )
    if failures:
        text = str(failures[0]).strip().splitlines()
        reason = text[-1] if text else type(failures[0]).__name__
        raise JobError(f"{folder}: Ray failed ({reason}); run again to go on") from failures[0]


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data.checkpoint")
    except ImportError as error:
        raise RequestError(
            f"engine ray: cannot be imported ({error}); pip install 'sparse-speechkit[ray]'"
        ) from error
    return ray
