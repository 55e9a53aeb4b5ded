"""The command line: groups, verbs, options, errors and exit statuses."""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from speechkit import cli, options
from speechkit.audio import write_audio
from speechkit.errors import AudioError, JobError, RequestError

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "lhotse", "lightning", "jsonargparse"}


@dataclass(frozen=True, kw_only=True)
class Base:
    """What configurations share.

    Parameters
    ----------
    seed
        the seed, inherited.
    """

    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Scene(Base):
    """How scenes are made.

    Parameters
    ----------
    length_s, warmup_s
        audio in all, and before.
    """

    length_s: float = 4.0
    warmup_s: float = 1.0
    snr_db: tuple[float, float] = (-5.0, 15.0)
    words: tuple[str, ...] = ("computer",)
    network: dict[str, Any] = field(default_factory=lambda: {"type": "crnn"})

    def __post_init__(self):
        if self.length_s <= self.warmup_s:
            raise RequestError(f"length_s {self.length_s}: give more than warmup_s")


def train(
    corpus: str,
    *,
    positives: list[Path],
    out: Path,
    snr: list[str] | None = None,
    gains: list[float] = [1.0],  # noqa: B006
    fa_per_hour: float = 1.0,
    mode: Literal["fast", "exact"] = "fast",
    big: bool = False,
    model: Path | None = None,
    scene: Scene = Scene(),
) -> None:
    """Train something.

    It takes 100% of the time.

    Parameters
    ----------
    positives
        manifests with keywords (100%).
    fa_per_hour, mode
        explained together.
    """


REQUIRED = ["somewhere", "--positives", "a", "b", "--out", "o"]


def parse(*arguments, function=train, positional=("corpus",)):
    return options.parse(function, arguments, prog="speechkit kws train", positional=positional)


def test_defaults_are_those_of_the_signature():
    assert parse(*REQUIRED) == {
        "corpus": "somewhere",
        "positives": [Path("a"), Path("b")],
        "out": Path("o"),
        "snr": None,
        "gains": [1.0],
        "fa_per_hour": 1.0,
        "mode": "fast",
        "big": False,
        "model": None,
        "scene": Scene(),
    }


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--snr", "clean", "10", "-5"], "snr", ["clean", "10", "-5"]),
        (["--gains", "1", "-2.5"], "gains", [1.0, -2.5]),
        (["--fa-per-hour", "0.5"], "fa_per_hour", 0.5),
        (["--fa_per_hour=2"], "fa_per_hour", 2.0),
        (["--mode", "exact"], "mode", "exact"),
        (["--big"], "big", True),
        (["--big", "--no-big"], "big", False),
        (["--model", "m-1/--x=y"], "model", Path("m-1/--x=y")),
        (["--scene.snr-db", "[0,20]"], "scene", Scene(snr_db=(0.0, 20.0))),
        (["--scene.warmup_s=2", "--scene.seed", "3"], "scene", Scene(warmup_s=2.0, seed=3)),
        (["--scene.words", "[alexa, hey you]"], "scene", Scene(words=("alexa", "hey you"))),
        (["--scene.network.type", "cnn"], "scene", Scene(network={"type": "cnn"})),
    ],
)
def test_values_from_the_command_line(arguments, name, value):
    assert parse(*REQUIRED, *arguments)[name] == value


def test_the_command_line_overrides_the_file_wherever_it_is_named(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        "corpus: from-file\npositives: [q, r]\nout: elsewhere\ngains: [3]\nbig: true\n"
        "scene: {length_s: 9, snr_db: [1, 2]}\n"
    )
    values = parse("--config", str(config))
    assert values["corpus"] == "from-file"
    assert values["positives"] == [Path("q"), Path("r")]
    assert values["gains"] == [3.0]
    assert values["big"] is True
    assert values["scene"] == Scene(length_s=9.0, snr_db=(1.0, 2.0))
    given = ["mine", "--positives", "p", "--no-big", "--scene.length-s", "7"]
    for arguments in (["--config", str(config), *given], [*given, f"--config={config}"]):
        values = parse(*arguments)
        assert values["corpus"] == "mine"
        assert values["positives"] == [Path("p")]
        assert values["out"] == Path("elsewhere")
        assert values["big"] is False
        assert values["scene"] == Scene(length_s=7.0, snr_db=(1.0, 2.0))


def test_the_printed_configuration_can_be_read_back(tmp_path, capsys):
    given = [*REQUIRED, "--scene.snr-db", "[3,4]", "--snr", "clean", "5", "--big"]
    with pytest.raises(SystemExit) as stop:
        parse(*given, "--print-config")
    assert not stop.value.code
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert parse("--config", str(tmp_path / "c.yaml")) == parse(*given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: corpus, --positives, --out"),
        ([*REQUIRED, "--fa-per-houx", "3"], "--fa-per-houx 3; did you mean --fa-per-hour?"),
        ([*REQUIRED, "--scene.snr_d", "3"], "did you mean --scene.snr-db?"),
        ([*REQUIRED, "--fa_per_hour", "x"], "--fa-per-hour: Expected a float. Got value: x"),
        ([*REQUIRED, "--gains", "1", "x"], "--gains element 2: Expected a float"),
        ([*REQUIRED, "--mode", "slow"], "--mode: Give one of 'fast', 'exact'. Got value: slow"),
        ([*REQUIRED, "--scene.snr-db", "3"], "--scene.snr-db: Expected a list such as [1,2]"),
        ([*REQUIRED, "--scene.length-s", "0.5"], "length_s 0.5: give more than warmup_s"),
        ([*REQUIRED, "more"], "unrecognized arguments: more"),
        ([*REQUIRED, "--positives"], "--positives: expected at least one argument"),
        ([*REQUIRED, "--config"], "--config: expected one argument"),
        ([*REQUIRED, "--config", "gone.yaml"], "--config: File does not exist"),
        ([*REQUIRED, "--config", "{nosuch: 3}"], "'nosuch' is not accepted"),
        ([*REQUIRED, "--config", "{scene: [3"], "--config: "),
        ([*REQUIRED, "--config", "{fa-per-hour: 3}"], "in a file it is written fa_per_hour"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError) as caught:
        parse(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_help_shows_docstring_types_and_dashes(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: speechkit kws train CORPUS [options]")
    assert "It takes 100% of the time." in text
    assert "manifests with keywords (100%). (required, type: Path)" in text
    together = "fa_per_hour, mode: explained together."
    assert f"--fa-per-hour FA_PER_HOUR {together} (type: float, default: 1.0)" in text
    assert f"--mode {{fast,exact}} {together}" in text
    assert "--big, --no-big" in text
    assert "--scene.warmup-s WARMUP_S length_s, warmup_s: audio in all, and before." in text
    assert "the seed, inherited." in text


def test_a_positional_list_takes_several():
    def check(cuts: list[Path], *, sample_rate: int = 16000) -> int:
        """Check."""

    values = parse("a", "b", "--sample-rate", "8000", function=check, positional=("cuts",))
    assert values == {"cuts": [Path("a"), Path("b")], "sample_rate": 8000}


def test_the_fields_of_config_are_options_of_their_own(tmp_path, capsys):
    @dataclass(frozen=True, kw_only=True)
    class Config(Base):
        """All of it.

        Parameters
        ----------
        steps
            how many.
        """

        steps: int = 100
        fast: bool = False
        scene: Scene = Scene()

    def fit(*, out: Path, config: Config = Config(steps=7, scene=Scene(seed=5))) -> None:
        """Fit."""

    fit.__annotations__["config"] = Config
    values = parse("--out", "o", "--fast", "--scene.length-s=9", function=fit, positional=())
    config = Config(steps=7, fast=True, scene=Scene(seed=5, length_s=9.0))
    assert values == {"out": Path("o"), "config": config}
    (tmp_path / "c.yaml").write_text("steps: 8\nscene: {seed: 6}\n")
    values = parse("--out=o", f"--config={tmp_path}/c.yaml", function=fit, positional=())
    assert values["config"] == Config(steps=8, scene=Scene(seed=6))
    with pytest.raises(SystemExit):
        parse("--help", function=fit, positional=())
    assert "how many. (type: int, default: 7)" in capsys.readouterr().out


# the command


@pytest.fixture
def verb(monkeypatch):
    """Return a function that makes a function the verb `test run`."""

    def install(function, *positional):
        monkeypatch.setattr(sys.modules[__name__], "installed", function, raising=False)
        target = cli.Verb(f"{__name__}:installed", "run it", positional)
        monkeypatch.setitem(cli.GROUPS, "test", cli.Group("tests", {"run": target}))

    return install


def raising(error):
    def run() -> None:
        """Fail."""
        raise error

    return run


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1)])
def test_a_verb_returns_the_status(verb, returned, status):
    def run(name: str, *, times: int = 1) -> int | None:
        """Run."""
        assert (name, times) == ("x", 3)
        return returned

    verb(run, "name")
    assert cli.main(["test", "run", "x", "--times", "3"]) == status


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (RequestError("root x: give\n a folder"), 2, "speechkit: error: root x: give a folder\n"),
        (JobError("it failed"), 1, "speechkit: error: it failed\n"),
        (AudioError("a.wav: is empty"), 1, "speechkit: error: a.wav: is empty\n"),
        (
            PermissionError(13, "Permission denied", "/out"),
            1,
            "speechkit: error: [Errno 13] Permission denied: '/out'\n",
        ),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; what keeps its state (training, scoring, simulations) goes on when the "
            "same command runs again\n",
        ),
    ],
)
def test_errors_are_one_line(verb, capsys, error, status, shown):
    verb(raising(error))
    assert cli.main(["test", "run"]) == status
    assert capsys.readouterr() == ("", shown)


def test_an_exit_caused_by_an_interruption_is_one(verb, capsys):
    def run() -> None:
        """Stop as Lightning does."""
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    verb(run)
    assert cli.main(["test", "run"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_mistakes_of_ours_keep_their_traceback(verb):
    verb(raising(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["test", "run"])


def test_a_traceback_can_be_asked_for(verb, monkeypatch):
    verb(raising(RequestError("wrong")))
    monkeypatch.setenv("SPEECHKIT_DEBUG", "1")
    with pytest.raises(RequestError):
        cli.main(["test", "run"])


def test_a_recipe_runs_like_a_verb(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/demo.py"])

    def recipe(*, out: Path, clips: int = 10) -> int:
        """Demonstrate."""
        if clips < 1:
            raise RequestError(f"clips {clips}: give at least 1")
        return clips

    assert cli.run_recipe(recipe, ["--out", "o", "--clips", "3"]) == 3
    assert cli.run_recipe(recipe, ["--out", "o", "--clips=0"]) == 2
    assert capsys.readouterr().err == "speechkit: error: clips 0: give at least 1\n"
    assert cli.run_recipe(recipe, ["--help"]) == 0
    about, _, usage = capsys.readouterr().out.partition("\n\n")
    assert about == __doc__
    assert usage.startswith("usage: demo.py [options]")
    (tmp_path / "file").touch()
    assert cli.run_recipe(recipe, ["--out", str(tmp_path / "file" / "o")]) == 2
    assert "file is no folder to write to; give another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dat"], "unknown group: 'dat'; did you mean data? there are data, kws"),
        (["zzz", "check"], "unknown group: 'zzz'; there are data, kws"),
        (["data", "chek"], "unknown verb of data: 'chek'; did you mean check? there are prepare,"),
        (["--loud", "data"], "unknown option --loud before the group"),
        (["data", "check"], "the following arguments are required: cuts"),
    ],
)
def test_what_does_not_exist(capsys, arguments, message):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"speechkit: error: {message}")
    assert err.count("\n") == 1


def test_a_command_cut_short_shows_its_help(capsys):
    assert cli.main([]) == 2
    assert cli.main(["data"]) == 2
    assert "usage: speechkit data VERB" in capsys.readouterr().out


@pytest.mark.parametrize("group", list(cli.GROUPS))
def test_the_help_of_a_group_lists_its_verbs(capsys, group):
    assert cli.main([group, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.GROUPS[group].verbs)


@pytest.mark.parametrize(
    ("group", "name"), [(g, name) for g, group in cli.GROUPS.items() for name in group.verbs]
)
def test_every_verb_shows_its_help(capsys, group, name):
    assert cli.main([group, name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: speechkit {group} {name}")
    assert "--config" in shown
    assert "--print-config" in shown


def run(*arguments, **more):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **more
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["data", "--help"], ["kws", "-h"]]
)
def test_quick_help_imports_nothing_heavy(arguments):
    code = f"import sys; from speechkit.cli import main; main({arguments}); print(*sys.modules)"
    modules = set(run("-c", code, check=True).stdout.split())
    assert modules.isdisjoint(HEAVY)


def test_the_command_from_end_to_end(tmp_path, rng):
    write_audio(tmp_path / "a.wav", rng.uniform(-0.3, 0.3, 16000).astype("float32"))
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav", "label": "go"}\n')
    command = ["-m", "speechkit", "data"]
    done = run(*command, "import", tmp_path / "m.jsonl", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 clips, 0.00 h, 0 speakers, 1 labels" in done.stderr
    done = run("-m", "speechkit", "-q", "data", "check", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 clips checked; nothing found." in done.stdout
    (tmp_path / "a.wav").unlink()
    done = run(*command, "check", tmp_path / "out")
    assert done.returncode == 1
    assert "no such file" in done.stdout
    done = run(*command, "check", tmp_path / "gone")
    assert done.returncode == 2
    assert done.stderr.startswith("speechkit: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-"])
def test_what_the_shell_closed_is_no_error(tmp_path, rng, closed):
    write_audio(tmp_path / "a.wav", rng.uniform(-0.3, 0.3, 16000).astype("float32"))
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    command = f"{sys.executable} -m speechkit -q data check {tmp_path / 'm.jsonl'} {closed}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "naïve.wav", "duration": 1}\n')
    done = run(
        *("-m", "speechkit", "-q", "data", "check", tmp_path / "m.jsonl"),
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 1
    assert "na\\xefve.wav" in done.stdout


def test_a_folder_that_cannot_be_looked_for_is_refused(tmp_path, capsys):
    out = tmp_path / ("a" * 300)
    assert cli.main(["data", "import", "m.jsonl", "--out", str(out)]) == 2
    assert "cannot be looked for" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "speechkit", "--help"],
            cwd=ROOT,
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_only_our_own_progress_is_shown():
    code = """
import logging
from speechkit.cli import main
main(["--version"])
for name in ("lightning.pytorch", "speechkit.kws.fit"):
    logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger(name).info("info of %s", name)
    logging.getLogger(name).warning("warning of %s", name)
"""
    shown = run("-c", code, check=True).stderr.splitlines()
    assert shown == [
        "warning of lightning.pytorch",
        "info of speechkit.kws.fit",
        "warning of speechkit.kws.fit",
    ]


def test_quiet_is_quiet():
    cli.main(["-q", "--version"])
    assert not logging.getLogger("speechkit.audio").isEnabledFor(logging.INFO)
    cli.main(["--version"])
    assert logging.getLogger("speechkit.audio").isEnabledFor(logging.INFO)
