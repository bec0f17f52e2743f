"""`./run docs` writes the reference pages from the code; `--check` only says which are stale.

Commands come from the command line itself, keys of the site file from its models. What a key means
is the docstring below it in the source.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from burst.model import Policy
from dvn import values
from dvn.spec import NotInFiles, Site, dhcp, rate
from gateway import sections, units

REFERENCE = Path(__file__).parent / "reference"
HOW_TO_REGENERATE = "./run docs"
_HEAD = "<!-- Generated from the code by `./run docs`: do not edit. -->\n\n"

# -- commands -------------------------------------------------------------------------------------

_COMMANDS = """\
# Commands

`-h` or `--help` explains any of them. `dvn --install-completion` sets up completion for bash, zsh
or fish; `dvn --show-completion` prints it.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | the kernel, the daemon or what was asked for says no; the message says why |
| 2 | the command line, the site file or this host is not as it must be; nothing was changed |

With `-o json` a command writes one JSON value on standard output. When it fails, that value is
`{"ok": false, "error": "..."}`, for a wrong site file with a list of `problems`. The message for
people is on standard error either way.
"""


def commands_page() -> str:
    parts = [_HEAD, _COMMANDS]
    for path, command in leaves():
        parts.append(f"\n## dvn {' '.join(path)}\n\n{_paragraphs(command.help)}\n")
        parts.append(f"\n    {_usage(path, command)}\n")
        rows = [_parameter(parameter) for parameter in _shown(command)]
        if rows:
            parts.append("\n" + _table(("option", "meaning", "default"), rows))
    return "".join(parts)


def leaves() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, as (words after `dvn`, command)."""
    from gateway.cli.main import whole

    yield from _leaves(whole(), ())


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", None)
    if not below:
        yield path, command
        return
    for name, child in below.items():
        yield from _leaves(child, (*path, name))


def is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _shown(command: Any) -> list[Any]:
    return [p for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]


def _word(parameter: Any) -> str:
    """What stands for a value: `FILE`, `text|json`."""
    if parameter.metavar:
        return str(parameter.metavar)
    choices = parameter.type_descriptor.choices
    if choices:
        return "|".join(str(choice) for choice in choices)
    return str(parameter.name).upper()


def _usage(path: tuple[str, ...], command: Any) -> str:
    words = ["dvn", *path]
    if any(not is_argument(parameter) for parameter in _shown(command)):
        words.append("[OPTIONS]")
    for parameter in _shown(command):
        if is_argument(parameter):
            words.append(_word(parameter) if parameter.required else f"[{_word(parameter)}]")
    return " ".join(words)


def _parameter(parameter: Any) -> tuple[str, str, str]:
    meaning = str(parameter.help)
    if is_argument(parameter):
        return f"`{_word(parameter)}`", meaning, ""
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if not parameter.is_flag:
        names += f" `{_word(parameter)}`"
    if parameter.envvar:
        meaning += f" Environment: `{parameter.envvar}`."
    default = parameter.default
    plain = "" if default is None or parameter.is_flag else str(getattr(default, "value", default))
    return names, meaning, plain


# -- the site file --------------------------------------------------------------------------------

_SITE_FILE = """\
# The site file

One YAML file for one host. `dvn validate` checks all of it and names every problem with its line.
A key that is not listed here is refused. `<name>` stands for a name of yours: at most 31 lower-case
letters, digits and `-`, a letter first. Where a list is expected, a single value may stand alone.

Rates are written as `tc` does: `500kbit`, `50mbit`, `2.5gbit`, bits per second.

Durations are written with units: `30s`, `5m`, `1h30m`, `1d`, `500ms`. Money is a number in the
currency of your prices (AWS: US dollars). A complete, commented file is
[examples/site.yaml](../examples/site.yaml).
"""


def site_file_page() -> str:
    tables: list[str] = []
    for where, model in (("", Site), ("gateway", sections.GatewayConfig)):
        tables += _tables(where, model)
    tables += _tables("burst", sections.BurstConfig)
    return _HEAD + _SITE_FILE + "".join(tables)


def _tables(where: str, model: type[BaseModel]) -> Iterator[str]:
    """The model's table, then those of the models in it."""
    title = f"`{where}`" if where else "The top level"
    about = f"\n{_paragraphs(model.__doc__)}\n" if _own_docstring(model) else ""
    told = meanings(model)
    rows = []
    below: list[tuple[str, type[BaseModel]]] = []
    for name, info in model.model_fields.items():
        if _refused(info.metadata):
            continue
        key = info.alias or name
        path = f"{where}.{key}" if where else key
        inner = _models_in(path, info.annotation)
        if info.discriminator:  # a union's members are told apart by their type
            inner = [(f"{found} ({_tag_of(member)})", member) for found, member in inner]
        below += inner
        see = "see " + " or ".join(f"`{found}`" for found, _ in inner)
        kind = see if inner else kind_of(info.annotation, info.metadata)
        default = "**required**" if info.is_required() else _default(info, name, bool(inner))
        rows.append((f"`{key}`", kind, default, told[name]))
    if not where:
        rows += [
            ("`gateway`", "see `gateway`", "", "The daemon."),
            ("`burst`", "see `burst`", "", "Borrowed machines; leave it out for networks only."),
        ]
    yield f"\n## {title}\n{about}\n" + _table(("key", "value", "default", "meaning"), rows)
    for path, inner_model in below:
        yield from _tables(path, inner_model)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What each key of a model means: the string below it in the source."""
    source = Policy if model is sections.PolicyConfig else model
    bases = [base for base in reversed(source.__mro__) if issubclass(base, BaseModel)]
    found: dict[str, str] = {}
    for each in [*(base for base in bases if base.model_fields), source]:
        found |= _docstrings(each)
    missing = [
        name
        for name, info in model.model_fields.items()
        if name not in found and not _refused(info.metadata)
    ]
    if missing:
        raise ValueError(f"{source.__module__}.{source.__name__}: no docstring under {missing}")
    return found


@functools.cache
def _docstrings(source: type) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(source))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for line, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[line.target.id] = " ".join(str(below.value.value).split())
    return found


def _own_docstring(model: type[BaseModel]) -> bool:
    return bool(model.__dict__.get("__doc__")) and model is not sections.PolicyConfig


def _refused(metadata: Sequence[Any]) -> bool:
    """Keys that only a later version knows, and those that no file may set."""
    return any(
        isinstance(entry, NotInFiles) or "not_yet" in _function(entry).__qualname__
        for entry in metadata
    )


def _models_in(path: str, annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(path, annotation)]
    arguments = [a for a in get_args(annotation) if a is not type(None) and a is not Ellipsis]
    if get_origin(annotation) is dict:
        return _models_in(f"{path}.<name>", arguments[-1])
    if get_origin(annotation) is tuple:
        return _models_in(f"{path}[]", arguments[0])
    if get_origin(annotation) is Annotated:
        members = get_args(get_args(annotation)[0])
        models = [member for member in members if isinstance(member, type)]
        tagged = [model for model in models if issubclass(model, BaseModel)]
        return [(f"{path} ({_tag_of(model)})", model) for model in tagged]
    if get_origin(annotation) is Literal:
        return []
    return [found for argument in arguments for found in _models_in(path, argument)]


def _tag_of(model: type[BaseModel]) -> str:
    """The value of `type` by which a union knows this member."""
    return str(get_args(model.model_fields["type"].annotation)[0])


def _function(entry: Any) -> Callable[..., Any]:
    function = getattr(entry, "func", None)
    return function if callable(function) else _nothing


def _nothing() -> None:
    """What metadata without a function is taken for."""


def _kinds() -> dict[str, str]:
    """Words for the kinds of value, by their validator."""
    named = {
        values.Name: "name",
        values.Interface: "interface",
        values.PrefixField: "prefix",
        values.AddressField: "address",
        values.Mac: "MAC address",
        values.SecretFile: "absolute path",
        values.Service: "`tcp/PORT` or `udp/PORT`",
        units.Duration: "duration",
        rate.BitRate: "rate",
        dhcp.LeaseTime: "duration",
        dhcp.Domain: "domain",
        dhcp.Range: "[first address, last address]",
        units.Money: "money",
        units.Addresses: "range of addresses, or a list of them",
        units.AbsolutePath: "absolute path",
        units.SocketPath: "absolute path",
    }
    words = {_key(_function(get_args(kind)[-1])): text for kind, text in named.items()}
    return words | {
        "dvn.spec.tunnel._ike_id": "address or name",
        "dvn.spec.tunnel._public_key": "WireGuard public key",
        "gateway.sections._mode": "file mode",
        "gateway.sections._state": "URL",
        "gateway.sections._mounts": "list of mounts",
        "gateway.hypervisors._libvirt_uri": "libvirt URI",
        "gateway.hypervisors._unit": "systemd unit",
    }


def _key(function: Callable[..., Any]) -> str:
    place = f":{function.__code__.co_firstlineno}" if "<lambda>" in function.__qualname__ else ""
    return f"{function.__module__}.{function.__qualname__}{place}"


def kind_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What may be written as a value, in words."""
    if get_origin(annotation) is Annotated:
        bare, *more = get_args(annotation)
        return kind_of(bare, (*more, *metadata))
    known = _kinds()
    for function in map(_function, metadata):
        if _key(function) in known:
            return known[_key(function)]
        told = inspect.getclosurevars(function).nonlocals
        if {"low", "high"} <= told.keys():
            return f"{told['low']} to {told['high']}"
    arguments = [a for a in get_args(annotation) if a is not type(None) and a is not Ellipsis]
    match get_origin(annotation):
        case origin if origin is Literal:
            return " or ".join(f"`{argument}`" for argument in arguments)
        case origin if origin is dict:
            return f"{kind_of(arguments[0])}: {kind_of(arguments[1])}, ..."
        case origin if origin is tuple:
            return f"list: {kind_of(arguments[0])}"
        case None:
            return {bool: "true or false", str: "text", int: "number"}[annotation]
    return kind_of(arguments[0])  # a value or nothing


def _default(info: Any, name: str, has_table: bool) -> str:
    value = info.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or has_table or value in ((), {}, ""):
        return ""
    if isinstance(value, timedelta):
        return duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_mode"):
        return f"`{value:04o}`"
    return f"`{value}`" if isinstance(value, str) else str(value)


def duration(value: timedelta) -> str:
    """As the site file writes it."""
    seconds = int(value.total_seconds())
    text = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        text += f"{count}{unit}" if count else ""
    return text


# -- both -----------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


def _paragraphs(text: str | None) -> str:
    told = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in told)


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "site-file.md": site_file_page,
}


def stale() -> list[str]:
    """The pages on disk that are not what the code says."""
    return [
        name
        for name, page in PAGES.items()
        if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != page()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=HOW_TO_REGENERATE, description="Write the reference pages from the code."
    )
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    given = parser.parse_args(arguments)
    old = stale()
    for name in old:
        if not given.check:
            (REFERENCE / name).write_text(PAGES[name]())
        sys.stdout.write(f"docs/reference/{name}: {'stale' if given.check else 'written'}\n")
    if not old:
        sys.stdout.write("docs/reference: up to date\n")
    return 1 if old and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
