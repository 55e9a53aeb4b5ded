"""A recogniser: inputs, encoder, tokenizer and normaliser as one module; a folder on disk.

Shapes: B utterances, T frames of features, F features a frame, U frames of the encoder, V tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lhotse.cut import Cut
from torch import Tensor, nn

from speechkit import checkpoint, features, manifests
from speechkit.asr import tokenizer as tokenizers
from speechkit.asr.confidence import Calibration
from speechkit.asr.encoders import Encoded, Network, build_network
from speechkit.asr.normaliser import Normaliser
from speechkit.asr.tokenizer import BLANK, Tokenizer, out_of_vocabulary
from speechkit.errors import RequestError
from speechkit.features import Inputs, Statistics


class Recogniser(nn.Module):
    """Everything that turns audio or features into posteriors of tokens, and tokens into text.

    Attributes
    ----------
    statistics
        of the speakers at hand, where the inputs are normalised by speaker; see `hear`. They are
        of the recordings, not of the model, and are not stored with it.
    """

    blank = BLANK

    def __init__(
        self,
        inputs: Inputs,
        network: Network,
        *,
        tokenizer: Tokenizer,
        normaliser: Normaliser,
        calibration: Calibration = Calibration(),
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.network = network
        self.tokenizer = tokenizer
        self.normaliser = normaliser
        self.calibration = calibration
        self.statistics = Statistics()

    @property
    def output_layer(self) -> nn.Linear:
        """The layer that gives the logits."""
        return self.network.output

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output_layer.weight.device

    @property
    def frame_s(self) -> float:
        """Seconds from one frame of the encoder to the next."""
        return self.inputs.hop_s * self.network.factor

    @property
    def first_frame_s(self) -> float:
        """The middle of the encoder's first frame: convolutions keep that of the inputs' first."""
        return self.inputs.first_frame_s

    def forward(self, x: Tensor, lengths: Tensor) -> Encoded:
        """Map features (B, T, F) and their lengths (B,) to logits."""
        encoded: Encoded = self.network(x, lengths)
        return encoded

    def hear(self, cuts: Sequence[Cut]) -> None:
        """Measure the speakers of some cuts, for inputs that are normalised by speaker."""
        self.statistics = self.inputs.measure_speakers(cuts)

    @torch.no_grad()
    def features(self, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        """Return the features (B, T, F) of cuts, without augmentation, and their lengths (B,).

        Raises
        ------
        AudioError
            if a cut cannot be read.
        """
        x, lengths = features.pad([self.inputs.load(cut) for cut in cuts])
        found: tuple[Tensor, Tensor] = self.inputs(
            x.to(self.device),
            lengths.to(self.device),
            speakers=[manifests.speaker_of(cut) for cut in cuts],
            statistics=self.statistics,
        )
        return found

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text, normalised first.

        Raises
        ------
        RequestError
            if it holds characters that the model cannot write.
        """
        normalised = self.normaliser(text)
        if unknown := out_of_vocabulary(self.tokenizer, [normalised]).characters:
            raise RequestError(f"the model knows no {' '.join(map(repr, sorted(unknown)))}")
        return self.tokenizer.encode(normalised)

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.tokenizer.decode(tokens)

    def reference(self, cut: Cut) -> str | None:
        """Return what a hypothesis of the cut is compared with; None where it has no text.

        ``text_norm`` as it stands if the manifest has it, else the normalised text.
        """
        return reference_of(cut, self.normaliser)

    def with_calibration(self, calibration: Calibration) -> Self:
        """Return the same recogniser, weights shared, with other confidences."""
        return type(self)(
            self.inputs,
            self.network,
            tokenizer=self.tokenizer,
            normaliser=self.normaliser,
            calibration=calibration,
        ).train(self.training)

    def save(self, folder: Path | str) -> None:
        """Write the model folder, whole or not at all."""
        checkpoint.save_folder(
            folder,
            task="asr",
            loader=f"{__name__}:{type(self).__name__}",
            weights=self.state_dict(),
            config={
                "inputs": self.inputs.describe(),
                "network": self.network.describe(),
                "tokenizer": self.tokenizer.describe(),
                "normaliser": self.normaliser.to_dict(),
                "calibration": self.calibration.to_dict(),
            },
            card=self._card(),
        )

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a model folder, ready for inference.

        Raises
        ------
        RequestError
            if the folder is no recogniser of this format, or its parts do not fit.
        """
        stored = checkpoint.load_config(folder, task="asr")
        weights = checkpoint.load_weights(folder)
        try:
            inputs = features.build(stored["inputs"])
            tokenizer = tokenizers.from_description(stored["tokenizer"])
            recogniser = cls(
                inputs,
                build_network(stored["network"], inputs.dimensions, tokenizer.size),
                tokenizer=tokenizer,
                normaliser=Normaliser.from_dict(stored["normaliser"]),
                calibration=Calibration.from_dict(stored["calibration"]),
            )
            recogniser.load_state_dict(weights)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"{folder}: configuration and weights do not fit ({reason})"
            ) from error
        return recogniser.eval()

    def _card(self) -> str:
        described: dict[str, Any] = self.network.describe()
        count = sum(parameter.numel() for parameter in self.parameters())
        source = self.inputs.frontend or self.inputs.stored
        kind = type(source).__name__
        return (
            "# Speech recogniser (CTC)\n\n"
            f"- encoder: {described}, {count:,} parameters\n"
            f"- inputs: {kind}, {self.inputs.dimensions} features every {self.inputs.hop_s:g} s\n"
            f"- tokens: {self.tokenizer.size} ({self.tokenizer.kind}), the blank included\n\n"
            "Transcribe: `speechkit asr transcribe FILES --model THIS_FOLDER`. "
            "Measure: `speechkit asr evaluate --model THIS_FOLDER --cuts CUTS --out DIR`.\n"
        )


def reference_of(cut: Cut, normaliser: Normaliser) -> str | None:
    """Return a cut's ``text_norm`` as it stands, but for its spaces, else its normalised text.

    None if it has neither.
    """
    normalised = manifests.custom_of(cut).get("text_norm")
    if normalised is not None and len(cut.supervisions) == 1:
        return " ".join(str(normalised).split())
    text = manifests.text_of(cut)
    return None if text is None else normaliser(text)
