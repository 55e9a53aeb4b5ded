"""The options of a verb: its function's parameters, from the command line and from YAML.

The signature gives names, types and defaults, the docstring the help. A configuration dataclass
becomes one option a field (``--scenes.snr-db [0,20]``; just ``--snr-db`` if the parameter is called
``config``), a list takes plain values (``--snr 10 5``), a bool is a switch (``--fast``,
``--no-fast``).
"""

import dataclasses
import difflib
import inspect
import re
import types
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser

from speechkit.errors import RequestError

# the parameter whose fields are options themselves, as ``--config`` names a file
_FLAT = "config"
_OPTION = re.compile(r"--[\w.+]+")


def parse(
    function: Callable[..., Any],
    arguments: Sequence[str],
    *,
    prog: str,
    positional: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the values of all parameters of a function.

    What a file that ``--config`` names says is overridden by the command line. ``--help`` and
    ``--print-config`` print and raise SystemExit.

    Parameters
    ----------
    prog
        the command, as help and errors call it.
    positional
        the parameters that are given without their names.

    Raises
    ------
    RequestError
        if an argument is unknown, missing or of the wrong type, or a configuration refuses it.
    """
    parser = _parser(function, positional, prog)
    try:
        values = parser.instantiate(parser.parse_args(_config_first(_underscored(arguments))))
    except ArgumentError as error:
        raise RequestError(f"{_message(error, parser)} (see `{prog} --help`)") from error
    except (UnicodeDecodeError, TypeError) as error:
        # jsonargparse's, of a file that is no text, or one value where a group of them belongs
        raise RequestError(
            f"--config: does not fit ({error}): several values are written [a, b], settings of a "
            f"group below its name; see `{prog} --print-config`"
        ) from error
    return {
        name: dataclasses.replace(
            parameter.default, **{f.name: values[f.name] for f in fields(parameter.default)}
        )
        if name == _FLAT
        else values[name]
        for name, parameter in inspect.signature(function).parameters.items()
    }


class _Parser(ArgumentParser):
    """Show options with dashes, and types by their names."""

    def format_help(self, *arguments: Any) -> str:
        # in YAML, and so on the command line, None is written null
        return re.sub(r"\bNone\b", "null", _as_typed(super().format_help(*arguments)))


def _parser(function: Callable[..., Any], positional: Sequence[str], prog: str) -> _Parser:
    docs = docstring_parser.parse(inspect.getdoc(function) or "")
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *(name.upper() for name in positional), "[options]"]),
        description="\n\n".join(filter(None, [docs.short_description, docs.long_description])),
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML with values of options")
    for parameter, hint in _parameters(function):
        _add(parser, parameter, hint, positional=parameter.name in positional)
    helps = dict(_parameter_docs(function))
    for action in parser._actions:
        # jsonargparse passes over "a, b" that a docstring explains together
        action.help = action.help or helps.get(action.dest)
    return parser


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any]]:
    """Yield (parameter, type), with the fields of the flat configuration in its place."""
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name != _FLAT:
            yield parameter, hints[name]
            continue
        for field, hint in get_type_hints(hints[name]).items():
            default = getattr(parameter.default, field)
            yield inspect.Parameter(field, parameter.KEYWORD_ONLY, default=default), hint


def _add(parser: _Parser, parameter: inspect.Parameter, hint: Any, *, positional: bool) -> None:
    settings: dict[str, Any] = {"type": hint}
    if (element := _element(hint)) is not None:
        settings = {"type": element, "nargs": "+"}
    elif hint is bool and not positional:
        settings = {"action": ActionYesNo}
    if parameter.default is not parameter.empty:
        settings["default"] = parameter.default
    elif not positional:
        settings["required"] = True
    parser.add_argument(parameter.name if positional else f"--{parameter.name}", **settings)


def _element(hint: Any) -> Any:
    """Return X of list[X] and of list[X] | None, else None."""
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    lists = [choice for choice in choices if get_origin(choice) is list]
    return get_args(lists[0])[0] if lists else None


def _parameter_docs(documented: Callable[..., Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (parameter, what its docstring says), into configuration dataclasses too."""
    for described in getattr(documented, "__mro__", (documented,))[::-1]:
        for entry in docstring_parser.parse(described.__doc__ or "").params:
            names = entry.arg_name.split(",")
            # of options that are explained together, the order says which is which
            head = f"{entry.arg_name}: " if len(names) > 1 else ""
            for name in names:
                yield prefix + name.strip(), head + (entry.description or "")
    for name, hint in get_type_hints(documented).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _parameter_docs(hint, prefix if name == _FLAT else f"{prefix}{name}.")


def _underscored(arguments: Sequence[str]) -> list[str]:
    """Write the names of options as those of parameters: a user may use dashes or underscores."""
    return [
        re.sub("^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), argument)
        for argument in arguments
    ]


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Move ``--config FILE`` to the front, since of two values the parser takes the later one."""
    places = [index for index, argument in enumerate(arguments) if argument == "--config"]
    moved = {*places, *(index + 1 for index in places)}
    moved |= {i for i, argument in enumerate(arguments) if argument.startswith("--config=")}
    if len(arguments) in moved:  # the last one lacks its file, which the parser will say
        return list(arguments)
    rest = [argument for i, argument in enumerate(arguments) if i not in moved]
    return [arguments[i] for i in sorted(moved)] + rest


def _as_typed(text: str) -> str:
    """Write options and types as a user would."""
    text = re.sub(r"<class\s+'(?:\w+\.)*(\w+)'>", r"\1", text).replace("typing.", "")
    return _OPTION.sub(lambda option: option[0].replace("_", "-"), text)


def _message(error: ArgumentError, parser: _Parser) -> str:
    """Return the parser's complaint as one line, with the nearest option where one is unknown."""
    text = re.sub(r'Parser key "([^"]+)"', r"--\1", " ".join(str(error).split()))
    text = _as_typed(text).replace("Expected a tuple", "Expected a list such as [1,2]")
    text = text.replace(
        "'str' object does not support item assignment", "a word where a list belongs: write [word]"
    )
    text = re.sub(r"Expected a Literal\[([^\]]+)\]", r"Give one of \1", text)
    if re.search(r"unrecognized arguments: (-q|--quiet)\b", text):
        return f"{text}; it goes before the group: speechkit -q ..."
    options = {_as_typed(option) for option in parser._option_string_actions}
    if unknown := re.search(r"unrecognized arguments:.*?(--[\w.-]+)", text):
        close = difflib.get_close_matches(unknown[1], options, n=1)
        return text + "".join(f"; did you mean {option}?" for option in close)
    if dashed := re.search(r"Option '([\w.]*-[\w.-]*)' is not accepted", text):
        return f"{text}; in a file it is written {dashed[1].replace('-', '_')}"
    head, required, missing = text.partition("arguments are required: ")
    if required:
        names = [name.replace("_", "-") for name in missing.split(", ")]
        missing = ", ".join(f"--{name}" if f"--{name}" in options else name for name in names)
    return head + required + missing
