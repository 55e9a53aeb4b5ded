"""What is measured while a recogniser is trained: an epoch in sums, errors on dev, a self-test."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from speechkit import ctc
from speechkit.asr.encoders import Encoded
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.scoring import Transcript, score
from speechkit.asr.tokenizer import BLANK
from speechkit.asr.utterances import Batch, Material, Utterances
from speechkit.batching import DurationBatches

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """What an epoch showed, in sums."""

    loss: float = 0.0
    tokens: int = 0
    blanks: int = 0
    frames: int = 0
    unusable: int = 0
    skipped: int = 0
    norms: float = 0.0
    steps: int = 0

    def summary(self) -> dict[str, float]:
        """Return means and counts for the log."""
        return {
            "loss": round(self.loss / max(1, self.tokens), 5),
            "blank_share": round(self.blanks / max(1, self.frames), 4),
            "gradient_norm": round(self.norms / max(1, self.steps), 4),
            "skipped_steps": self.skipped,
            "unusable_utterances": self.unusable,
        }

    def observe(self, encoded: Encoded, nll: Tensor, sizes: Tensor) -> None:
        """Add a batch: what was encoded, each utterance's loss (B,) and number of tokens (B,)."""
        possible = nll.isfinite()
        frames = torch.arange(encoded.logits.shape[1], device=nll.device)
        inside = frames < encoded.lengths.to(nll.device)[:, None]
        self.loss += float(nll[possible].sum())
        self.tokens += int(sizes[possible].sum())
        self.unusable += int((~possible).sum())
        self.blanks += int(((encoded.logits.argmax(-1) == BLANK) & inside).sum())
        self.frames += int(inside.sum())

    def observe_norm(self, norm: Tensor) -> bool:
        """Add the norm of a step's gradients; say whether the step can be taken."""
        if not torch.isfinite(norm):
            self.skipped += 1
            return False
        self.norms += float(norm)
        self.steps += 1
        return True


@torch.inference_mode()
def measure(recogniser: Recogniser, material: Material) -> dict[str, float]:
    """Return the CTC loss a token, WER and CER of greedy decoding on dev."""
    dataset = Utterances(recogniser.inputs, material.dev.tokens)
    batches = DurationBatches(material.dev.cuts, material.batches)
    texts = {utterance.cut.id: utterance.text for utterance in material.dev.utterances}
    total, tokens, transcripts = 0.0, 0, []
    for planned in batches:
        batch = dataset[planned].to(recogniser.device)
        x, lengths = recogniser.inputs(
            batch.x, batch.lengths, speakers=batch.speakers, statistics=material.statistics
        )
        encoded = recogniser(x, lengths)
        nll = ctc.loss(encoded.logits, encoded.lengths, batch.tokens)
        possible = nll.isfinite()  # what cannot be aligned has no loss
        sizes = torch.tensor([max(1, len(one)) for one in batch.tokens], device=nll.device)
        total += float(nll[possible].sum())
        tokens += int(sizes[possible].sum())
        for id_, path in zip(batch.ids, ctc.greedy(encoded.logits, encoded.lengths), strict=True):
            transcripts.append(Transcript(id_, texts[id_], recogniser.text_of(path.tokens)))
    found = score(transcripts)
    return {
        "dev_loss": total / max(1, tokens),
        "dev_wer": found.words.rate,
        "dev_cer": found.characters.rate,
    }


def overfit(recogniser: Recogniser, batch: Batch, *, steps: int, learning_rate: float) -> float:
    """Train on one batch without any augmentation; return its word error rate at the end.

    A model, tokenizer and loss that belong together learn a batch by heart: what does not has a
    mistake in it. It stops as soon as nothing is wrong.
    """
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=learning_rate)
    batch = batch.to(recogniser.device)
    recogniser.eval()  # no dropout: it would only slow this down
    wer = 1.0
    for step in range(steps):
        optimizer.zero_grad()
        inputs = recogniser.inputs(batch.x, batch.lengths, speakers=batch.speakers)
        encoded = recogniser(*inputs)
        loss = ctc.loss(encoded.logits, encoded.lengths, batch.tokens).mean()
        if step % 10 == 9:
            wer = _wer(recogniser, batch, encoded.logits.detach(), encoded.lengths)
            logger.info("step %d: loss %.4f, WER %.2f %%", step + 1, loss.item(), 100 * wer)
            if wer == 0:
                break  # before another step, which may unlearn it
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(recogniser.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20)
        optimizer.step()
    return wer


def _wer(recogniser: Recogniser, batch: Batch, logits: Tensor, lengths: Tensor) -> float:
    found = ctc.greedy(logits, lengths)
    return score(
        Transcript(id_, recogniser.text_of(tokens), recogniser.text_of(path.tokens))
        for id_, tokens, path in zip(batch.ids, batch.tokens, found, strict=True)
    ).words.rate
