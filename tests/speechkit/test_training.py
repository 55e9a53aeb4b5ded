"""What training runs share, on a trainer that only pretends."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from speechkit.errors import JobError, RequestError, is_out_of_memory
from speechkit.training import rewind_log, run, write_line, write_state


class Trainer(SimpleNamespace):
    """As much of a trainer as log and state need."""

    is_global_zero = True
    logger = None
    global_step = 0
    full = False

    def save_checkpoint(self, path):
        path.write_text(f"state of step {self.global_step}")
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def steps(out):
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_state_replaces_the_one_before(tmp_path):
    for step in (1, 2):
        write_state(Trainer(global_step=step), tmp_path)
    assert (tmp_path / "resume" / "last.ckpt").read_text() == "state of step 2"
    assert len(list((tmp_path / "resume").iterdir())) == 1


def test_on_a_full_disk_the_older_state_stays(tmp_path):
    write_state(Trainer(global_step=1), tmp_path)
    with pytest.raises(JobError, match=r"No space left.*free space"):
        write_state(Trainer(global_step=2, full=True), tmp_path)
    assert (tmp_path / "resume" / "last.ckpt").read_text() == "state of step 1"
    assert len(list((tmp_path / "resume").iterdir())) == 1


def test_a_second_process_is_kept_out_of_a_run(tmp_path):
    begun = []
    trainer = Trainer(fit=lambda *_, **__: begun.append(1))
    script = (
        "import sys; from pathlib import Path; from speechkit.files import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "resume")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(RequestError, match="another process is training here"):
            run(trainer, None, None, out=tmp_path)
        # the other processes of one run come in
        run(Trainer(fit=trainer.fit, is_global_zero=False), None, None, out=tmp_path)
        other.stdin.close()
    run(trainer, None, None, out=tmp_path)
    assert len(begun) == 2


class Training:
    """As much of a module as a state must fit."""

    @staticmethod
    def state_dict():
        return {"weight": torch.zeros(2), "bias": torch.zeros(3)}


def written(tmp_path, state):
    path = tmp_path / "resume" / "last.ckpt"
    path.parent.mkdir()
    torch.save(state, path)
    return path


def begun(tmp_path):
    """Run, and return whether the training went on from the state."""
    resumed = []
    run(
        Trainer(fit=lambda *_, ckpt_path, **__: resumed.append(ckpt_path is not None)),
        Training,
        None,
        out=tmp_path,
    )
    return resumed == [True]


def test_a_state_that_fits_is_gone_on_from(tmp_path):
    written(tmp_path, {"state_dict": Training.state_dict()})
    assert begun(tmp_path)


@pytest.mark.parametrize(
    "state_dict",
    [
        {"weight": torch.zeros(2)},
        {"weight": torch.zeros(2), "bias": torch.zeros(4)},
        {"weight": torch.zeros(2), "bias": torch.zeros(3), "scale": torch.ones(1)},
    ],
)
def test_a_state_of_other_weights_is_refused(tmp_path, state_dict):
    written(tmp_path, {"state_dict": state_dict})
    with pytest.raises(RequestError, match="does not fit this version of speechkit"):
        begun(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 400])
def test_a_state_cut_off_is_refused(tmp_path, kept):
    path = written(tmp_path, {"state_dict": Training.state_dict()})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RequestError, match=r"cannot be read as the state.*remove .*resume"):
        begun(tmp_path)


@pytest.mark.parametrize("state", [{}, [1], {"state_dict": 3}, Path("a"), {"state_dict": {"a": 1}}])
def test_a_state_of_something_else_is_refused(tmp_path, state):
    written(tmp_path, state)
    with pytest.raises(RequestError, match="cannot be read as the state"):
        begun(tmp_path)


def test_one_process_writes_the_log(tmp_path):
    seen = []
    logger = SimpleNamespace(log_metrics=lambda numbers, step: seen.append((numbers, step)))
    line = {"step": 3, "loss": 0.5, "gradient_norm": None}
    write_line(Trainer(is_global_zero=False, logger=logger), tmp_path, line)
    assert not seen
    write_line(Trainer(logger=logger), tmp_path, line)
    assert seen == [({"step": 3, "loss": 0.5}, 3)]
    assert json.loads((tmp_path / "log.jsonl").read_text()) == line


def test_a_resumed_run_writes_no_line_twice(tmp_path):
    trainer = Trainer()
    rewind_log(trainer, tmp_path)
    for step in (10, 20, 30):
        write_line(trainer, tmp_path, {"step": step})
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 40, "lo')
    trainer.global_step = 20
    rewind_log(trainer, tmp_path)
    assert steps(tmp_path) == [10, 20]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("unsupported memory format"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error, expected):
    assert is_out_of_memory(error) == expected
