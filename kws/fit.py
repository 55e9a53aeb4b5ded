"""Training a spotter: the loop, what is measured between epochs, and how a run is resumed.

An epoch is a fixed number of steps. Behind each, the averaged weights are measured on the dev
streams, the best are written as the model, and the state of the run is written as a whole; an
interrupted run goes on from there and, since a batch depends on its step number alone, ends with
the same weights as one that was never interrupted.
"""

import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Sampler

from speechkit.kws.batches import IGNORED, Batch, SceneBatches
from speechkit.kws.detector import Detector
from speechkit.kws.measure import Scored, listen, mean_frr
from speechkit.kws.spotter import Spotter
from speechkit.kws.streams import Stream
from speechkit.ranges import require
from speechkit.seeds import seed_of
from speechkit.training import make_trainer, rewind_log, run, write_line, write_state

logger = logging.getLogger(__name__)

# the dev set is too small to rank models at one operating point, so several are averaged
_DEV_FA_PER_HOUR = (0.5, 1.0, 2.0, 4.0, 8.0)
# of the epochs
_LOWER_RATES_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Optimisation.

    The paper gives Adam, batches of 64 windows, and a rate of 0.001 that drops once to 0.0003. Ours
    are weight decay, clipping, masks, a second drop, hard windows, and averaged weights, which are
    what is measured and kept.

    Parameters
    ----------
    epochs, steps
        epochs at most, and steps in each.
    learning_rate, drop, drops
        the rate to start with, the factor of a drop, and how many drops there are.
    patience
        epochs without a better dev measure before each drop, and before the end. The last 40 % of
        all epochs belong to the lower rates, in equal parts, however well the first one does.
    hard_windows
        in a scene without a keyword, so many of the windows are those that look most like one.
    weight_decay, clip_norm
        decoupled, on all weights; gradients are scaled down to this norm.
    averaging
        decay per step of the moving average of the weights that is measured and kept.
    mask_bands, mask_frames
        in each window so many neighbouring bands, and frames, at most are set to 0.
    workers
        processes that make scenes; 0 makes them in between steps.
    """

    epochs: int = 30
    steps: int = 200
    learning_rate: float = 1e-3
    drop: float = 0.3
    drops: int = 2
    patience: int = 4
    hard_windows: int = 2
    weight_decay: float = 1e-4
    clip_norm: float = 5.0
    averaging: float = 0.995
    mask_bands: int = 8
    mask_frames: int = 20
    workers: int = 1

    def __post_init__(self) -> None:
        require(self, "epochs", "steps", "patience", at_least=1)
        require(self, "learning_rate", "clip_norm", above=0)
        require(self, "drop", above=0, below=1)
        require(self, "averaging", at_least=0, below=1)
        require(self, "drops", "weight_decay", "mask_bands", "mask_frames", "workers", at_least=0)
        require(self, "hard_windows", at_least=0)

    def latest_drop(self, number: int) -> int:
        """Return the epochs after which drop ``number`` (from 0) comes at the latest."""
        lower = _LOWER_RATES_SHARE * self.epochs * (1 - number / self.drops)
        return self.epochs - math.floor(lower)


@dataclass(frozen=True)
class DevSet:
    """Streams to measure on between epochs: keyword -> streams with it, and streams without."""

    positives: dict[str, list[Stream]]
    negatives: list[Stream]

    def with_features(self, spotter: Spotter) -> "DevSet":
        """Return the set with features in every stream, unless the front-end learns."""
        if any(parameter.requires_grad for parameter in spotter.frontend.parameters()):
            return self
        return DevSet(
            {k: [_featured(s, spotter) for s in streams] for k, streams in self.positives.items()},
            [_featured(stream, spotter) for stream in self.negatives],
        )

    def listen(self, spotter: Spotter) -> dict[str, Scored]:
        """Measure a spotter."""
        return listen(Detector(spotter), positives=self.positives, negatives=self.negatives)


def fit(
    spotter: Spotter,
    batches: SceneBatches,
    dev: DevSet | None,
    *,
    config: FitConfig,
    out: Path,
    progress: bool = False,
) -> Spotter:
    """Train; return the best spotter, which stands in ``OUT/model`` too.

    Parameters
    ----------
    dev
        what "best" is measured on; without it all epochs are made, and the last one is kept.
    out
        also gets ``log.jsonl``, a line an epoch, ``tensorboard/`` where that is installed, and
        ``resume/last.ckpt``, from which a run that was interrupted goes on.
    """
    training = _Training(spotter, config, seed=batches.seed)
    keeper = _Keeper(dev and dev.with_features(spotter), out, config)
    trainer = make_trainer(
        out,
        keeper,
        progress=progress,
        max_epochs=config.epochs,
        devices=1,
        gradient_clip_val=config.clip_norm,
    )
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=_Steps(config.steps, trainer),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    with _threads_beside(config.workers):
        run(trainer, training, loader, out=out)
    if dev and not keeper.moved:
        logger.warning(
            "every epoch was worse on dev than the start (FRR %.4f): the model is what it was",
            keeper.best,
        )
    return Spotter.load(out / "model")


@contextmanager
def _threads_beside(workers: int) -> Iterator[None]:
    """Leave a core to each worker: threads that wait for a busy core cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, (os.cpu_count() or 1) - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Steps(Sampler[int]):
    """The numbers of an epoch's steps, which go on from those that the run has done.

    Lightning's ``set_epoch`` comes too late for a resumed run: its first iterator, from which
    workers prefetch at once, is made before.
    """

    def __init__(self, steps: int, trainer: lightning.Trainer) -> None:
        self.steps = steps
        self.trainer = trainer

    def __iter__(self) -> Iterator[int]:
        done = self.trainer.global_step
        return iter(range(done, done + self.steps))

    def __len__(self) -> int:
        return self.steps


class _Training(lightning.LightningModule):  # type: ignore[misc]
    """Loss and optimiser; the network itself knows nothing of training."""

    def __init__(self, spotter: Spotter, config: FitConfig, *, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.spotter = spotter
        self.averaged = AveragedModel(
            spotter,
            multi_avg_fn=get_ema_multi_avg_fn(config.averaging),  # type: ignore[no-untyped-call]
        )
        self.fit_config = config
        self.losses: list[Tensor] = []

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        return batch.to(device)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        features, _ = self.spotter.frontend(batch.audio)
        starts, targets = batch.starts, batch.targets
        if hard := min(self.fit_config.hard_windows, starts.shape[1], batch.others.shape[1]):
            starts, targets = self._with_hardest(features, batch, hard)
        windows = cut_windows(features, starts, self.spotter.window_frames)
        windows = mask_stripe(windows, 2, self.fit_config.mask_bands)
        windows = mask_stripe(windows, 1, self.fit_config.mask_frames)
        targets = targets.flatten()
        total = functional.cross_entropy(
            self.spotter(windows), targets, ignore_index=IGNORED, reduction="sum"
        )
        loss = total / (targets != IGNORED).sum().clamp(min=1)
        self.losses.append(loss.detach())
        return loss

    @torch.no_grad()
    def _with_hardest(self, features: Tensor, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        """Return starts and targets (S, W), the last of scenes without a keyword being the hardest.

        Most windows without a keyword teach nothing after a while; false alarms come from the few
        that are like one.
        """
        if not len(batch.free):
            return batch.starts, batch.targets
        self.spotter.eval()
        windows = cut_windows(features[batch.free], batch.others, self.spotter.window_frames)
        scores = self.spotter.keyword_scores(windows).amax(dim=1).view(batch.others.shape)
        self.spotter.train()
        hardest = scores.topk(count, dim=1).indices
        starts, targets = batch.starts.clone(), batch.targets.clone()
        starts[batch.free, -count:] = batch.others.gather(1, hardest)
        targets[batch.free, -count:] = batch.other_targets.gather(1, hardest)
        return starts, targets

    def on_train_batch_start(self, *_: Any) -> None:
        # what masks and dropout draw depends on the step alone, so that a resumed run draws it too
        torch.manual_seed(seed_of("step", self.seed, self.global_step))

    def on_train_batch_end(self, *_: Any) -> None:
        self.averaged.update_parameters(self.spotter)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.spotter.parameters(),
            lr=self.fit_config.learning_rate,
            weight_decay=self.fit_config.weight_decay,
        )


class _Keeper(Callback):  # type: ignore[misc]
    """Between epochs: measure, keep the best, drop the learning rate, stop, write the state."""

    def __init__(self, dev: DevSet | None, out: Path, config: FitConfig) -> None:
        self.dev = dev
        self.out = out
        self.config = config
        self.best = float("inf")
        self.idle = 0
        self.dropped = 0
        self.moved = False
        self.done = False
        self.begun = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "idle", "dropped", "moved", "done")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: lightning.Trainer, training: Any) -> None:
        trainer.should_stop = self.done
        rewind_log(trainer, self.out)
        if trainer.global_step == 0 and self.dev:
            # what goes on from a model must beat it, if not in the first epoch
            self.best, self.idle = self._measure(training, self.dev), -1

    def on_train_epoch_end(self, trainer: lightning.Trainer, training: Any) -> None:
        measured = {}
        if self.dev:
            dev = self._measure(training, self.dev)
            self.moved = self.moved or dev <= self.best
            self.idle = 0 if dev < self.best else self.idle + 1
            self.best = min(self.best, dev)
            measured = {"dev_frr": round(dev, 6), "best_dev_frr": round(self.best, 6)}
        else:
            _averaged(training).save(self.out / "model")
        self._lower_rate(trainer)
        self._log(trainer, training, measured)
        write_state(trainer, self.out)

    def _measure(self, training: Any, dev: DevSet) -> float:
        """Return the mean FRR on dev; keep the model if none was better."""
        spotter = _averaged(training)
        scored = dev.listen(spotter)
        frr = sum(mean_frr(one, _DEV_FA_PER_HOUR) for one in scored.values()) / len(scored)
        if frr <= self.best:
            spotter.save(self.out / "model")
        return frr

    def _lower_rate(self, trainer: lightning.Trainer) -> None:
        """Lower the rate when dev has got no better or an epoch is due; after all drops, stop."""
        due = (
            self.dropped < self.config.drops
            and trainer.current_epoch + 1 >= self.config.latest_drop(self.dropped)
        )
        if self.idle < self.config.patience and not due:
            return
        self.idle = 0
        if self.dropped == self.config.drops:
            self.done = trainer.should_stop = True
            return
        self.dropped += 1
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= self.config.drop

    def _log(self, trainer: lightning.Trainer, training: Any, measured: dict[str, float]) -> None:
        line = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "loss": round(float(torch.stack(training.losses).mean()), 6),
            **measured,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "elapsed_s": round(time.monotonic() - self.begun, 1),
        }
        training.losses.clear()
        write_line(trainer, self.out, line)
        dev = "dev FRR %(dev_frr).4f (best %(best_dev_frr).4f), " if measured else ""
        logger.info(
            "epoch %(epoch)d: loss %(loss).4f, "
            + dev
            + "learning rate %(learning_rate)g, %(elapsed_s).0f s",
            line,
        )


def _averaged(training: Any) -> Spotter:
    """Return the spotter with averaged weights, which is what is measured and kept."""
    spotter: Spotter = training.averaged.module
    return spotter.eval()


def cut_windows(features_stf: Tensor, starts_sw: Tensor, frames: int) -> Tensor:
    """Cut windows (scenes x windows, frames, F) out of the features (scenes, T, F) of scenes."""
    index = starts_sw[..., None] + torch.arange(frames, device=starts_sw.device)
    scene = torch.arange(len(features_stf), device=starts_sw.device)[:, None, None]
    return features_stf[scene, index].flatten(0, 1)


def mask_stripe(x: Tensor, dim: int, widest: int) -> Tensor:
    """Set a stripe of 0 to ``widest`` neighbours along one axis to 0, another in each window."""
    size = x.shape[dim]
    shape = [len(x), 1, 1]
    width = torch.randint(0, min(widest, size) + 1, shape, device=x.device)
    start = (torch.rand(shape, device=x.device) * (size - width + 1)).long()
    axis = torch.arange(size, device=x.device).view([size if d == dim else 1 for d in range(3)])
    return x.masked_fill((axis >= start) & (axis < start + width), 0.0)


def _featured(stream: Stream, spotter: Spotter) -> Stream:
    with torch.inference_mode():
        features = spotter.frontend.stream().push(stream.audio)
    # of the audio its length alone is asked for from now on; hours of it would stay in memory
    unheard = np.broadcast_to(np.float32("nan"), len(stream.audio))
    return dataclasses.replace(stream, audio=unheard, features=features.clone())
