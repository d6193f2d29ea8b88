"""docs/cli.md: every command with its arguments and options, out of the texts that ``--help`` prints.

    PYTHONPATH=tests/support python -m cli_page > docs/cli.md

It reads the signatures of the commands and not the printed help, whose form depends on the terminal and on
the version of typer.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

from gpuhmm.cli import app

HEAD = """\
# The command line

What `gpuhmm COMMAND --help` says, for all commands ([CONTRIBUTING.md](../CONTRIBUTING.md): how to make this
page). Every command ends with 0 if all went well, with 1 if it failed, and with 2 if it was called wrongly.
"""

#: What a value of a type is called where the command gives it no name.
_VALUES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command, as the page shows it."""

    names: tuple[str, ...]  # empty for an argument
    value: str  # empty for a switch
    many: bool
    needed: bool
    default: str  # empty where there is none to tell
    help: str


def commands() -> dict[str, Callable[..., None]]:
    """Return the function of every command by its name, in the order of ``gpuhmm --help``."""
    found = {}
    for command in app.registered_commands:
        assert command.callback is not None
        found[command.name or command.callback.__name__] = command.callback
    return found


def parameters(function: Callable[..., None]) -> Iterator[Parameter]:
    """Yield arguments and options in the order of the command's signature."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])
        many = any(typing.get_origin(one) is list for one in (kind, *typing.get_args(kind)))
        needed = parameter.default is inspect.Parameter.empty
        names = _names(name, kind, info)
        default = "" if needed or parameter.default is None else str(parameter.default)
        if kind is bool:  # of --yes/--no one is the default; without the second the switch is off
            both = names[0].split("/")
            default = both[not parameter.default] if len(both) == 2 else ""
        value = "" if kind is bool else _value(name, kind, info)
        yield Parameter(names, value, many, needed, default, f"{info.help}{_bounds(info)}")


def _names(name: str, kind: Any, info: ArgumentInfo | OptionInfo) -> tuple[str, ...]:
    if isinstance(info, ArgumentInfo):
        return ()
    # The first name of an option stands where a default would if the option were not Annotated.
    given = (info.default, *(info.param_decls or ()))
    names = tuple(one for one in given if isinstance(one, str))
    plain = name.replace("_", "-")
    return names or ((f"--{plain}/--no-{plain}",) if kind is bool else (f"--{plain}",))


def _value(name: str, kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    if info.metavar:
        return str(info.metavar)
    if isinstance(info, ArgumentInfo):
        return name.upper()
    while isinstance(kind, types.UnionType) or typing.get_origin(kind) is list:
        kind = typing.get_args(kind)[0]
    return _VALUES[kind]


def _bounds(info: ArgumentInfo | OptionInfo) -> str:
    if info.min is None:
        assert info.max is None
        return ""
    return f" From {info.min} on." if info.max is None else f" From {info.min} to {info.max}."


def page() -> str:
    """Return docs/cli.md."""
    parts = [HEAD]
    found = commands()
    lines = [
        f"* [`gpuhmm {name}`](#gpuhmm-{name}): {_first_line(function)}" for name, function in found.items()
    ]
    parts.append("\n".join(lines) + "\n")
    for name, function in found.items():
        parts.append(_section(name, function))
    return "\n".join(parts)


def _first_line(function: Callable[..., None]) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")


def _section(name: str, function: Callable[..., None]) -> str:
    found = list(parameters(function))
    usage = ["gpuhmm", name, "[OPTIONS]", *(_in_usage(one) for one in found if not one.names or one.needed)]
    rows = [f"| {_cell(one)} | {_escaped(one.help)} | {_code(one.default)} |" for one in found]
    table = "\n".join(["| argument or option | what it says | default |", "|---|---|---|", *rows])
    return f"## gpuhmm {name}\n\n    {' '.join(usage)}\n\n{inspect.getdoc(function)}\n\n{table}\n"


def _in_usage(one: Parameter) -> str:
    words = " ".join([*one.names[:1], one.value + ("..." if one.many else "")])
    return words if one.needed else f"[{words}]"


def _cell(one: Parameter) -> str:
    words = _escaped(" ".join([", ".join(one.names), one.value]).strip())
    return _code(words) + (", more than once" if one.many else "")


def _code(words: str) -> str:
    return f"`{words}`" if words else ""


def _escaped(words: str) -> str:
    return words.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
