"""The embedded corpus: keywords, confusable phrases and sentences, spoken by espeak-ng.

    OUT/cuts.jsonl.gz                     all clips; written last, so it marks a finished corpus
    OUT/{train,dev,test}/cuts.jsonl.gz    the clips of a split, and their audio beside it
    OUT/noise/cuts.jsonl.gz               noises, and the babble of voices that no clip has
    OUT/noise/{train,dev,test}.jsonl.gz   the same, a split each
    OUT/rir/cuts.jsonl.gz                 simulated room impulse responses
    OUT/synthetic.json                    the configuration

Equal configurations give equal bytes, however many processes make them. Splits share neither a
timbre nor a sentence, and two accents are heard in the test split only.
"""

import logging
import multiprocessing
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem

from speechkit import manifests
from speechkit.acoustics import NOISES, T60_S, babble, noise, room_impulse_response
from speechkit.audio import SAMPLE_RATE, Audio, write_audio
from speechkit.claims import claim
from speechkit.errors import JobError, RequestError
from speechkit.espeak import phonemes, speak
from speechkit.files import locked
from speechkit.phrases import confusables, normalize, sentence, without
from speechkit.synthetic_clips import (
    SPLITS,
    Clip,
    Rendered,
    Voices,
    deal_voices,
    plan_clip,
    random_state,
    render,
    rendered,
)

logger = logging.getLogger(__name__)

_CONFIG_NAME = "synthetic.json"
_PARTS_NAME = ".parts"
_PART_CLIPS = 64
_NOISE_S = 10.0
_NOISES_PER_KIND = {"train": 2, "dev": 1, "test": 1}
_ROOMS = {"train": 28, "dev": 6, "test": 6}
_BABBLE_SPEAKERS = (3, 8)


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What to make.

    Parameters
    ----------
    keywords
        lower-case words of a to z, such as "computer" or "hey computer".
    clips_per_keyword, clips_per_confusable
        over all splits.
    confusables_per_keyword
        how many near-sounding phrases; none contains the keyword.
    negative_hours
        of sentences without the keywords, over all splits (within some percent).
    dev_share, test_share
        of voices and clips; the rest is for training.
    seed
        of everything that is drawn; equal configurations give equal bytes.
    workers
        processes; the result does not depend on it.
    """

    keywords: tuple[str, ...] = ("computer",)
    clips_per_keyword: int = 1200
    confusables_per_keyword: int = 40
    clips_per_confusable: int = 12
    negative_hours: float = 3.0
    dev_share: float = 0.12
    test_share: float = 0.18
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if len(set(self.keywords)) != len(self.keywords):
            raise RequestError(f"keywords {', '.join(self.keywords)}: give each once")
        for keyword in self.keywords:
            if not keyword or normalize(keyword) != keyword:
                raise RequestError(
                    f"keyword {keyword!r}: must be lower-case words of the letters a to z, "
                    "separated by single spaces; write numbers out"
                )
        counts = ("clips_per_keyword", "confusables_per_keyword", "clips_per_confusable")
        for key in (*counts, "negative_hours"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise RequestError(f"{key} {getattr(self, key)}: must be at least 0")
        if min(self.dev_share, self.test_share) <= 0 or self.dev_share + self.test_share > 0.8:
            raise RequestError(
                f"dev_share {self.dev_share} and test_share {self.test_share}: must be positive "
                "and leave at least 0.2 for training"
            )
        if self.workers < 1:
            raise RequestError(f"workers {self.workers}: give at least 1")

    @property
    def shares(self) -> dict[str, float]:
        """Return each split's share."""
        train_share = 1 - self.dev_share - self.test_share
        return {"train": train_share, "dev": self.dev_share, "test": self.test_share}


def prepare(out: Path, config: SyntheticConfig) -> dict[str, CutSet]:
    """Make the corpus in ``out``, or finish one that was interrupted; return its splits.

    Raises
    ------
    RequestError
        if the extra ``synth`` is missing, a keyword cannot be spoken, or ``out`` holds a corpus
        of another configuration.
    """
    wanted = asdict(config)
    del wanted["workers"]
    begun = (out / _CONFIG_NAME).exists()
    if not begun and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out}: holds something else; give a new or empty folder")
    claim(out, wanted, file=_CONFIG_NAME)
    with locked(out):  # one process speaks, another that asks for the same waits
        if not (out / manifests.CUTS_NAME).exists():
            _make(out, config)
        shutil.rmtree(out / _PARTS_NAME, ignore_errors=True)
    return _by_split(manifests.read(out))


def _make(out: Path, config: SyntheticConfig) -> None:
    cuts = CutSet.from_cuts(list(_speak_all(plan(config), out, workers=config.workers)))
    for split, of_split in _by_split(cuts).items():
        manifests.write(of_split, out / split / manifests.CUTS_NAME)
    _write_noises(out / "noise", config)
    _write_rooms(out / "rir", config)
    manifests.write(cuts, out / manifests.CUTS_NAME)
    logger.info("%s: %s", out, manifests.summary(cuts))


def _by_split(cuts: CutSet) -> dict[str, CutSet]:
    return {
        split: CutSet.from_cuts(cut for cut in cuts if manifests.split_of(cut) == split)
        for split in SPLITS
    }


def plan(config: SyntheticConfig) -> list[Clip]:
    """Return the clips of a corpus, without speaking them."""
    voices, _ = deal_voices(config.seed, config.shares)
    clips: list[Clip] = []
    for keyword, sound in zip(config.keywords, phonemes(config.keywords), strict=True):
        if not sound.strip():
            raise RequestError(f"keyword {keyword!r}: has no sound; give words that can be said")
        clips += _repeated(keyword, keyword, config, voices)
        near = confusables(keyword, config.confusables_per_keyword)
        for phrase in without(near, config.keywords):
            clips += _repeated(phrase, None, config, voices)
    clips = list({clip.id: clip for clip in clips}.values())  # keywords may share confusables
    return clips + list(_sentences(config, voices))


def _repeated(
    text: str, label: str | None, config: SyntheticConfig, voices: dict[str, Voices]
) -> Iterator[Clip]:
    """Yield the clips of a keyword (if labelled) or of a confusable phrase."""
    kind = "confusable" if label is None else "keyword"
    count = config.clips_per_confusable if label is None else config.clips_per_keyword
    edges = (
        round(count * config.test_share),
        round(count * (config.test_share + config.dev_share)),
    )
    for i in range(count):
        split = "test" if i < edges[0] else "dev" if i < edges[1] else "train"
        yield plan_clip(
            f"{kind}-{text.replace(' ', '_')}-{i:05d}",
            split=split,
            kind=kind,
            text=text,
            label=label,
            voices=voices[split],
            seed=config.seed,
        )


def _sentences(config: SyntheticConfig, voices: dict[str, Voices]) -> Iterator[Clip]:
    spoken: set[str] = set()
    for split in SPLITS:
        left_s = config.negative_hours * config.shares[split] * 3600
        texts = _fresh_texts(random_state(config.seed, f"{split} sentences"), config, spoken)
        number = 0
        while left_s > 0:
            clip = plan_clip(
                f"sentence-{split}-{number:06d}",
                split=split,
                kind="sentence",
                text=next(texts),
                label=None,
                voices=voices[split],
                seed=config.seed,
            )
            left_s -= _expected_s(clip)
            number += 1
            yield clip


def _fresh_texts(generator: Any, config: SyntheticConfig, spoken: set[str]) -> Iterator[str]:
    """Yield sentences that hold no keyword and are not in ``spoken``, and put them there."""
    while True:
        for text in without([sentence(generator) for _ in range(256)], config.keywords):
            if text not in spoken:
                spoken.add(text)
                yield text


def _expected_s(clip: Clip) -> float:
    """Return roughly how long a clip will be; fitted to 2,242 sentences of this corpus."""
    return clip.lead_s + clip.tail_s + 0.28 + 8.3 * len(clip.text) / clip.voice.rate_wpm


def _speak_all(clips: list[Clip], out: Path, *, workers: int) -> Iterator[MonoCut]:
    """Speak what is not there yet, in parts, and yield the cuts in order."""
    parts = {
        out / _PARTS_NAME / f"{first:07d}.json": clips[first : first + _PART_CLIPS]
        for first in range(0, len(clips), _PART_CLIPS)
    }
    missing = [(part, of_part) for part, of_part in parts.items() if not part.exists()]
    logger.info("%s: %d clips, %d of %d parts to do", out, len(clips), len(missing), len(parts))
    (out / _PARTS_NAME).mkdir(exist_ok=True)
    if workers == 1 or len(missing) < 2:
        for part, of_part in missing:
            render(of_part, out, part)
    else:
        _render_in_processes(missing, out, workers)
    for part, of_part in parts.items():
        for clip, result in zip(of_part, rendered(part), strict=True):
            yield _cut(clip, result, out)


def _render_in_processes(missing: list[tuple[Path, list[Clip]]], out: Path, workers: int) -> None:
    # spawned, because a fork of a process with threads (torch's) may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(render, clips, out, part) for part, clips in missing]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise JobError(f"{out}: a worker process died; run it again to finish") from error
            raise


def _cut(clip: Clip, result: Rendered, out: Path) -> MonoCut:
    words = [
        AlignmentItem(symbol=normalize(word), start=round(a, 4), duration=round(b - a, 4))
        for word, a, b in result.words
    ]
    accent, _, timbre = clip.voice.name.partition("+")
    supervision = SupervisionSegment(
        id=clip.id,
        recording_id=clip.id,
        start=result.start_s,
        duration=result.duration_s,
        text=clip.text,
        language="English",
        # splits are told apart by the timbre, whatever accent it speaks with
        speaker=timbre or accent,
        custom={
            "accent": accent,
            "label": clip.label,
            "text_norm": normalize(clip.text),
            "split": clip.split,
            "kind": clip.kind,
        },
        alignment={"word": words},
    )
    return _plain_cut(clip.id, out / clip.path, result.samples, supervisions=[supervision])


def _plain_cut(id_: str, path: Path, samples: int, **fields: Any) -> MonoCut:
    recording = Recording(
        id=id_,
        sources=[AudioSource(type="file", channels=[0], source=str(path))],
        sampling_rate=SAMPLE_RATE,
        num_samples=samples,
        duration=samples / SAMPLE_RATE,
    )
    return MonoCut(
        id=id_, start=0.0, duration=recording.duration, channel=0, recording=recording, **fields
    )


def _write_noises(folder: Path, config: SyntheticConfig) -> None:
    _, crowds = deal_voices(config.seed, config.shares)
    cuts = []
    for split, count in _NOISES_PER_KIND.items():
        for kind in (*NOISES, "babble"):
            for i in range(count):
                id_ = f"noise-{split}-{kind}-{i}"
                generator = random_state(config.seed, id_)
                if kind == "babble":
                    audio = _babble(crowds[split], config.keywords, generator)
                else:
                    audio = noise(kind, _NOISE_S, generator)
                cuts.append(_write_plain(folder, id_, audio, {"split": split, "kind": kind}))
    for split in SPLITS:
        of_split = [cut for cut in cuts if cut.custom["split"] == split]
        manifests.write(of_split, folder / f"{split}.jsonl.gz")
    manifests.write(cuts, folder / manifests.CUTS_NAME)


def _babble(crowd: Voices, keywords: Iterable[str], generator: Any) -> Audio:
    """Return overlapping talk, of which no sentence holds a keyword."""
    keywords = list(keywords)
    speech = []
    for _ in range(int(generator.integers(*_BABBLE_SPEAKERS))):
        texts: list[str] = []
        while not texts:  # all of them may hold a keyword
            texts = without([sentence(generator) for _ in range(4)], keywords)
        speech.append(speak(" ".join(texts), crowd.draw(generator)).audio)
    return babble(speech, _NOISE_S, generator)


def _write_rooms(folder: Path, config: SyntheticConfig) -> None:
    cuts = []
    for split, count in _ROOMS.items():
        for i in range(count):
            id_ = f"rir-{split}-{i:02d}"
            generator = random_state(config.seed, id_)
            t60_s = float(generator.uniform(*T60_S))
            audio = room_impulse_response(t60_s, generator)
            custom = {"split": split, "t60_s": round(t60_s, 4)}
            cuts.append(_write_plain(folder, id_, audio, custom))
    manifests.write(cuts, folder / manifests.CUTS_NAME)


def _write_plain(folder: Path, id_: str, audio: Audio, custom: dict[str, Any]) -> MonoCut:
    """Write audio without speech; its cut has no supervision, which a mix would inherit."""
    path = folder / "audio" / f"{id_}.flac"
    write_audio(path, audio)
    return _plain_cut(id_, path, len(audio), custom=custom)
