"""A spotter: front-end, network, class labels and how its scores become detections.

Shapes: B windows or streams, T frames, F mel bands, K classes.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor, nn

from speechkit import checkpoint, frontend
from speechkit.audio import SAMPLE_RATE
from speechkit.errors import RequestError
from speechkit.kws.models import Cnn, build_network, count_parameters, describe_network
from speechkit.kws.packed_crnn import PackedCrnn
from speechkit.kws.streamed_cnn import StreamedCnn
from speechkit.kws.streamed_crnn import StreamedCrnn
from speechkit.ranges import require

BACKGROUND = "_background_"
SILENCE = "_silence_"
UNKNOWN = "_unknown_"


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """How scores along a stream become detections.

    Parameters
    ----------
    shift_s
        time between two windows (the paper: 0.1 s).
    smoothing_windows
        scores are averaged over this many windows, 1 for none (as in the paper).
    refractory_s
        scores above the threshold with gaps under this time are one detection.
    """

    shift_s: float = 0.1
    smoothing_windows: int = 2
    refractory_s: float = 1.0

    def __post_init__(self) -> None:
        require(self, "shift_s", above=0)
        require(self, "smoothing_windows", at_least=1)
        require(self, "refractory_s", at_least=0)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A detection threshold and the measurement that it was frozen on.

    ``negative_hours`` counts each repetition of the dev negatives in another noise.
    """

    value: float
    fa_per_hour: float
    snr_db: float | None
    negative_hours: float

    def __post_init__(self) -> None:
        if not (0 <= self.value <= 1 and self.fa_per_hour > 0 and self.negative_hours >= 0):
            raise RequestError(
                f"threshold {self.value} for {self.fa_per_hour} FA/hour on {self.negative_hours} h:"
                " scores lie between 0 and 1, rates and hours above 0"
            )


@dataclass(frozen=True, kw_only=True)
class SpotterConfig:
    """Everything but the weights: enough to build a spotter, all of it JSON.

    Parameters
    ----------
    labels
        the classes in the order of the logits; a name like ``_background_`` is not a keyword.
    frontend, network
        descriptions for `speechkit.frontend.build` and `speechkit.kws.models.build_network`.
    thresholds
        keyword -> threshold frozen on the dev set; a keyword without one uses 0.5.
    """

    labels: tuple[str, ...]
    frontend: dict[str, Any] = field(default_factory=lambda: {"type": "pcen"})
    network: dict[str, Any] = field(default_factory=lambda: {"type": "crnn"})
    detection: DetectionConfig = DetectionConfig()
    thresholds: dict[str, Threshold] = field(default_factory=dict)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The labels that are keywords."""
        return tuple(label for label in self.labels if not label.startswith("_"))


class Spotter(nn.Module):
    """Front-end and network as one module; a folder on disk."""

    def __init__(self, config: SpotterConfig) -> None:
        super().__init__()
        if not config.keywords:
            raise RequestError(f"labels {', '.join(config.labels)}: at least one keyword is needed")
        self.config = config
        self.frontend = frontend.build(config.frontend)
        self.network = build_network(config.network, len(config.labels))
        if self.frontend.bands != self.network.config.bands:
            raise RequestError(
                f"the front-end gives {self.frontend.bands} bands, the network takes "
                f"{self.network.config.bands}: make them equal"
            )
        if self.frontend.config.sample_rate != SAMPLE_RATE:
            raise RequestError(
                f"front-end of {self.frontend.config.sample_rate} Hz: spotters are trained and "
                f"measured at {SAMPLE_RATE} Hz, to which audio of any rate is resampled; leave "
                "sample_rate out"
            )
        if not 1 <= self.shift_frames <= self.window_frames:
            raise RequestError(
                f"shift_s {config.detection.shift_s}: is {self.shift_frames} frames; give 1 to the "
                f"{self.window_frames} of a window, so that all of a stream is heard"
            )

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords, in the order of the columns of `keyword_scores`."""
        return self.config.keywords

    @property
    def classes(self) -> Literal["keywords", "unknown-silence"]:
        """What stands beside the keywords: one class for all else, or other words and silence."""
        return "unknown-silence" if UNKNOWN in self.config.labels else "keywords"

    @property
    def window_frames(self) -> int:
        """Frames of one window."""
        return self.network.config.frames

    @property
    def window_samples(self) -> int:
        """Samples of one window, from the centre of its first frame to that of its last.

        Where frames are not centred (Kaldi's), from the start of the first to the end of the last.
        """
        return (self.window_frames - 1) * self.hop_samples + 2 * self.frontend.centre_samples

    @property
    def shift_frames(self) -> int:
        """Frames from one window to the next along a stream."""
        return round(
            self.config.detection.shift_s * self.frontend.config.sample_rate / self.hop_samples
        )

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return self.frontend.hop_samples

    def forward(self, windows_btf: Tensor) -> Tensor:
        """Map windows of features (B, T, F) to logits (B, K)."""
        return self.network(windows_btf)

    def posteriors(self, windows_btf: Tensor) -> Tensor:
        """Class posteriors (B, K), in float64: in float32 the best scores would all round to 1."""
        return _posteriors(self.network(windows_btf))

    def keyword_scores(self, windows_btf: Tensor) -> Tensor:
        """Posteriors of the keywords alone (B, keywords)."""
        return self._keywords_of(self.network(windows_btf))

    def threshold(self, keyword: str) -> float:
        """Return the frozen threshold of a keyword, or 0.5."""
        frozen = self.config.thresholds.get(keyword)
        return 0.5 if frozen is None else frozen.value

    def with_thresholds(self, thresholds: dict[str, Threshold]) -> Self:
        """Return a spotter with a copy of these weights and other thresholds."""
        twin = type(self)(dataclasses.replace(self.config, thresholds=thresholds))
        twin.load_state_dict(self.state_dict())
        return twin.train(self.training)

    def along_streams(self) -> Callable[[Tensor], Tensor]:
        """Return what maps features (T, F) to the keyword scores (N, keywords) of all windows.

        As `keyword_scores` of `windows_along`, with these weights as they are now, and quicker
        where windows share their work or a single one can do without torch.
        """
        network, shift = self.network, self.shift_frames
        many: nn.Module
        one: Callable[[Tensor], Tensor] | None = None
        if isinstance(network, Cnn):
            many, one = StreamedCnn(network, shift), copy.deepcopy(network)
        else:
            many = StreamedCrnn(network, shift)
            if isinstance(network.recurrent, nn.GRU) and network.output.weight.device.type == "cpu":
                one = PackedCrnn(network)

        def scores(features_tf: Tensor) -> Tensor:
            if one is None or len(features_tf) >= self.window_frames + shift:
                return self._keywords_of(many(features_tf))
            return self._keywords_of(one(features_tf[None, : self.window_frames]))

        return scores

    def _keywords_of(self, logits: Tensor) -> Tensor:
        columns = [self.config.labels.index(keyword) for keyword in self.keywords]
        return _posteriors(logits)[:, columns]

    def save(self, folder: Path | str) -> None:
        """Write the model folder, whole or not at all."""
        described = dataclasses.asdict(self.config) | {
            "frontend": self.frontend.describe(),
            "network": describe_network(self.network),
        }
        checkpoint.save_folder(
            folder,
            task="kws",
            loader=f"{__name__}:{type(self).__name__}",
            weights=self.state_dict(),
            config=described,
            card=self._card(),
        )

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a model folder, ready for inference.

        Raises
        ------
        RequestError
            if the folder is no keyword-spotting model of this format, or its parts do not fit.
        """
        stored = checkpoint.load_config(folder, task="kws")
        weights = checkpoint.load_weights(folder)
        try:
            config = SpotterConfig(
                labels=tuple(stored["labels"]),
                frontend=stored["frontend"],
                network=stored["network"],
                detection=DetectionConfig(**stored["detection"]),
                thresholds={k: Threshold(**v) for k, v in stored["thresholds"].items()},
            )
            spotter = cls(config)
            spotter.load_state_dict(weights)
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"{folder}: configuration and weights do not fit ({reason})"
            ) from error
        return spotter.eval()

    def _card(self) -> str:
        thresholds = "\n".join(
            f"- `{keyword}`: threshold {t.value!r}, the lowest with at most {t.fa_per_hour:g} "
            f"false alarms an hour on {t.negative_hours:.2f} h of dev negatives (in several noises)"
            for keyword, t in self.config.thresholds.items()
        )
        return (
            f"# Keyword spotter: {', '.join(self.keywords)}\n\n"
            f"- network: {self.network.name}, {count_parameters(self.network, paper=True):,} "
            f"parameters ({count_parameters(self.network):,} with torch's second recurrent bias)\n"
            f"- front-end: {self.frontend.describe()}\n"
            f"{thresholds or '- no threshold frozen: 0.5 is used'}\n\n"
            "Listen: `speechkit kws detect FILE --model THIS_FOLDER`. "
            "Measure: `speechkit kws evaluate --model THIS_FOLDER ...`.\n"
        )


def windows_along(features_tf: Tensor, frames: int, shift: int) -> Tensor:
    """View features (T, F) as all their full windows (B, frames, F)."""
    if len(features_tf) < frames:
        return features_tf.new_zeros(0, frames, features_tf.shape[1])
    return features_tf.unfold(0, frames, shift).transpose(1, 2)


def _posteriors(logits: Tensor) -> Tensor:
    return logits.double().softmax(dim=1)
