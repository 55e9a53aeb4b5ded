import importlib.util
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechkit.active_learning import engines
from speechkit.active_learning.blocks import SUCCESS_NAME, read_scores, verify
from speechkit.active_learning.engines import Local, Torchrun
from speechkit.active_learning.score import score_pool
from speechkit.active_learning.scoring import ScoringConfig
from speechkit.errors import JobError, RequestError
from tests.active_learning.helpers import TinyRecogniser, pool_of

ROOT = Path(__file__).parents[2]
CLIPS = 40
TEXTS = ["egl", "egl:weights=sample,k=4", "entropy", "random", "dropout", "cascade:share=0.3"]

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra [ray])"
)

SCORE = f"""
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from speechkit.active_learning import engines
from speechkit.active_learning.score import score_pool
from speechkit.active_learning.scoring import ScoringConfig
from tests.active_learning.helpers import TinyRecogniser, pool_of

name, out, pause_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

class Slow(TinyRecogniser):
    def features(self, cuts):
        time.sleep(pause_s)
        return super().features(cuts)

score_pool(
    pool_of({CLIPS}), Slow(), {TEXTS}, folder=out, config=ScoringConfig(block_size=3),
    engine=engines.build(name, actors=2, stall_s=60),
)
"""


def command(engine, out, pause_s=0.0):
    start = [sys.executable]
    if engine == "torchrun":
        start += ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    script = out.parent / "score_tiny.py"
    script.write_text(SCORE)
    return [*start, str(script), engine, str(out), str(pause_s)]


def environment():
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(engine, out, pause_s):
    """Start scoring in a process group of its own."""
    return subprocess.Popen(
        command(engine, out, pause_s),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Slow(TinyRecogniser):
    def features(self, cuts):
        time.sleep(0.02)
        return super().features(cuts)


def score_here(out, rank=0, count=0, port=0, model=None):
    """Score in this process, one of ``count`` that torchrun might have started."""
    if count:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    engine = engines.build("torchrun" if count else "local")
    config = ScoringConfig(block_size=3)
    score_pool(
        pool_of(CLIPS), model or TinyRecogniser(), TEXTS, folder=out, config=config, engine=engine
    )


def fork(out, count, model=None):
    """Start processes that need not import torch again."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=score_here, args=(out, rank, count, port, model))
        for rank in range(max(1, count))
    ]
    for process in processes:
        process.start()
    return processes


def wait_for_parts(out, parts, is_alive):
    deadline = time.monotonic() + 100
    while len(list(out.rglob("part-*.parquet"))) < parts and time.monotonic() < deadline:
        assert is_alive(), "ended before it could be killed"
        time.sleep(0.005)


def parts_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("part-*.parquet"))
        if ".ray" not in path.parts
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder that one process made without a break."""
    out = tmp_path_factory.mktemp("whole") / "scores"
    score_here(out)
    return out


def require_the_same(out, whole):
    assert parts_of(out) == parts_of(whole)
    assert verify(out, [cut.id for cut in pool_of(CLIPS)]).whole
    assert read_scores(out).equals(read_scores(whole))


@pytest.mark.parametrize("count", [0, 2], ids=["local", "torchrun"])
def test_killed_three_times_nothing_is_lost_and_nothing_twice(count, tmp_path, whole):
    out = tmp_path / "scores"
    for parts in (2, 5, 9):
        processes = fork(out, count, Slow())
        wait_for_parts(out, parts, lambda p=processes: all(one.is_alive() for one in p))
        for process in processes:
            process.kill()
            process.join()
        assert not (out / SUCCESS_NAME).exists()
        assert 0 < len(parts_of(out)) < len(parts_of(whole))
    for process in (final := fork(out, count)):
        process.join(60)
    assert [process.exitcode for process in final] == [0] * max(1, count)
    require_the_same(out, whole)


@pytest.mark.slow
def test_torchrun_itself(tmp_path, whole):
    process = start("torchrun", tmp_path / "scores", 0.0)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    require_the_same(tmp_path / "scores", whole)


@needs_ray
@pytest.mark.slow
def test_ray_killed_three_times(tmp_path, whole):
    out = tmp_path / "scores"
    for parts in (2, 5, 9):
        process = start("ray", out, 0.05)
        wait_for_parts(out, parts, lambda p=process: p.poll() is None)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / SUCCESS_NAME).exists()
    process = start("ray", out, 0.0)
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    require_the_same(out, whole)


@needs_ray
@pytest.mark.slow
def test_ray_gives_up_when_nothing_moves(tmp_path, monkeypatch):
    monkeypatch.setattr(engines.Ray, "_run", lambda *_: time.sleep(60))
    with pytest.raises(JobError, match="no block was scored"):
        score_pool(
            pool_of(3),
            TinyRecogniser(),
            ["random"],
            folder=tmp_path,
            engine=engines.build("ray", stall_s=0.5),
        )


class Handed(engines.Local):
    """Hands blocks to an actor as Ray does, by tables of cuts as text."""

    def run(self, score, blocks, *, cuts, folder):
        actor = engines._Actor(score, folder)
        for batch in engines._todo(blocks, cuts).to_batches(max_chunksize=2):
            columns = zip(batch.schema.names, batch.columns, strict=True)
            actor({name: column.to_numpy(zero_copy_only=False) for name, column in columns})


def test_an_actor_of_ray_writes_the_same_bytes(tmp_path):
    config = ScoringConfig(block_size=3)
    for folder, engine in (("here", engines.Local()), ("handed", Handed())):
        score_pool(
            pool_of(CLIPS),
            TinyRecogniser(),
            TEXTS,
            folder=tmp_path / folder,
            config=config,
            engine=engine,
        )
    written = parts_of(tmp_path / "here")
    assert len(written) > 2
    assert parts_of(tmp_path / "handed") == written


def test_a_checkpoint_of_ray_that_knows_too_much_is_dropped(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "checkpoint").mkdir()
    known = pa.table({"part": ["part-000001.parquet"]})
    pq.write_table(known, tmp_path / "checkpoint" / "0.parquet")
    engines._forget_stale(tmp_path, {"part-000002.parquet"})
    assert (tmp_path / "checkpoint").exists()
    engines._forget_stale(tmp_path, {"part-000001.parquet"})
    assert not (tmp_path / "checkpoint").exists()


class FakeRay:
    """Remembers how it was started."""

    def __init__(self):
        self.started = {}

    def is_initialized(self):
        return False

    def init(self, **settings):
        self.started = settings
        if settings.get("address") != "local" and "num_cpus" in settings:
            raise ValueError("num_cpus must not be provided")


def test_ray_joins_a_cluster_or_starts_alone(monkeypatch):
    ray = FakeRay()
    monkeypatch.setattr(engines, "_ray", lambda: ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    engines.Ray(actors=2)._start()
    assert (ray.started["address"], ray.started["num_cpus"]) == ("local", 5)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    engines.Ray(actors=2)._start()
    assert not {"address", "num_cpus"} & ray.started.keys()
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(JobError, match=r"RAY_ADDRESS 10\.0\.0\.1:6379: no cluster of Ray"):
        engines.Ray(actors=2)._start()


def test_ray_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"\[ray\]"):
        engines._ray()


def test_torchrun_must_have_started_the_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RequestError, match="torchrun --nproc-per-node"):
        Torchrun.join()


def test_an_unknown_engine_is_refused():
    with pytest.raises(RequestError, match="local, torchrun, ray"):
        engines.build("spark")
    assert isinstance(engines.build("local"), Local)


def test_another_pool_in_the_same_folder_is_refused(tmp_path):
    config = ScoringConfig(block_size=4)
    score_pool(pool_of(9), TinyRecogniser(), ["random"], folder=tmp_path, config=config)
    with pytest.raises(RequestError, match="other settings or data: pool"):
        score_pool(pool_of(8), TinyRecogniser(), ["random"], folder=tmp_path, config=config)
