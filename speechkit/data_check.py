"""The data check: everything that is wrong with the audio of a manifest, clip by clip."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut
from rich.console import Console
from rich.progress import track
from rich.table import Table

from speechkit import manifests
from speechkit.audio import (
    SAMPLE_RATE,
    Audio,
    chunks,
    file_of,
    info,
    load,
    load_cut,
    plain_file,
)
from speechkit.errors import AudioError
from speechkit.ranges import require
from speechkit.reports import console_for_tables, markdown_table, provenance, write_report
from speechkit.stored_features import load_features, stored_form

# in the order of the table: what makes a clip unusable first
KINDS = (
    "missing",
    "broken",
    "empty",
    "nan",
    "rate",
    "overlap",
    "duration",
    "duplicate",
    "clipped",
    "silent",
    "tail",
)
_PIECE_S = 30.0
_MIN_CLIPS_FOR_TAILS = 10
_ROWS_ON_CONSOLE = 50


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What counts as a finding.

    Parameters
    ----------
    full_scale
        the magnitude from which a sample counts as clipped: below 1, since lossy codecs blur.
    clipped_share
        a clip is clipped if at least this share of its samples, and two of them, are.
    silence_dbfs
        a clip with a root mean square below this is silent.
    duration_tolerance_s
        how far a file may differ from the duration that the manifest gives.
    tail_factor
        a clip is in a tail if it is this many times shorter than the 0.5th percentile of
        durations, or longer than the 99.5th.
    """

    full_scale: float = 0.98
    clipped_share: float = 5e-5
    silence_dbfs: float = -60.0
    duration_tolerance_s: float = 0.02
    tail_factor: float = 2.0

    def __post_init__(self) -> None:
        require(self, "full_scale", "clipped_share", "duration_tolerance_s", at_least=0)
        require(self, "tail_factor", at_least=1)
        require(self, "silence_dbfs")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one clip (or speaker, for an overlap)."""

    kind: str
    id: str
    detail: str


@dataclass
class Level:
    """Running statistics over the pieces of a clip."""

    samples: int = 0
    clipped: int = 0
    peak: float = 0.0
    energy: float = 0.0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, piece: Audio, full_scale: float) -> None:
        """Take the next piece into account."""
        magnitude = np.abs(piece)
        self.samples += len(piece)
        self.clipped += int((magnitude >= full_scale).sum())
        self.peak = max(self.peak, float(magnitude.max(initial=0.0)))
        self.energy += float(np.dot(piece.astype(np.float64), piece))
        self.digest.update(piece.tobytes())

    @property
    def rms(self) -> float:
        """Return the root mean square, full scale being 1."""
        return math.sqrt(self.energy / self.samples) if self.samples else 0.0


def check(
    cuts: list[Path],
    *,
    out: Path | None = None,
    sample_rate: int = SAMPLE_RATE,
    limits: Limits = Limits(),
) -> int:
    """Check every clip of a manifest; exit 1 with a table if anything is wrong.

    Finds missing, broken and empty files, NaN, other sample rates, durations unlike the
    manifest's, equal audio, clipping, silence, unusually short or long clips, and speakers that
    occur in more than one split. Of clips that are features alone, finds those that cannot be read
    or hold NaN.

    Parameters
    ----------
    cuts
        a manifest, or a folder with one; its splits are those that the corpus came with. Of
        several, such as TRAIN TEST, each is a split.
    out
        a folder for report.json and report.md, which list all findings.
    sample_rate
        the rate that files should have.
    """
    sources = [str(path) for path in cuts]
    clips = [(source, cut) for source in sources for cut in manifests.read(source)]
    by_split = [(_split(cut, source, len(sources) > 1), cut) for source, cut in clips]
    findings = check_clips(by_split, sample_rate=sample_rate, limits=limits)
    if out is not None:
        everything = [cut for _, cut in clips]
        data = {", ".join(sources): manifests.fingerprint(everything)}
        write_report(out, _report(findings, len(clips), data, limits), _markdown(findings, clips))
    _show(findings, len(clips))
    return 1 if findings else 0


def check_clips(clips: list[tuple[str, Cut]], *, sample_rate: int, limits: Limits) -> list[Finding]:
    """Return all findings over (split, clip) pairs, the gravest kinds first.

    Files are read piece by piece, so memory does not grow with their length.
    """
    findings = []
    same: dict[bytes, str] = {}
    console = Console(stderr=True)
    for split, cut in track(
        clips, "checking", console=console, disable=not console.is_terminal, transient=True
    ):
        if cut.has_features and not cut.has_recording:
            findings += _feature_findings(cut)
            continue
        if not cut.has_recording:
            findings.append(Finding("missing", cut.id, "has neither audio nor features"))
            continue
        level = Level()
        try:
            findings += _header_findings(cut, sample_rate, limits)
            for piece in _pieces(cut):
                level.add(piece, limits.full_scale)
        except AudioError as error:
            findings.append(_unreadable(cut, error))
            continue
        findings += _level_findings(cut, level, limits)
        name = f"{cut.id} ({split})" if split else cut.id
        first = same.setdefault(level.digest.digest(), name)
        if first != name and level.peak > 0:
            findings.append(Finding("duplicate", cut.id, f"same samples as {first}"))
    findings += _overlaps(clips) + _tails([cut for _, cut in clips], limits)
    return sorted(findings, key=lambda finding: KINDS.index(finding.kind))


def _split(cut: Cut, source: str, several: bool) -> str:
    if several:
        return source
    return manifests.split_of(cut) or ""


def _pieces(cut: Cut) -> Iterator[Audio]:
    """Yield the audio of a cut at its file's own rate, half a minute at a time."""
    path = plain_file(cut)
    if path is None:
        yield load_cut(cut, sample_rate=cut.sampling_rate)
        return
    header = info(path)
    rate = header.samplerate
    first, last = round(cut.start * rate), min(round(cut.end * rate), header.frames)
    if first >= header.frames:
        return  # named as a finding of the header
    size = round(_PIECE_S * rate)
    for start in range(first, max(last, first + 1), size):
        length = min(size, last - start)
        yield load(path, sample_rate=rate, offset_s=start / rate, duration_s=length / rate)


def _header_findings(cut: Cut, sample_rate: int, limits: Limits) -> list[Finding]:
    path = file_of(cut)
    if path is None:
        return []
    next(chunks(path, chunk_s=0.1))  # its errors say more than those of soundfile
    header = info(path)
    found = []
    if header.samplerate != sample_rate:
        found.append(Finding("rate", cut.id, f"{header.samplerate} Hz, not {sample_rate} Hz"))
    elif header.samplerate != cut.sampling_rate:
        detail = f"{header.samplerate} Hz, not {cut.sampling_rate} Hz as in the manifest"
        found.append(Finding("rate", cut.id, detail))
    length_s = header.frames / header.samplerate
    whole = cut.start == 0 and cut.duration == cut.recording.duration
    excess_s = length_s - cut.end
    if excess_s < -limits.duration_tolerance_s or (
        whole and excess_s > limits.duration_tolerance_s
    ):
        detail = f"the file is {length_s:.3f} s long; the manifest reaches {cut.end:.3f} s"
        found.append(Finding("duration", cut.id, detail))
    return found


def _feature_findings(cut: Cut) -> list[Finding]:
    """Return what is wrong with features that come without audio."""
    form = stored_form([cut])
    assert form is not None
    try:
        load_features(cut, form)
    except AudioError as error:
        return [Finding("broken", cut.id, str(error))]
    return []


def _unreadable(cut: Cut, error: AudioError) -> Finding:
    reason = str(error).removeprefix(f"{file_of(cut)}: ").removeprefix(f"{cut.id}: ")
    marks = {"no such file": "missing", "is empty": "empty", "holds no samples": "empty"}
    marks["holds NaN"] = "nan"
    kind = next((kind for mark, kind in marks.items() if reason.startswith(mark)), "broken")
    return Finding(kind, cut.id, str(error))


def _level_findings(cut: Cut, level: Level, limits: Limits) -> list[Finding]:
    found: list[Finding] = []
    if not level.samples:
        return found
    share = level.clipped / level.samples
    if level.clipped >= 2 and share >= limits.clipped_share:
        found.append(Finding("clipped", cut.id, f"{share:.2%} of the samples are at full scale"))
    if _decibels(level.rms) < limits.silence_dbfs:
        detail = f"RMS {_decibels(level.rms):.1f} dBFS, peak {_decibels(level.peak):.1f} dBFS"
        found.append(Finding("silent", cut.id, detail))
    return found


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, 1e-10))


def _overlaps(clips: list[tuple[str, Cut]]) -> list[Finding]:
    splits_of: dict[str, Counter[str]] = defaultdict(Counter)
    for split, cut in clips:
        speaker = manifests.speaker_of(cut)
        if split and speaker is not None:
            splits_of[speaker][split] += 1
    return [
        Finding(
            "overlap",
            speaker,
            "speaker in " + ", ".join(f"{split} ({n} clips)" for split, n in splits.items()),
        )
        for speaker, splits in splits_of.items()
        if len(splits) > 1
    ]


def _tails(cuts: list[Cut], limits: Limits) -> list[Finding]:
    if len(cuts) < _MIN_CLIPS_FOR_TAILS:
        return []
    durations = np.array([cut.duration for cut in cuts])
    # taken towards the middle, so that in a small set the outlier is not its own percentile
    low = np.percentile(durations, 0.5, method="higher") / limits.tail_factor
    high = np.percentile(durations, 99.5, method="lower") * limits.tail_factor
    return [
        Finding("tail", cut.id, f"{cut.duration:.3f} s; nearly all are {low:.3f} to {high:.3f} s")
        for cut in cuts
        if not low <= cut.duration <= high
    ]


def _counts(findings: list[Finding]) -> dict[str, int]:
    counts = Counter(finding.kind for finding in findings)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def _report(
    findings: list[Finding], clips: int, data: dict[str, str], limits: Limits
) -> dict[str, Any]:
    return {
        **provenance(seed=None, data=data),
        "limits": asdict(limits),
        "clips": clips,
        "counts": _counts(findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _markdown(findings: list[Finding], clips: list[tuple[str, Cut]]) -> str:
    rows = [(finding.kind, finding.id, finding.detail) for finding in findings]
    table = markdown_table(("finding", "clip", "detail"), rows) if rows else "Nothing found."
    return f"# Data check\n\n{_summary(findings, len(clips))}\n\n{table}"


def _summary(findings: list[Finding], clips: int) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in _counts(findings).items())
    return f"{clips} clips checked; {counts or 'nothing found'}."


def _show(findings: list[Finding], clips: int) -> None:
    console = console_for_tables()
    if findings:
        table = Table("finding", "clip", "detail")
        for finding in findings[:_ROWS_ON_CONSOLE]:
            table.add_row(finding.kind, finding.id, finding.detail)
        console.print(table)
    if len(findings) > _ROWS_ON_CONSOLE:
        rest = len(findings) - _ROWS_ON_CONSOLE
        console.print(f"... and {rest} more; --out DIR writes all of them to DIR/report.md")
    console.print(_summary(findings, clips))
