"""Training a recogniser: the loop, what is watched, what is measured, how a run is resumed.

Behind each epoch the averaged weights are measured on dev, the best are written as the model, and
the state of the run is written as a whole. What a step reads and draws depends on the seed and its
place in the run alone, so an interrupted run ends with the same weights as one that was not.
"""

import copy
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Sampler

from speechkit import ctc
from speechkit.asr.consistency import divergence
from speechkit.asr.dev import Watch, measure
from speechkit.asr.optimisation import FitConfig, decayed, moving_average
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.utterances import Batch, Material, Utterances
from speechkit.batching import CutBatch, DurationBatches
from speechkit.errors import AudioError, JobError, is_out_of_memory
from speechkit.seeds import seed_of
from speechkit.specaugment import spec_augment
from speechkit.training import (
    make_trainer,
    rewind_log,
    run,
    write_line,
    write_state,
)

logger = logging.getLogger(__name__)

# after so many epochs a model that emits blanks alone has usually collapsed
_COLLAPSE_EPOCHS = 5
_COLLAPSE_SHARE = 0.995

# what stands before the message of an error in the traceback of a worker
_RAISED = "speechkit.errors.AudioError: "


def fit(
    recogniser: Recogniser,
    material: Material,
    *,
    config: FitConfig,
    out: Path,
    progress: bool = False,
) -> Recogniser:
    """Train; return the best recogniser, which stands in ``OUT/model`` too.

    Parameters
    ----------
    out
        also gets ``log.jsonl``, a line an epoch, ``tensorboard/`` where that is installed, and
        ``resume/last.ckpt``, from which a run that was interrupted goes on.

    Raises
    ------
    JobError
        if memory runs out, with the setting to change.
    """
    keeper = _Keeper(material, out, config)
    trainer = make_trainer(
        out,
        keeper,
        precision=config.precision,
        progress=progress,
        max_epochs=config.epochs,
        # epochs differ by some batches, and Lightning would cut all to the first one's number
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=config.accumulate,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=config.strategy,
    )
    sampler = _Epochs(material, trainer, keeper)
    training = _Training(
        recogniser, material, config, steps=sampler.steps(config), clock=keeper.clock
    )
    dataset = Utterances(
        recogniser.inputs,
        material.training.tokens,
        config=material.augment,
        noises=material.noises,
        seed=material.seed,
    )
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    try:
        run(trainer, training, loader, out=out)
    except (RuntimeError, MemoryError) as error:
        raise _explained(error, material) from error
    if not trainer.is_global_zero:
        sys.exit(0)  # one process is enough for what follows
    return Recogniser.load(out / "model")


def _explained(error: Exception, material: Material) -> Exception:
    """Return what a user can act on, of lack of memory and of broken audio; else the error."""
    if isinstance(error, AudioError):
        # a worker's holds its traceback, and ends in what it said
        return AudioError(str(error).strip().splitlines()[-1].removeprefix(_RAISED))
    if not is_out_of_memory(error):
        return error
    cuts = [*material.training.cuts, *material.dev.cuts]
    longest = max(cuts, key=lambda cut: cut.duration)
    return JobError(
        f"memory ran out; the longest utterance, {longest.id}, lasts {longest.duration:.1f} s and "
        f"batches hold {material.batches.max_s:g} s: lower batches.max_s, leave long utterances "
        "out, set recompute, or take a sparse pattern"
    )


class _Epochs(Sampler[CutBatch]):
    """The batches of the epoch at hand, for this rank.

    The keeper counts epochs, since Lightning's own count, and its ``set_epoch``, come too late for
    a resumed run: its first iterator, from which workers prefetch at once, is made before.
    """

    def __init__(self, material: Material, trainer: lightning.Trainer, keeper: "_Keeper") -> None:
        self.material = material
        self.trainer = trainer
        self.keeper = keeper
        self._batches: DurationBatches | None = None

    def steps(self, config: FitConfig) -> int:
        """Return about how many steps the whole run takes."""
        return math.ceil(len(self.batches()) / config.accumulate) * config.epochs

    def batches(self) -> DurationBatches:
        """Return the batches, placed at the epoch."""
        if self._batches is None:
            self._batches = DurationBatches(
                self.material.training.cuts,
                self.material.batches,
                seed=self.material.seed,
                rank=self.trainer.global_rank,
                world_size=self.trainer.world_size,
            )
        self._batches.seek(self.keeper.epoch)
        return self._batches

    def __iter__(self) -> Iterator[CutBatch]:
        return iter(self.batches())

    def __len__(self) -> int:
        return len(self.batches())


class _Training(lightning.LightningModule):  # type: ignore[misc]
    """Loss and optimiser; the recogniser itself knows nothing of training."""

    def __init__(
        self,
        recogniser: Recogniser,
        material: Material,
        config: FitConfig,
        *,
        steps: int,
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.averaged = AveragedModel(recogniser, multi_avg_fn=moving_average(config.averaging))
        self.averaged.requires_grad_(False)  # several processes would wait for its gradients
        self.material = material
        self.fit_config = config
        self.steps, self.clock = steps, clock
        self.watch = Watch()

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        return batch.to(device)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        # what dropout draws depends on the place in the run alone
        place = (batch.epoch, index, self.global_rank)
        torch.manual_seed(seed_of("dropout", self.material.seed, *place))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        x, lengths = self._inputs(batch)
        views = self._views(x, lengths, batch)
        encoded = self.recogniser(torch.cat(views), lengths.repeat(len(views)))
        nll = ctc.loss(encoded.logits, encoded.lengths, batch.tokens * len(views))
        possible = nll.isfinite()
        # nats a token: long utterances do not outweigh short ones, and rates suit any tokenizer
        sizes = torch.tensor([max(1, len(t)) for t in batch.tokens], device=nll.device)
        sizes = sizes.repeat(len(views))
        total = torch.where(possible, nll, 0.0).sum()
        if len(views) > 1:
            apart = divergence(encoded.logits, encoded.lengths).sum() * len(views)
            total = total + self.fit_config.consistency * apart
        self.watch.observe(encoded, nll.detach(), sizes)
        return total / (sizes * possible).sum().clamp(min=1)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip; a step whose gradients are not finite changes nothing, and is counted."""
        norm = clip_grad_norm_(self.recogniser.parameters(), self.fit_config.clip_norm)
        if not self.watch.observe_norm(norm):
            optimizer.zero_grad()

    def on_train_batch_end(self, *_: Any) -> None:
        # between the batches that are accumulated nothing has changed
        if self.global_step > int(self.averaged.n_averaged):
            self.averaged.update_parameters(self.recogniser)

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.fit_config
        optimizer = torch.optim.AdamW(
            decayed(self.recogniser, config.weight_decay),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            # small tensors by the hundred: a step of one kernel, not of hundreds; a gradient scaler
            # would leave it to that kernel to unscale, after gradients have been clipped
            fused=config.precision != "16",
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: config.rate(step, self.steps, clock=self.clock())
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.recogniser.inputs(
            batch.x,
            batch.lengths,
            speakers=batch.speakers,
            statistics=self.material.statistics,
        )
        return found

    def _views(self, x: Tensor, lengths: Tensor, batch: Batch) -> list[Tensor]:
        """Return the features as they are, or masked, or masked twice."""
        if self.global_step < self.fit_config.spec_augment_after:
            return [x]
        material, repeats = self.material, 1 + self.recogniser.inputs.config.deltas
        views = []
        for view in range(2 if self.fit_config.consistency else 1):
            place = material.seed, batch.epoch, view
            seeds = [seed_of("masks", *place, id_) for id_ in batch.ids]
            views.append(
                spec_augment(x, lengths, seeds=seeds, config=material.spec_augment, repeats=repeats)
            )
        return views


class _Keeper(Callback):  # type: ignore[misc]
    """Between epochs: measure, keep the best, log, write the state; end a run in time."""

    def __init__(self, material: Material, out: Path, config: FitConfig) -> None:
        self.material = material
        self.out = out
        self.config = config
        self.best = [float("inf"), float("inf")]
        self.recent: list[dict[str, Tensor]] = []
        self.epoch = 0
        self.before_s = 0.0
        self.begun = time.monotonic()
        self.over = 0.0

    @property
    def elapsed_s(self) -> float:
        return self.before_s + time.monotonic() - self.begun

    def clock(self) -> float:
        """Return the share of the allowed time that was over at the last look; 0 without a limit.

        All processes look at the clock of the first: rates that differ would part their weights.
        """
        return self.over

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "recent": self.recent,
            "epoch": self.epoch,
            "elapsed_s": self.elapsed_s,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.recent = state["best"], state["recent"]
        self.epoch, self.before_s = state["epoch"], state["elapsed_s"]

    def on_train_start(self, trainer: lightning.Trainer, training: Any) -> None:
        # whatever the clock says: a run without a measured model would have nothing to return
        trainer.should_stop = self._late(trainer) and math.isfinite(self.best[0])
        rewind_log(trainer, self.out)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if self._late(trainer):
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, training: Any) -> None:
        measured = training.averaged.module if self.config.averaging else training.recogniser
        candidate = self._averaged(measured)
        dev = measure(candidate, self.material) if self._due(trainer) else {}
        if dev and (now := [dev["dev_wer"], dev["dev_loss"]]) <= self.best:
            self.best = now
            if trainer.is_global_zero:
                candidate.save(self.out / "model")
        self._log(trainer, training, dev)
        training.watch = Watch()
        self.epoch += 1
        write_state(trainer, self.out)
        measured.train()

    def _due(self, trainer: lightning.Trainer) -> bool:
        """Return whether the epoch that ends is to be measured on dev."""
        done = self.epoch + 1
        last = done == self.config.epochs or trainer.should_stop
        return last or done % self.config.dev_every == 0

    def _late(self, trainer: lightning.Trainer) -> bool:
        if self.config.max_minutes is None:
            return False
        self.over = trainer.strategy.broadcast(self.elapsed_s / (60 * self.config.max_minutes))
        return self.over >= 1

    def _averaged(self, measured: Recogniser) -> Recogniser:
        """Return the mean of the last epochs' weights, in a copy that nothing trains."""
        if self.config.average_epochs == 1:
            return measured.eval()
        # on the CPU, where a state that is gone on from has them too
        weights = {
            name: w.detach().to("cpu", copy=True) for name, w in measured.state_dict().items()
        }
        self.recent = [*self.recent, weights][-self.config.average_epochs :]
        mean = copy.deepcopy(measured)
        mean.load_state_dict(
            {
                name: torch.stack([one[name] for one in self.recent]).mean(dim=0)
                if torch.is_floating_point(weights[name])
                else weights[name]
                for name in weights
            }
        )
        return mean.eval()

    def _log(self, trainer: lightning.Trainer, training: Any, dev: dict[str, float]) -> None:
        line = {
            "epoch": self.epoch,
            "step": trainer.global_step,
            **training.watch.summary(),
            **{name: round(value, 5) for name, value in dev.items()},
            **({"best_dev_wer": round(self.best[0], 5)} if dev else {}),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "elapsed_s": round(self.elapsed_s, 1),
        }
        if line["blank_share"] > _COLLAPSE_SHARE and self.epoch >= _COLLAPSE_EPOCHS:
            logger.warning(
                "the model emits hardly anything but blanks: lower learning_rate, raise "
                "warmup_steps or spec_augment_after, and try --overfit-batch"
            )
        write_line(trainer, self.out, line)
        if trainer.is_global_zero:
            on_dev = "dev loss %(dev_loss).4f, dev WER %(dev_wer).4f (best %(best_dev_wer).4f), "
            logger.info(
                "epoch %(epoch)d: loss %(loss).4f, " + on_dev * bool(dev) + "%(elapsed_s).0f s",
                line,
            )
