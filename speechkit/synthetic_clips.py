"""The clips of the synthetic corpus: voices, what a clip holds, and its audio on disk.

This module stays light (no torch, no lhotse), because worker processes import it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechkit.audio import SAMPLE_RATE, Audio, write_audio
from speechkit.espeak import Utterance, Voice, Word, speak
from speechkit.files import write_json

SPLITS = ("train", "dev", "test")
# variants of espeak-ng that are clear, do not clip, differ from each other, and speak equally
# each time ("Reed" and "caleb" draw from the C library's generator and do not)
_HIGH = """
f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda grandma linda shelby steph zac
"""
_LOW = """
m1 m2 m3 m4 m5 m6 m7 m8 Alex Andy Denis Diogo Gene Gene2 Henrique Hugo Lee Mario Michael Mike
Nguyen adam announcer boris croak david ed edward grandpa gustave ian iven3 iven4 john kaukovalta
klatt2 klatt4 marcelo max michel miguel mike2 norbert pablo paul pedro quincy rob robert sandro
travis victor whisper
"""
_NATIVE = (
    "en",
    "en-us",
    "en-029",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)
# languages of another script: espeak-ng reads Latin letters as English, in their rhythm and tune
_FOREIGN = ("hi", "ta", "ru", "el", "cmn")
_FOREIGN_SHARE = 0.15
_UNSEEN = ("en-gb-scotland", "cmn")  # accents of the test split only
_BABBLE_VARIANTS = 3  # of each list, one a split
_MARGIN_S = (0.3, 0.6)
_LEVEL_DB = (-32.0, -18.0)
_PEAK = 0.95


@dataclass(frozen=True, kw_only=True)
class Voices:
    """What the clips of one split are spoken with; no variant is in two splits."""

    native: tuple[str, ...]
    foreign: tuple[str, ...]
    high: tuple[str, ...]
    low: tuple[str, ...]

    def draw(self, generator: np.random.Generator) -> Voice:
        """Return a random voice; high and low ones come equally often."""
        accents = self.foreign if generator.random() < _FOREIGN_SHARE else self.native
        variants = self.high if generator.random() < 0.5 else self.low
        return Voice(
            name=f"{generator.choice(accents)}+{generator.choice(variants)}",
            rate_wpm=int(np.clip(generator.normal(170, 28), 110, 260)),
            pitch=int(generator.integers(30, 71)),
            pitch_range=int(generator.integers(30, 81)),
        )


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip to be made: all that its audio depends on, and its label."""

    id: str
    split: str
    kind: str
    text: str
    label: str | None
    voice: Voice
    level_db: float
    lead_s: float
    tail_s: float

    @property
    def path(self) -> Path:
        """Return where the audio goes, below the corpus."""
        return Path(self.split, "audio", self.kind, f"{self.id}.flac")


@dataclass(frozen=True)
class Rendered:
    """What is known of a clip once it is spoken; times in the clip."""

    samples: int
    start_s: float
    duration_s: float
    words: list[Word]


def random_state(seed: int, name: str) -> np.random.Generator:
    """Return the generator of one named thing, independent of all others."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def deal_voices(seed: int, shares: dict[str, float]) -> tuple[dict[str, Voices], dict[str, Voices]]:
    """Return each split's voices for its clips, and others for the babble in its noise."""
    high = _deal(_HIGH.split(), shares, random_state(seed, "high voices"))
    low = _deal(_LOW.split(), shares, random_state(seed, "low voices"))
    clips: dict[str, Voices] = {}
    babble: dict[str, Voices] = {}
    for split in SPLITS:
        seen = () if split == "test" else _UNSEEN
        native = tuple(accent for accent in _NATIVE if accent not in seen)
        foreign = tuple(accent for accent in _FOREIGN if accent not in seen)
        for pool, part in ((clips, 0), (babble, 1)):
            pool[split] = Voices(
                native=native, foreign=foreign, high=high[split][part], low=low[split][part]
            )
    return clips, babble


def plan_clip(
    id_: str, *, split: str, kind: str, text: str, label: str | None, voices: Voices, seed: int
) -> Clip:
    """Return a clip whose voice, level and margins follow from the seed and its id alone."""
    generator = random_state(seed, id_)
    return Clip(
        id=id_,
        split=split,
        kind=kind,
        text=text,
        label=label,
        voice=voices.draw(generator),
        level_db=float(generator.uniform(*_LEVEL_DB)),
        lead_s=float(generator.uniform(*_MARGIN_S)),
        tail_s=float(generator.uniform(*_MARGIN_S)),
    )


def render(clips: Sequence[Clip], out: Path, part: Path) -> None:
    """Speak clips into files below ``out``, then write ``part``, which says that they are there."""
    rows = []
    for clip in clips:
        utterance = speak(clip.text, clip.voice)
        lead = round(clip.lead_s * SAMPLE_RATE)
        audio = np.pad(_leveled(utterance, clip.level_db), (lead, round(clip.tail_s * SAMPLE_RATE)))
        write_audio(out / clip.path, audio)  # FLAC, by the name
        rows.append(
            [
                len(audio),
                lead / SAMPLE_RATE,
                len(utterance.audio) / SAMPLE_RATE,
                [
                    (word, lead / SAMPLE_RATE + a, lead / SAMPLE_RATE + b)
                    for word, a, b in utterance.words
                ],
            ]
        )
    write_json(part, rows)


def rendered(part: Path) -> list[Rendered]:
    """Read what `render` wrote about its clips."""
    rows = json.loads(part.read_text(encoding="utf-8"))
    return [
        Rendered(samples, start_s, duration_s, [(word, a, b) for word, a, b in words])
        for samples, start_s, duration_s, words in rows
    ]


def _leveled(utterance: Utterance, level_db: float) -> Audio:
    """Return the speech at ``level_db`` below full scale (RMS), or less where it would clip."""
    audio = utterance.audio
    gain = 10 ** (level_db / 20) / np.sqrt(np.mean(audio**2))
    return audio * np.float32(min(gain, _PEAK / np.abs(audio).max()))


def _deal(
    variants: list[str], shares: dict[str, float], generator: np.random.Generator
) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return (for clips, for babble) of each split; at least one of each."""
    shuffled = [str(variant) for variant in generator.permutation(variants)]
    babble, rest = shuffled[:_BABBLE_VARIANTS], shuffled[_BABBLE_VARIANTS:]
    dev, test = (max(1, round(shares[split] * len(rest))) for split in ("dev", "test"))
    parts = {"dev": rest[:dev], "test": rest[dev : dev + test], "train": rest[dev + test :]}
    return {split: (tuple(parts[split]), (babble[i],)) for i, split in enumerate(SPLITS)}
