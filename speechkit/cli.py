"""The command line: ``speechkit GROUP VERB``.

A verb is a function in another module, which is imported when the verb runs: so help is quick, and
a machine that detects keywords does not load what trains them.
"""

import difflib
import importlib
import inspect
import io
import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from speechkit import __version__
from speechkit.errors import RequestError, SpeechkitError
from speechkit.kernels.errors import KernelError


@dataclass(frozen=True)
class Verb:
    """A verb: the function that it runs, and the parameters that are given without names.

    The function's parameters are the options, its docstring is their help, and what it returns is
    the exit status (None for 0).
    """

    target: str
    help: str
    positional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Verbs that belong together."""

    help: str
    verbs: dict[str, Verb]


GROUPS = {
    "data": Group(
        "corpora and manifests",
        {
            "prepare": Verb(
                "speechkit.corpora:prepare", "turn a corpus into a folder of cuts", ("corpus",)
            ),
            "import": Verb(
                "speechkit.manifests:import_manifest", "the same for a manifest", ("manifest",)
            ),
            "check": Verb(
                "speechkit.data_check:check", "find what is wrong with the clips", ("cuts",)
            ),
        },
    ),
    "kws": Group(
        "keyword spotting",
        {
            "train": Verb("speechkit.kws.train:train", "train a spotter"),
            "evaluate": Verb(
                "speechkit.kws.evaluate:evaluate", "measure misses at false alarms per hour"
            ),
            "compare": Verb(
                "speechkit.kws.compare:compare", "set spotters beside each other", ("systems",)
            ),
            "detect": Verb(
                "speechkit.kws.detect:detect", "find keywords in a file or a stream", ("file",)
            ),
            "mine": Verb("speechkit.kws.mine:mine", "collect false alarms to train on"),
            "export": Verb("speechkit.kws.export:export", "write a spotter for a device"),
        },
    ),
    "asr": Group(
        "speech recognition",
        {
            "train": Verb("speechkit.asr.train:train", "train a recogniser"),
            "evaluate": Verb("speechkit.asr.evaluate:evaluate", "measure word errors"),
            "compare": Verb(
                "speechkit.asr.compare:compare", "set evaluations beside each other", ("reports",)
            ),
            "transcribe": Verb(
                "speechkit.asr.transcribe:transcribe", "write down what files say", ("files",)
            ),
            "align": Verb("speechkit.asr.align:align", "find the times of known words"),
            "export": Verb("speechkit.asr.export:export", "write a recogniser as ONNX"),
        },
    ),
    "al": Group(
        "active learning",
        {
            "score": Verb(
                "speechkit.active_learning.score:score", "score unlabelled clips", ("pool",)
            ),
            "simulate": Verb(
                "speechkit.active_learning.simulate:run",
                "simulate rounds on labelled clips",
                ("learner",),
            ),
            "select": Verb(
                "speechkit.active_learning.select:select", "pick clips to label", ("scores",)
            ),
            "compare": Verb(
                "speechkit.active_learning.compare:compare", "compare strategies", ("runs",)
            ),
            "export": Verb(
                "speechkit.active_learning.exchange:export",
                "hand selected clips to annotators",
                ("selection",),
            ),
            "import": Verb(
                "speechkit.active_learning.exchange:import_labels",
                "take their labels back",
                ("file",),
            ),
            "label": Verb(
                "speechkit.active_learning.label:label",
                "label selected clips on a page in the browser",
                ("selection",),
            ),
        },
    ),
    "density": Group(
        "density models of bytes",
        {
            "train": Verb("speechkit.density.train:train", "train a density model"),
            "evaluate": Verb("speechkit.density.evaluate:evaluate", "measure bits per byte"),
            "sample": Verb("speechkit.density.sample:sample", "draw text, pictures or sound"),
        },
    ),
    "kernels": Group(
        "sparse attention",
        {
            "check": Verb("speechkit.kernel_verbs:check", "compare every backend with float64"),
            "bench": Verb("speechkit.kernel_verbs:bench", "measure speed and memory"),
        },
    ),
}

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 done, 1 failed, 2 the request was wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _dispatch(arguments))


def run_recipe(function: Callable[..., int | None], argv: Sequence[str] | None = None) -> int:
    """Run a recipe's function as a verb of its own; return the exit status as `main` does."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _configure_logging(quiet=False)
    if {"-h", "--help"} & set(arguments):
        print(inspect.getdoc(sys.modules[function.__module__]), end="\n\n")
    return _guarded(lambda: _call(function, arguments, prog=os.path.basename(sys.argv[0])))


def _guarded(job: Callable[[], int]) -> int:
    """Run a job; make one line and an exit status of the errors that a user can act on.

    SPEECHKIT_DEBUG=1 shows where they come from. Anything else keeps its traceback, being a mistake
    of ours.
    """
    try:
        _ready_output()
        status = job()
        sys.stdout.flush()  # a reader that has gone shows here, not behind our back at exit
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        # Lightning turns an interruption into an exit
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _interrupted()
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (SpeechkitError, KernelError, OSError) as error:
        if os.environ.get("SPEECHKIT_DEBUG", "0") != "0":
            raise
        print(f"speechkit: error: {' '.join(str(error).split())}", file=sys.stderr)
        return getattr(error, "exit_status", 1)


def _ready_output() -> None:
    """Give what a shell has closed a place to go to, and names that are no text an escape."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as we run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(arguments: list[str]) -> int:
    switches = list(takewhile(lambda argument: argument.startswith("-"), arguments))
    words = arguments[len(switches) :]
    unknown = set(switches) - {"-h", "--help", "--version", "-q", "--quiet"}
    if unknown:
        raise RequestError(f"unknown option {min(unknown)} before the group (see `speechkit -h`)")
    _configure_logging(quiet=bool({"-q", "--quiet"} & set(switches)))
    if "--version" in switches:
        print(f"speechkit {__version__}")
        return 0
    if not words or {"-h", "--help"} & set(switches):
        print(_overview())
        return 0 if arguments else 2
    group_name, *words = words
    group = GROUPS[_known(group_name, GROUPS, "group")]
    if not words or words[0] in ("-h", "--help"):
        print(_group_help(group_name, group))
        return 0 if words else 2
    verb_name, *words = words
    verb = group.verbs[_known(verb_name, group.verbs, f"verb of {group_name}")]
    return _run(verb, words, prog=f"speechkit {group_name} {verb_name}")


def _run(verb: Verb, arguments: list[str], *, prog: str) -> int:
    module, _, name = verb.target.partition(":")
    function = getattr(importlib.import_module(module), name)
    return _call(function, arguments, prog=prog, positional=verb.positional)


def _call(
    function: Callable[..., int | None],
    arguments: list[str],
    *,
    prog: str,
    positional: Sequence[str] = (),
) -> int:
    from speechkit import options  # the parser would double the time of the help above

    values = options.parse(function, arguments, prog=prog, positional=positional)
    _require_folder(values.get("out"))
    return function(**values) or 0


def _require_folder(out: object) -> None:
    """Refuse an ``--out`` that nothing could be written to, before any work."""
    if not isinstance(out, Path):
        return
    try:
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
    except (
        OSError,
        ValueError,
    ) as error:  # a folder that may not be looked into, no name of a file
        raise RequestError(f"--out {out}: cannot be looked for ({error}); give another") from error
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise RequestError(f"--out {out}: {there} is no folder to write to; give another")


def _known(name: str, known: Collection[str], what: str) -> str:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = "".join(f"did you mean {candidate}? " for candidate in close)
        raise RequestError(f"unknown {what}: {name!r}; {hint}there are {', '.join(known)}")
    return name


def _interrupted() -> int:
    print(
        "interrupted; what keeps its state (training, scoring, simulations) goes on when the same "
        "command runs again",
        file=sys.stderr,
    )
    return _INTERRUPTED


def _configure_logging(*, quiet: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # some libraries raise their own verbosity when they are imported
    handler.addFilter(
        lambda record: record.levelno >= logging.WARNING or record.name.startswith("speechkit.")
    )
    logging.basicConfig(handlers=[handler])
    logging.getLogger("speechkit").setLevel(logging.WARNING if quiet else logging.INFO)


def _overview() -> str:
    rows = {name: f"{group.help}: {', '.join(group.verbs)}" for name, group in GROUPS.items()}
    return f"""\
usage: speechkit [-q] GROUP VERB [options]

Keyword spotting, speech recognition, active learning and density models, on sparse attention.

groups:
{_table(rows)}

options:
  -h, --help   this help; `speechkit GROUP VERB --help` lists the options of a verb
  -q, --quiet  show warnings and errors only
  --version    show the version"""


def _group_help(name: str, group: Group) -> str:
    rows = {verb_name: verb.help for verb_name, verb in group.verbs.items()}
    return f"""\
usage: speechkit {name} VERB [options]

{group.help.capitalize()}.

verbs:
{_table(rows)}

`speechkit {name} VERB --help` lists the options of a verb."""


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items())
