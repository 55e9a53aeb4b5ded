"""What every training run shares: a quiet trainer, a log of lines, and a state to go on from.

A run's folder holds ``log.jsonl``, a JSON object a line with the ``step`` that it speaks of;
``tensorboard/`` where that is installed; and ``resume/last.ckpt``, the state, always whole.
"""

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from speechkit.errors import JobError, RequestError
from speechkit.files import locked, write_text

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def make_trainer(
    out: Path, keeper: Callback, *, precision: str = "32", progress: bool = False, **settings: Any
) -> lightning.Trainer:
    """Return a trainer that leaves measuring, saving and stopping to ``keeper``.

    Parameters
    ----------
    precision
        "32", "bf16" or "16": of the arithmetic; weights stay float32.
    settings
        further ones of `lightning.Trainer`.
    """
    # Lightning announces at INFO what every run shares
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return lightning.Trainer(
        callbacks=[keeper],
        precision=_PRECISIONS[precision],
        logger=_tensorboard(out),
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=out,
        use_distributed_sampler=False,
        # not what else there is: losses and scores take float64, which Apple's GPUs lack
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        **settings,
    )


def _tensorboard(out: Path) -> Any:
    """Return a logger, or False where TensorBoard is not installed."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(out, name="tensorboard", version="")
    except ModuleNotFoundError:
        return False


def run(
    trainer: lightning.Trainer, training: lightning.LightningModule, batches: Any, *, out: Path
) -> None:
    """Train, from the state in ``OUT/resume`` on where there is one.

    Raises
    ------
    RequestError
        if another process is training in ``out``, or the state is damaged or of another version.
    """
    last = out / "resume" / "last.ckpt"
    with _alone(trainer, last.parent), warnings.catch_warnings():
        # Lightning's, about torch and about loaders: nothing that a user could act on
        warnings.simplefilter("ignore")
        resumed = last if last.is_file() else None
        if resumed:
            _require_fit(resumed, training)
        trainer.fit(training, batches, ckpt_path=resumed, weights_only=True)


def _require_fit(state: Path, training: lightning.LightningModule) -> None:
    """Refuse a state that cannot be read or is of other weights, before anything is loaded."""
    advice = f"remove {state.parent} to begin anew"
    try:
        # mapped, not read: of a large model only the names and shapes are of use here
        stored = torch.load(state, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
        found = {name: tuple(weight.shape) for name, weight in stored.items()}
    except Exception as error:
        # torch raises many unrelated types here, all of which mean the same to a caller
        raise RequestError(f"{state}: cannot be read as the state of a run; {advice}") from error
    wanted = {name: tuple(weight.shape) for name, weight in training.state_dict().items()}
    if odd := sorted(name for name, _ in wanted.items() ^ found.items()):
        raise RequestError(
            f"{state}: does not fit this version of speechkit ({odd[0]}); {advice}, or go on with "
            "the version that wrote it"
        )


@contextmanager
def _alone(trainer: lightning.Trainer, folder: Path) -> Iterator[None]:
    """Keep a second start of the same run out; a run's own processes are one."""
    if not trainer.is_global_zero:
        yield
        return
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder, wait=False))
        except BlockingIOError as error:
            raise RequestError(
                f"{folder.parent}: another process is training here; wait for it, or end it"
            ) from error
        yield


def write_state(trainer: lightning.Trainer, out: Path) -> None:
    """Replace the state in ``OUT/resume``; all processes of a run call it.

    Raises
    ------
    JobError
        if it cannot be written, a full disk say; the older one stays as it was.
    """
    folder = out / "resume"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / ".last.ckpt"
    try:
        trainer.save_checkpoint(fresh)
        if trainer.is_global_zero:
            os.replace(fresh, folder / "last.ckpt")
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise JobError(
            f"{folder}: the state of the run cannot be written ({error.strerror or error}); "
            "the older one there is as it was: free space and run the same command again"
        ) from error


def write_line(trainer: lightning.Trainer, out: Path, line: dict[str, Any]) -> None:
    """Append a line to the log, and its numbers to TensorBoard's, once for all processes."""
    if not trainer.is_global_zero:
        return
    if trainer.logger is not None:
        numbers = {name: value for name, value in line.items() if value is not None}
        trainer.logger.log_metrics(numbers, step=line["step"])
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def rewind_log(trainer: lightning.Trainer, out: Path) -> None:
    """Drop the lines behind the state that a run goes on from: it will write them again."""
    path = out / "log.jsonl"
    if not trainer.is_global_zero or not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
    write_text(path, "".join(f"{line}\n" for line in kept))
