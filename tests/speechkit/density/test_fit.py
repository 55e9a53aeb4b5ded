"""Training: what a run writes, that it resumes exactly, and that nothing is lost on a full disk."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from speechkit.density.artifact import Artifact
from speechkit.density.corpus import Stream
from speechkit.density.optimisation import (
    FitConfig,
    average_into,
    parameter_groups,
    rate,
    total_steps,
)
from speechkit.density.presets import Recipe
from speechkit.density.train import train_model
from speechkit.errors import JobError, RequestError
from tests.speechkit.density.helpers import TINY, periodic_corpus, tiny_model

ROOT = Path(__file__).parents[3]
CONFIG = FitConfig(
    steps=10,
    batch=4,
    warmup_steps=2,
    learning_rate=0.01,
    table_rate=1.0,
    validate_every=4,
    log_every=2,
)


class Killed(Exception):
    """Stands for the end of the process."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mortal(Stream):
    """A stream that ends the process when a window is asked for."""

    killed_at: int = -1

    def draw(self, number, *, length, seed):
        if number == self.killed_at:
            raise Killed(f"at window {number}")
        return super().draw(number, length=length, seed=seed)


def train(out, *, killed_at=None, config=CONFIG, model=TINY, corpus=None, **changes):
    corpus = corpus or periodic_corpus()
    if killed_at is not None:
        splits = dict(corpus.splits, train=Mortal(corpus.splits["train"].data, killed_at))
        corpus = dataclasses.replace(corpus, splits=splits)
    config = dataclasses.replace(config, **changes)
    return train_model(corpus, preset="tiny_text", out=out, model=model, config=config)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def without_times(lines):
    return [{k: v for k, v in line.items() if k != "elapsed_s"} for line in lines]


def state_of(out):
    return torch.load(out / "resume" / "last.ckpt", weights_only=True)


def assert_equal(some, other):
    assert some.keys() == other.keys()
    for name in some:
        assert torch.equal(some[name], other[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, train(out, ema=0.9)


def test_a_run_writes_model_log_and_state(uninterrupted):
    out, artifact = uninterrupted
    lines = log_of(out)
    assert [line["step"] for line in lines if "valid_bits_per_byte" in line] == [4, 8, 10]
    assert [line["step"] for line in lines if "bits_per_byte" in line] == [2, 4, 6, 8, 10]
    assert lines[0]["bits_per_byte"] == pytest.approx(8, abs=0.2)
    best = min(line["valid_bits_per_byte"] for line in lines if "valid_bits_per_byte" in line)
    assert artifact.about["valid_bits_per_byte"] == best < 7.5
    assert artifact.about["preset"] == "tiny_text"
    assert sorted(p.name for p in (out / "resume").iterdir()) == [".lock", "last.ckpt", "run.json"]
    assert json.loads((out / "train.json").read_text())["run"]["steps"] == 10
    assert_equal(Artifact.load(out / "model").model.state_dict(), artifact.model.state_dict())


@pytest.mark.parametrize("killed_at", [9, 16, 22, 39])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, uninterrupted, killed_at):
    out, artifact = uninterrupted
    with pytest.raises(Killed):
        train(tmp_path, ema=0.9, killed_at=killed_at)
    resumed = train(tmp_path, ema=0.9)
    assert_equal(resumed.model.state_dict(), artifact.model.state_dict())
    once, twice = state_of(out), state_of(tmp_path)
    assert_equal(once["state_dict"], twice["state_dict"])
    moments, others = (state["optimizer_states"][0]["state"] for state in (once, twice))
    for key in moments:
        assert_equal(moments[key], others[key])
    assert without_times(log_of(out)) == without_times(log_of(tmp_path))


def test_a_resumed_log_is_the_same_where_lines_and_intervals_do_not_meet(tmp_path):
    train(tmp_path / "whole", log_every=3)
    with pytest.raises(Killed):
        train(tmp_path / "killed", log_every=3, killed_at=18)
    train(tmp_path / "killed", log_every=3)
    logs = [without_times(log_of(tmp_path / name)) for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0]] == [3, 4, 6, 8, 9, 10]


def test_a_run_that_diverges_says_so(tmp_path):
    with pytest.raises(JobError, match="give a smaller --learning-rate"):
        train(tmp_path, learning_rate=1e30)


def test_a_finished_run_is_left_as_it_is(tmp_path):
    train(tmp_path, steps=4)
    before = log_of(tmp_path)
    again = train(tmp_path, steps=4)
    assert log_of(tmp_path) == before
    assert again.about["step"] == 4


def test_accumulated_parts_give_the_same_curve(tmp_path):
    """Without dropout, whose draws differ between parts."""
    model = dataclasses.replace(TINY, dropout=0.0)
    for name, accumulate in (("one", 1), ("two", 2)):
        train(tmp_path / name, model=model, accumulate=accumulate)
    one, two = (log_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"elapsed_s"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


@contextmanager
def full_disk(size):
    """Let no file grow beyond a size; what goes beyond fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, uninterrupted):
    _, artifact = uninterrupted
    with pytest.raises(Killed):
        train(tmp_path, ema=0.9, killed_at=16)  # the state of step 4 is written
    state = (tmp_path / "resume" / "last.ckpt").read_bytes()
    with full_disk(100_000), pytest.raises(JobError, match=r"cannot be written .*as it was"):
        train(tmp_path, ema=0.9)
    assert (tmp_path / "resume" / "last.ckpt").read_bytes() == state
    left = sorted(path.name for path in (tmp_path / "resume").iterdir())
    assert left == [".lock", "last.ckpt", "run.json"]
    assert_equal(train(tmp_path, ema=0.9).model.state_dict(), artifact.model.state_dict())


def test_a_full_disk_leaves_the_old_model(tmp_path):
    small = Artifact.of(tiny_model(), periodic_corpus())
    small.save(tmp_path / "model")
    with full_disk(10_000), pytest.raises(JobError, match="an older one there is as it was"):
        Artifact.of(tiny_model(seed=1), periodic_corpus()).save(tmp_path / "model")
    kept = Artifact.load(tmp_path / "model")
    assert_equal(kept.model.state_dict(), small.model.state_dict())


def test_another_run_in_the_folder_is_refused(tmp_path):
    train(tmp_path, steps=3)
    for changes, named in (
        ({"learning_rate": 0.02}, "recipe"),
        ({"seed": 1}, "settings"),
        ({"model": dataclasses.replace(TINY, layers=1)}, "model"),
        ({"corpus": periodic_corpus(seed=1)}, "corpus"),
    ):
        with pytest.raises(RequestError, match=f"{named}.* there"):
            train(tmp_path, **{"steps": 3, **changes})
    with pytest.raises(RequestError, match='preset "tiny_text" there'):
        train_model(periodic_corpus(), preset="tiny_audio", out=tmp_path, model=TINY, config=CONFIG)


def test_requests_that_cannot_be_met(tmp_path):
    for changes, message in (
        ({"accumulate": 3}, "batch 4 does not divide"),
        ({"warmup_steps": 10}, "a shorter warm-up"),
        ({"model": dataclasses.replace(TINY, shape=[100, 100])}, "give more data or a shorter"),
        ({"valid_min_context": 42}, "minimum context 42"),
    ):
        with pytest.raises(RequestError, match=message):
            train(tmp_path, **changes)
    with pytest.raises(RequestError, match="steps 0: give 1 or more"):
        FitConfig(steps=0)
    with pytest.raises(RequestError, match="choose one of cifar10"):
        train_model(periodic_corpus(), preset="huge", out=tmp_path)


def test_float16_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(RequestError, match="precision 16: needs a GPU"):
        train(tmp_path, precision="16")


def test_bfloat16_keeps_weights_in_float32(tmp_path):
    artifact = train(tmp_path, precision="bf16", steps=4)
    assert {p.dtype for p in artifact.model.parameters()} == {torch.float32}
    assert artifact.about["valid_bits_per_byte"] < 8


def test_recomputation_changes_nothing(tmp_path):
    plain = train(tmp_path / "plain", steps=4)
    again = train(tmp_path / "again", steps=4, model=dataclasses.replace(TINY, recompute=True))
    assert_equal(plain.model.state_dict(), again.model.state_dict())


def test_rate_rises_and_falls():
    rates = [rate(step, warmup=4, steps=10) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[10] == 0
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[7] == pytest.approx(0.5)


def test_matrices_decay_and_tables_have_a_rate_of_their_own():
    model = tiny_model()
    groups = parameter_groups(model, rate=0.1, decay=0.01, table_rate=3.0)
    assert [group["weight_decay"] for group in groups] == [0.01, 0.01, 0.0]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.3, 0.1])
    matrices, tables, others = (group["params"] for group in groups)
    assert all(p.ndim > 1 for p in (*matrices, *tables))
    assert all(p.ndim == 1 for p in others)
    assert sum(map(len, (matrices, tables, others))) == len(list(model.parameters()))
    expected = [model.embedding.token.weight, model.output.weight]
    expected += [table.weight for table in model.embedding.position.tables]
    assert {id(p) for p in tables} == {id(p) for p in expected}


@pytest.mark.parametrize("table_rate", [0.0, -1.0])
def test_a_table_rate_without_sense(table_rate):
    with pytest.raises(RequestError, match=r"table_rate .*: give more than 0"):
        FitConfig(table_rate=table_rate)


def test_an_average_follows_the_weights():
    model, averaged = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    nn.init.constant_(averaged.weight, 0.0)
    average_into(averaged, model, decay=0.999, step=100_000)
    assert averaged.weight.item() == pytest.approx(0.001)
    average_into(averaged, model, decay=0.999, step=0)
    assert averaged.weight.item() > 0.9


def test_what_is_given_replaces_the_recipe():
    preset = Recipe(learning_rate=1e-3, batch=8, epochs=3)
    given = FitConfig(steps=50, warmup_steps=7, ema=0.5).recipe(preset)
    assert (given.steps, given.epochs, given.warmup_steps, given.ema) == (50, None, 7, 0.5)
    assert FitConfig().recipe(preset) == preset
    corpus = periodic_corpus(size=3000, valid=480)
    short = dataclasses.replace(preset, warmup_steps=10)
    assert total_steps(short, corpus, 42) == -(-3 * 60 // 8)


DISTRIBUTED = """
import contextlib
import dataclasses
import sys
from pathlib import Path
from tests.speechkit.density.test_fit import TINY, train
for strategy in ("ddp", "fsdp"):
    model = dataclasses.replace(TINY, dropout=0.0)
    with contextlib.suppress(SystemExit):
        train(Path(sys.argv[1]) / strategy, model=model, devices=2, strategy=strategy, ema=0.9)
"""


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, script, tmp_path],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **_path()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train(tmp_path / "one", model=dataclasses.replace(TINY, dropout=0.0), ema=0.9)
    expected = without_times(log_of(tmp_path / "one"))
    for strategy in ("ddp", "fsdp"):
        found = without_times(log_of(tmp_path / strategy))
        assert len(found) == len(expected) == 8
        for one, two in zip(expected, found, strict=True):
            assert one == pytest.approx(two, rel=1e-4)


def _path():
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
