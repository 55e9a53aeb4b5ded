"""Long audio: what is measured in processes of their own, scored in places, and resumed."""

import json
import os
import signal
import time

import numpy as np
import pytest

from speechkit import joining, manifests
from speechkit.asr import long_form
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.long_form import LongFormConfig, Spoken, compare
from speechkit.asr.long_report import LongAudioConfig, measure
from speechkit.asr.step_cost import StepConfig, scores_gib
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import RequestError
from speechkit.isolated import GIB, Limits, run_isolated
from speechkit.joining import JoinConfig

LIMITS = Limits(seconds=60, gib=4)
TINY = SparseConfig(
    subsampling=SubsamplingConfig(kind="1d", channels=8), layers=1, width=16, heads=2
)
STEPS = StepConfig(
    lengths_s=(1.0,), patterns=("Local(8)",), encoder=TINY, features=8, tokens=5, steps=1
)
SEAMS = LongFormConfig(chunk_s=3.0, overlap_s=1.0, near_s=0.3)


@pytest.fixture(scope="module")
def clips(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    joining.join(corpus[0], folder, JoinConfig(clips=None, length_s=(8, 8), recordings=1))
    return list(manifests.read(folder / "utterances.jsonl.gz"))


def test_a_process_of_its_own_has_its_own_memory():
    imports = run_isolated(eval, "0", limits=LIMITS).peak_bytes
    held = np.ones(GIB // 16)  # half a GiB, which is not the child's
    assert abs(run_isolated(eval, "0", limits=LIMITS).peak_bytes - imports) < held.nbytes // 4
    found = run_isolated(eval, "len(b'x' * (300 << 20))", limits=LIMITS)
    assert (found.value, found.stopped) == (300 << 20, None)
    assert found.peak_bytes - imports == pytest.approx(300 << 20, rel=0.4)


def test_limits_and_errors_of_a_process():
    assert run_isolated(time.sleep, 60, limits=Limits(seconds=0.2)).stopped == "over 0.2 s"
    assert run_isolated(time.sleep, 60, limits=Limits(gib=0.01)).stopped == "over 0.01 GiB"
    ended = run_isolated(os._exit, 3, limits=LIMITS).stopped
    assert ended == "the process ended with status 3"
    killed = run_isolated(signal.raise_signal, signal.SIGKILL, limits=LIMITS)
    assert killed.stopped == "the process ended with status -9: most likely out of memory"
    # what cannot be sent is told in words
    with pytest.raises(RuntimeError, match=r"(PicklingError|AttributeError|TypeError): .*pickle"):
        run_isolated(eval, "lambda: 1", limits=LIMITS)
    with pytest.raises(ValueError, match="invalid literal"):
        run_isolated(int, "x", limits=LIMITS)
    with pytest.raises(RequestError, match="positive"):
        Limits(seconds=0)


def test_scores_grow_with_the_square():
    assert scores_gib(STEPS, 40.0) == pytest.approx(1600 * scores_gib(STEPS, 1.0))
    # 25 frames, 2 heads, 4 bytes
    assert scores_gib(STEPS, 1.0) * GIB == pytest.approx(25 * 25 * 2 * 4)


def test_seams_are_where_the_transcriber_changes_chunks(trained):
    transcriber = Transcriber.load(trained, SEAMS.decoding("chunks"))
    frame_s = transcriber.recogniser.frame_s
    for duration_s in (2.5, 3.0, 3.1, 5.0, 5.2, 11.0):
        frames = round(duration_s / transcriber.recogniser.inputs.hop_s)
        starts, at = [], 0
        for start, end, keep in transcriber._spans(frames):
            starts.append(at * frame_s)
            at += len(range(start // 2, start // 2 + -(-(end - start) // 2))[keep])
        assert SEAMS.seams_s(duration_s) == pytest.approx(starts[1:], abs=2 * frame_s)


def test_errors_are_counted_where_they_are():
    said = Spoken(tuple("abcdef"), (0.5, 1.0, 2.4, 2.6, 4.0, 4.6), (0, 0, 1, 1, 2, 2))
    rows = [
        {"way": "one pass", "text": "a b c d e f", "seconds": 1.0},
        {"way": "chunks", "text": "a b c y d e", "seconds": 0.5},
        {"way": "utterances", "text": None, "seconds": None},
    ]
    one_pass, chunks = compare(said, rows, duration_s=5.0, config=SEAMS)  # one seam, at 2.5 s
    assert (one_pass["errors"], one_pass["seam_words"], one_pass["seams"]) == (0, 2, 1)
    # y was put in, f is missing
    assert (chunks["errors"], chunks["seam_errors"], chunks["against"]) == (2, 1, "one pass")
    assert chunks["wer_difference"]["value"] == pytest.approx(2 / 6)
    assert chunks["seam_wer_difference"]["value"] == pytest.approx(0.5)
    assert chunks["wer_difference"]["improved"] == 0


def test_no_share_is_wrong_of_nothing():
    said = Spoken(("a", "b"), (0.5, 1.0), (0, 0))
    rows = [{"way": way, "text": "a c", "seconds": 1.0} for way in ("one pass", "chunks")]
    assert "seam_wer_difference" not in compare(said, rows, duration_s=5.0, config=SEAMS)[1]
    with pytest.raises(RequestError, match="have no words to compare with"):
        compare(Spoken((), (), ()), rows, duration_s=5.0, config=SEAMS)


@pytest.mark.parametrize("field", ["chunk_s", "overlap_s", "near_s"])
def test_settings_are_finite(field):
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(RequestError, match=field):
            LongFormConfig(**{field: value})


def test_words_have_the_times_of_their_sounds(trained, clips):
    said = long_form.spoken(trained, clips)
    assert " ".join(said.words) == " ".join(clip.supervisions[0].text.lower() for clip in clips)
    assert list(said.times_s) == sorted(said.times_s)
    for time_s, number in zip(said.times_s, said.utterances, strict=True):
        assert clips[number].start <= time_s <= clips[number].end


def test_report_of_all_rows_which_are_measured_once(trained, clips, tmp_path):
    config = LongAudioConfig(steps=STEPS, long_form=SEAMS, limits=LIMITS)
    measure([trained], clips, out=tmp_path, config=config)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["stopped"] for row in report["steps"] + report["transcribed"]] == [None] * 4
    assert all(row["step_s"] > 0 for row in report["steps"])
    ways = {row["way"]: row for row in report["compared"][str(trained)]}
    assert list(ways) == ["one pass", "chunks", "utterances"]
    assert ways["utterances"]["wer"] < 0.2
    assert "paired" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "steps.png").exists()
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    measure([trained], clips, out=tmp_path, config=config)
    assert rows == {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
