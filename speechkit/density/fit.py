"""Training a density model: the loop, what is written, and how a run is resumed.

A step's windows depend on the seed and the step's number alone, what dropout draws on these and the
process; so an interrupted run ends with the same weights as one that was not, and processes that
share a batch see what one alone would. A run is divided into intervals; behind each the model is
measured on valid, the best is written, and the state of the run as a whole.
"""

import copy
import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset, Sampler

from speechkit.density.artifact import Artifact
from speechkit.density.corpus import EvaluationWindows, TrainingWindows
from speechkit.density.model import DensityModel
from speechkit.density.optimisation import (
    FitConfig,
    average_into,
    norm_of,
    parameter_groups,
    rate,
)
from speechkit.density.presets import Recipe
from speechkit.density.scoring import score, share, spread, total
from speechkit.errors import JobError, RequestError, out_of_memory_says
from speechkit.seeds import seed_of
from speechkit.training import (
    make_trainer,
    rewind_log,
    run,
    write_line,
    write_state,
)

logger = logging.getLogger(__name__)

_BITS = 1 / math.log(2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a run goes through.

    Parameters
    ----------
    training, valid
        the windows.
    recipe, steps
        optimisation, and how many steps there are.
    """

    training: TrainingWindows
    valid: EvaluationWindows
    recipe: Recipe
    steps: int
    config: FitConfig


def fit(artifact: Artifact, plan: Plan, *, out: Path, progress: bool = False) -> Artifact:
    """Train; return the model that was best on valid, which stands in ``OUT/model`` too.

    Parameters
    ----------
    out
        also gets ``log.jsonl``, ``tensorboard/`` where that is installed, and
        ``resume/last.ckpt``, from which a run that was interrupted goes on.

    Raises
    ------
    JobError
        if memory or the disk runs out or the weights diverge, with what to do.
    SystemExit
        in all processes but the first of several that share the training.
    """
    keeper = _Keeper(artifact, plan, out)
    trainer = _trainer(plan, out, keeper, progress=progress)
    part = plan.config.part(plan.recipe.batch, trainer.world_size)
    loader = DataLoader(
        _Batches(plan.training, part), batch_size=None, sampler=_Places(plan, trainer)
    )
    with _explained(plan, part):
        run(trainer, _Training(artifact.model, plan), loader, out=out)
    if not trainer.is_global_zero:
        # this process had no other task than its share of the training
        raise SystemExit(0)
    return Artifact.load(out / "model")


def _trainer(plan: Plan, out: Path, keeper: Callback, *, progress: bool) -> lightning.Trainer:
    config = plan.config
    if config.precision == "16" and not torch.cuda.is_available():
        raise RequestError("precision 16: needs a GPU; give bf16 or 32")
    strategy: Any = config.strategy
    if strategy == "fsdp":
        strategy = ModelParallelStrategy(
            data_parallel_size=config.devices * config.nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    return make_trainer(
        out,
        keeper,
        precision=config.precision,
        progress=progress,
        # not by max_steps, with which Lightning does not resume between epochs
        max_epochs=math.ceil(plan.steps / config.validate_every),
        accumulate_grad_batches=config.accumulate,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=strategy,
    )


def _explained(plan: Plan, part: int) -> AbstractContextManager[None]:
    """Say what a user can do where memory runs out."""
    return out_of_memory_says(
        f"memory ran out with {part} sequences of {plan.training.length:,} bytes at once: set "
        "--model.recompute, give more --accumulate, a smaller --batch or a smaller model"
    )


@dataclass(frozen=True)
class _Place:
    """Where a batch stands in a run: its number, the process that asks, whether it ends a step."""

    number: int
    rank: int
    world: int
    ends_step: bool


class _Batches(Dataset[tuple[_Place, Tensor]]):
    """The batches (B, n) of a run."""

    def __init__(self, windows: TrainingWindows, size: int) -> None:
        self.windows = windows
        self.size = size

    def __getitem__(self, place: _Place) -> tuple[_Place, Tensor]:
        batch = self.windows.batch(place.number, self.size, rank=place.rank, world=place.world)
        return place, torch.from_numpy(batch)


class _Places(Sampler[_Place]):
    """The places of an interval, which go on from the steps that the run has done."""

    def __init__(self, plan: Plan, trainer: lightning.Trainer) -> None:
        self.plan = plan
        self.trainer = trainer

    def __iter__(self) -> Iterator[_Place]:
        config, done = self.plan.config, self.trainer.global_step
        stop = min(self.plan.steps, done + config.validate_every)
        rank, world, parts = self.trainer.global_rank, self.trainer.world_size, config.accumulate
        for number in range(done * parts, stop * parts):
            yield _Place(number, rank, world, ends_step=(number + 1) % parts == 0)

    def __len__(self) -> int:
        return min(self.plan.steps, self.plan.config.validate_every) * self.plan.config.accumulate


class _Training(lightning.LightningModule):  # type: ignore[misc]
    """Loss and optimiser; the model itself knows nothing of training."""

    def __init__(self, model: DensityModel, plan: Plan) -> None:
        super().__init__()
        self.model = model
        self.averaged = copy.deepcopy(model).requires_grad_(False) if plan.recipe.ema else None
        self.plan = plan
        self.losses: list[Tensor] = []
        self.norm = 0.0
        self.skipped = 0

    @property
    def measured(self) -> DensityModel:
        """The weights that count: their average, if there is one."""
        return self.averaged or self.model

    def configure_model(self) -> None:
        if self.plan.config.strategy == "fsdp":
            for model in filter(None, (self.model, self.averaged)):
                _divide(model, self.device_mesh["data_parallel"])

    def transfer_batch_to_device(
        self, batch: tuple[_Place, Tensor], device: torch.device, dataloader_idx: int
    ) -> tuple[_Place, Tensor]:
        return batch[0], batch[1].to(device)

    def training_step(self, batch: tuple[_Place, Tensor], index: int) -> Tensor:
        place, tokens = batch
        torch.manual_seed(
            seed_of("dropout", self.plan.config.seed, place.number, place.rank, place.world)
        )
        loss = self.model.loss(tokens)
        self.losses.append(loss.detach())
        self.log("bits_per_byte", loss.detach() * _BITS, prog_bar=True, logger=False)
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip; a step whose gradients are not finite changes nothing, and is counted."""
        self.norm = norm_of(clip_grad_norm_(self.model.parameters(), self.plan.recipe.clip))
        if not math.isfinite(self.norm):
            self.skipped += 1
            optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: tuple[_Place, Tensor], index: int) -> None:
        if self.averaged is not None and batch[0].ends_step:
            average_into(
                self.averaged, self.model, decay=self.plan.recipe.ema, step=self.global_step
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["skipped_steps"] = self.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped = checkpoint["skipped_steps"]

    def configure_optimizers(self) -> dict[str, Any]:
        recipe = self.plan.recipe
        optimizer = torch.optim.AdamW(
            parameter_groups(
                self.model,
                rate=recipe.learning_rate,
                decay=recipe.weight_decay,
                table_rate=recipe.table_rate,
            ),
            betas=recipe.betas,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: rate(step, warmup=recipe.warmup_steps, steps=self.plan.steps),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _divide(model: DensityModel, mesh: Any) -> None:
    """Leave each process a shard of every block's weights."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.stack.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in ("loss", "nats"):
        register_fsdp_forward_method(model, name)


class _Keeper(Callback):  # type: ignore[misc]
    """Between steps: log. Between intervals: measure, keep the best, write the state."""

    def __init__(self, artifact: Artifact, plan: Plan, out: Path) -> None:
        self.artifact = artifact
        self.plan = plan
        self.out = out
        self.best = float("inf")
        self.before_s = 0.0
        self.begun = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return self.before_s + time.monotonic() - self.begun

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "elapsed_s": self.elapsed_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.before_s = state["best"], state["elapsed_s"]

    def on_train_start(self, trainer: lightning.Trainer, training: Any) -> None:
        self.begun = time.monotonic()
        rewind_log(trainer, self.out)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        training: Any,
        outputs: Any,
        batch: tuple[_Place, Tensor],
        index: int,
    ) -> None:
        step = trainer.global_step
        if not batch[0].ends_step or step % self.plan.config.log_every:
            return
        loss = trainer.strategy.reduce(torch.stack(training.losses).mean())
        training.losses.clear()
        write_line(
            trainer,
            self.out,
            {
                "step": step,
                "bits_per_byte": round(float(loss) * _BITS, 6),
                "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
                "gradient_norm": training.norm if math.isfinite(training.norm) else None,
                "skipped_steps": training.skipped,
                "elapsed_s": round(self.elapsed_s, 2),
            },
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, training: Any) -> None:
        valid = self._measure(trainer, training.measured)
        if not math.isfinite(valid):
            raise JobError(
                f"step {trainer.global_step}: {valid} bits per byte of valid: the weights are no "
                "numbers any more; give a smaller --learning-rate or more --warmup-steps, and "
                "another --out"
            )
        # a resumed run has no part of an interval behind it
        training.losses.clear()
        better = valid < self.best
        self.best = min(self.best, valid)
        line = {
            "step": trainer.global_step,
            "valid_bits_per_byte": round(valid, 6),
            "best_valid_bits_per_byte": round(self.best, 6),
            "elapsed_s": round(self.elapsed_s, 2),
        }
        write_line(trainer, self.out, line)
        if trainer.is_global_zero:
            logger.info(
                "step %(step)d: valid %(valid_bits_per_byte).4f bits per byte "
                "(best %(best_valid_bits_per_byte).4f), %(elapsed_s).0f s",
                line,
            )
        if better:
            self._save(trainer, training.measured, valid)
        write_state(trainer, self.out)

    def _measure(self, trainer: lightning.Trainer, model: DensityModel) -> float:
        config = self.plan.config
        chosen = spread(self.plan.valid, config.valid_windows)
        own = share(chosen, rank=trainer.global_rank, world=trainer.world_size)
        size = config.part(self.plan.recipe.batch, trainer.world_size)
        model.eval()
        found = total(
            list(
                score(
                    model,
                    self.plan.valid,
                    own,
                    batch=size,
                    precision=trainer.precision_plugin.forward_context,
                )
            )
        )
        model.train()
        sums = torch.tensor([found.nats.sum(), found.bytes], dtype=torch.float64)
        nats, count = trainer.strategy.reduce(sums.to(training_device(model)), reduce_op="sum")
        return float(nats / count) * _BITS

    def _save(self, trainer: lightning.Trainer, model: DensityModel, valid: float) -> None:
        weights = {name: _whole(weight) for name, weight in model.state_dict().items()}
        if not trainer.is_global_zero:
            return
        kept = DensityModel(model.config)
        kept.load_state_dict(weights)
        about = {"step": trainer.global_step, "valid_bits_per_byte": round(valid, 6)}
        Artifact(
            model=kept,
            kind=self.artifact.kind,
            shape=self.artifact.shape,
            sample_rate=self.artifact.sample_rate,
            about={**self.artifact.about, **about},
        ).save(self.out / "model")


def training_device(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device


def _whole(weight: Tensor) -> Tensor:
    """Return a weight that may be spread over processes."""
    return getattr(weight, "full_tensor", lambda: weight)().detach().cpu()
