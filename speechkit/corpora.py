"""Corpora in their published layouts, as cuts: one function a corpus, and the verb over them."""

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from speechkit import an4, manifests, nemo
from speechkit.audio import SUFFIXES, file_of, files_below, info
from speechkit.errors import AudioError, RequestError
from speechkit.synthetic import SyntheticConfig
from speechkit.synthetic import prepare as prepare_synthetic

logger = logging.getLogger(__name__)

AN4 = "an4_features"
NOISE, MUSIC, SPEECH, IMPULSE_RESPONSE = "_noise_", "_music_", "_speech_", "rir"
SILENCE = "_silence_"

_CLAIM = "corpus.json"
_SPEAKER = re.compile(r"(?P<speaker>.+)_nohash_\d+")
_BACKGROUND = "_background_noise_"

Row = dict[str, Any]
Splits = dict[str, CutSet]


def prepare(
    corpus: str,
    *,
    root: Path | None = None,
    out: Path,
    synthetic: SyntheticConfig = SyntheticConfig(),
) -> None:
    """Turn a corpus on disk into a folder that every other verb takes.

    Writes OUT/SPLIT/cuts.jsonl.gz for each split, and last OUT/cuts.jsonl.gz with all of them. The
    audio stays where it is. A portion of AN4 is one split: OUT/cuts.jsonl.gz, with the features
    beside it.

    Parameters
    ----------
    corpus
        speech_commands (version 1 or 2), keyword_folders (a folder for each word), musan,
        rir_noises, an4_features (a portion of AN4 as cepstra: manifest.jsonl and feats.npz), or
        synthetic (made here, no root).
    root
        the folder of the unpacked corpus.
    out
        the folder to write to.
    synthetic
        what the synthetic corpus holds.
    """
    if corpus == "synthetic":
        prepare_synthetic(out, synthetic)  # writes its splits, piece by piece
        return
    if corpus not in CORPORA and corpus != AN4:
        allowed = ", ".join([*CORPORA, AN4, "synthetic"])
        raise RequestError(f"corpus {corpus!r} is not known; give one of {allowed}")
    if root is None or not root.is_dir():
        raise RequestError(f"root {root}: no such folder; give the unpacked corpus {corpus}")
    if corpus == AN4:
        an4.prepare(root, out)  # its features are written, not left where they are
        return
    splits = CORPORA[corpus](root)
    if not splits:
        raise RequestError(f"root {root}: holds no audio of {corpus}; give the unpacked corpus")
    here = os.path.abspath(root)
    manifests.claim_set(out, {"corpus": corpus, "root": here}, file=_CLAIM)
    _name_left_out(splits, root)
    write_splits(splits, out)


def _name_left_out(splits: Splits, root: Path) -> None:
    taken = {os.path.abspath(str(file_of(cut))) for cuts in splits.values() for cut in cuts}
    left = [path for path in files_below(root) if os.path.abspath(path) not in taken]
    if left:
        examples = ", ".join(path.relative_to(root).as_posix() for path in left[:3])
        logger.warning(
            "%d audio files do not lie where this corpus has its clips, left out: %s%s",
            len(left),
            examples,
            ", ..." if len(left) > 3 else "",
        )


def write_splits(splits: Splits, out: Path) -> None:
    """Write OUT/SPLIT/cuts.jsonl.gz for each split, then OUT/cuts.jsonl.gz with all.

    Each supervision's custom field gets the name of its split. The presence of the last file means
    that all are there, so one of an earlier run is removed first.
    """
    (out / manifests.CUTS_NAME).unlink(missing_ok=True)
    for split, cuts in splits.items():
        for cut in cuts:
            for supervision in cut.supervisions:
                supervision.custom = {**(supervision.custom or {}), "split": split}
        manifests.write(cuts, out / split / manifests.CUTS_NAME)
        logger.info("%s: %s", out / split, manifests.summary(cuts))
    everything = (cut for cuts in splits.values() for cut in cuts)
    manifests.write(everything, out / manifests.CUTS_NAME)


def prepare_speech_commands(root: Path) -> Splits:
    """Return train, valid, test (by the official lists) and noise of Speech Commands, v1 or v2.

    Silence, the twelfth class of the task, has no clips: they are seconds of the background
    recordings, of each the first 80 % for train, then a tenth each for valid and test.

    lhotse's recipe is of no use here: it takes its test split from a second archive in place of
    testing_list.txt, demands both archives as sibling folders of fixed names, and puts a minute of
    background noise among the one-second clips of "valid".
    """
    lists = {"valid": root / "validation_list.txt", "test": root / "testing_list.txt"}
    if not all(path.is_file() for path in lists.values()):
        raise _layout(
            root,
            "validation_list.txt, testing_list.txt and a folder for each word",
            "Google Speech Commands (v0.01 or v0.02, from its authors' or TensorFlow's storage)",
        )
    split_of = {name: split for split, path in lists.items() for name in _listed(path)}
    rows: dict[str, list[Row]] = {"train": [], "valid": [], "test": [], "noise": []}
    for row in _word_rows(root):
        rows[split_of.get(row["audio_filepath"], "train")].append(row)
    for path in _audio_files(root / _BACKGROUND):
        rows["noise"].append(_row(path, root, NOISE))
        for split, row in _silences(path, root):
            rows[split].append(row)
    return _splits(rows, root)


def _silences(path: Path, root: Path) -> Iterable[tuple[str, Row]]:
    """Yield the whole seconds of a background recording, and which split has each.

    All but the first, since a clip from the beginning on has the id of the whole file.
    """
    try:
        header = info(path)
    except AudioError:
        return  # named when its row is read
    seconds = header.frames // header.samplerate
    for second in range(1, seconds):
        split = "train" if second < 0.8 * seconds else "valid" if second < 0.9 * seconds else "test"
        yield split, _row(path, root, SILENCE) | {"text": "", "offset": second, "duration": 1.0}


def prepare_keyword_folders(root: Path) -> Splits:
    """Return split "all" of a tree with a folder for each word.

    The speaker is read off names like SPEAKER_nohash_0.wav, and unknown elsewhere.
    """
    rows = list(_word_rows(root))
    if not rows:
        raise _layout(root, "a folder for each word with audio files in it", "own recordings")
    noise = [_row(path, root, NOISE) for path in _audio_files(root / _BACKGROUND)]
    return _splits({"all": rows, "noise": noise}, root)


def prepare_musan(root: Path) -> Splits:
    """Return music, speech and noise of MUSAN.

    lhotse's recipe, and that of RIRS_NOISES, stops at one broken file; here it is named, and what
    uses the cuts leaves it out.
    """
    labels = {"music": MUSIC, "speech": SPEECH, "noise": NOISE}
    if not all((root / part).is_dir() for part in labels):
        raise _layout(root, "the folders music, speech and noise", "MUSAN (OpenSLR 17)")
    rows = {
        part: [_row(path, root, label) for path in files_below(root / part)]
        for part, label in labels.items()
    }
    return _splits(rows, root)


def prepare_rir_noises(root: Path) -> Splits:
    """Return sim_rir, real_rir (label rir), iso_noise and point_noise of RIRS_NOISES."""
    simulated, real = root / "simulated_rirs", root / "real_rirs_isotropic_noises"
    point = root / "pointsource_noises"
    if not all(folder.is_dir() for folder in (simulated, real, point)):
        folders = ", ".join(folder.name for folder in (point, real, simulated))
        raise _layout(root, f"the folders {folders}", "RIRS_NOISES (OpenSLR 28)")
    recorded = files_below(real)
    rows = {
        "sim_rir": [_row(path, root, IMPULSE_RESPONSE) for path in files_below(simulated)],
        "real_rir": [
            _row(path, root, IMPULSE_RESPONSE) for path in recorded if "noise" not in path.stem
        ],
        "iso_noise": [_row(path, root, NOISE) for path in recorded if "noise" in path.stem],
        "point_noise": [_row(path, root, NOISE) for path in files_below(point)],
    }
    splits = _splits(rows, root)
    if "real_rir" in splits:
        splits["real_rir"] = splits["real_rir"].map(_of_first_microphone)
    return splits


def _of_first_microphone(cut: Cut) -> Cut:
    """Return a response as the first of its microphones heard it: the mean of several is a comb."""
    path = file_of(cut)
    try:
        channels = 1 if path is None else info(path).channels
    except AudioError:
        return cut  # it was named already, and loading refuses it
    if channels == 1:
        return cut
    source = AudioSource(type="file", channels=list(range(channels)), source=str(path))
    recording = fastcopy(cut.recording, sources=[source], channel_ids=source.channels)
    return fastcopy(cut, recording=recording, channel=0)


CORPORA: dict[str, Callable[[Path], Splits]] = {
    "speech_commands": prepare_speech_commands,
    "keyword_folders": prepare_keyword_folders,
    "musan": prepare_musan,
    "rir_noises": prepare_rir_noises,
}


def _listed(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: is no UTF-8 text ({error})") from error


def _layout(root: Path, expected: str, source: str) -> RequestError:
    return RequestError(f"root {root}: expected {expected}; give the unpacked folder of {source}")


def _audio_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def _word_rows(root: Path) -> Iterable[Row]:
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name == _BACKGROUND or folder.name.startswith("."):
            continue
        paths = _audio_files(folder)
        if not paths:
            logger.warning("%s: holds no audio file, so there is no such word", folder)
        for path in paths:
            match = _SPEAKER.fullmatch(path.stem)
            yield {
                "audio_filepath": path.relative_to(root).as_posix(),
                "text": folder.name,
                "label": folder.name,
                "speaker": match["speaker"] if match else None,
            }


def _row(path: Path, root: Path, label: str) -> Row:
    return {
        "audio_filepath": path.relative_to(root).as_posix(),
        "text": "" if label == NOISE else None,
        "label": label,
    }


def _splits(rows: dict[str, list[Row]], root: Path) -> Splits:
    """Return the cuts of each split that has any."""
    # rows name their audio relative to the root, as those of a manifest in it would
    here = Path(os.path.abspath(root)) / "manifest.jsonl"
    return {
        split: CutSet.from_cuts(nemo.to_cuts(enumerate(of_split, start=1), here))
        for split, of_split in rows.items()
        if of_split
    }
