"""YAML whose every value knows its file and line, and problems a person can act on.

Scalars follow YAML 1.2's core schema, not PyYAML's 1.1: in 1.1 `no` is false and the MAC address
`52:54:00:12:34:56` is the base-60 number 40783850516, which no site file ever means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from dvn.problems import Path_, Problem, SpecError

Scalar: TypeAlias = bool | int | float | str | None

__all__ = ["Located", "Path_", "Problem", "SpecError", "load", "loads"]

_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Located:
    """One YAML value with its place. `key_line`: the line of its key or, in a list, of the item."""

    value: Scalar | dict[str, Located] | list[Located]
    file: str
    line: int
    key_line: int

    def plain(self) -> Any:
        """The value without places: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def get(self, key: str | int) -> Located | None:
        if isinstance(self.value, dict):
            return self.value.get(str(key)) if isinstance(key, str) else None
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return self.value[key]
        return None

    def child(self, key: str | int) -> Located:
        """The child under `key`; KeyError if there is none."""
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: str | int) -> bool:
        return self.get(key) is not None

    def keys(self) -> Iterator[str]:
        return iter(self.value if isinstance(self.value, dict) else ())

    def without(self, *path: str | int) -> Located:
        """A copy in which the value at `path` is missing; itself if there is none."""
        if not path or self.get(path[0]) is None:
            return self
        head, rest = path[0], path[1:]
        if isinstance(self.value, dict):
            kept = {
                k: c.without(*rest) if k == head else c
                for k, c in self.value.items()
                if rest or k != head
            }
            return replace(self, value=kept)
        assert isinstance(self.value, list)
        items = [
            c.without(*rest) if i == head else c
            for i, c in enumerate(self.value)
            if rest or i != head
        ]
        return replace(self, value=items)

    def at(self, path: Iterable[str | int]) -> Located:
        """The deepest value that exists on the way to `path`."""
        here = self
        for key in path:
            found = here.get(key)
            if found is None:
                break
            here = found
        return here

    def without_keys(self, keys: Iterable[str]) -> Located:
        """A copy of this mapping without some of its keys."""
        assert isinstance(self.value, dict)
        gone = frozenset(keys)
        return replace(self, value={k: c for k, c in self.value.items() if k not in gone})

    def line_of(self, path: Iterable[str | int]) -> int:
        return self.at(path).key_line

    def problem(self, what: str, fix: str = "", *, path: Path_ = ()) -> Problem:
        """A problem with this value, or with what lies at `path` in it."""
        return Problem(self.file, self.line_of(path), what, fix, path)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 scalars and without anchors."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"anchors and aliases (here {event.anchor!r}) are not supported; "
                "write the value out",
                event.start_mark,
            )
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)


def load(path: Path | str) -> Located:
    """Read a YAML file whose top level is a mapping.

    Raises SpecError: file missing or unreadable, not UTF-8, not YAML, a key twice, an alias.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(
            [
                Problem(
                    str(path), 0, "there is no such file", "check the path, or write the file first"
                )
            ]
        ) from None
    except OSError as error:
        raise SpecError(
            [
                Problem(
                    str(path),
                    0,
                    f"the file cannot be read: {error.strerror}",
                    "give the path of a readable file",
                )
            ]
        ) from None
    if len(raw) > _MAX_BYTES:
        raise SpecError(
            [Problem(str(path), 0, "the file is larger than 4 MiB", "that is no site file")]
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError(
            [Problem(str(path), line, "this is not UTF-8 text", "save the file as UTF-8")]
        ) from None
    return loads(text, str(path))


def loads(text: str, file: str = "<text>") -> Located:
    """The same for text; `file` is the name problems are reported under."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            problems: list[Problem] = []
            doc = _located(loader, node, file, node.start_mark.line + 1, problems) if node else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax(error, file)]) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise SpecError(
            [
                Problem(
                    file,
                    line,
                    f"there is a character YAML forbids (U+{error.character:04X})",
                    "remove it",
                )
            ]
        ) from None
    except RecursionError:
        raise SpecError(
            [Problem(file, 0, "the file is nested too deeply", "write it flat")]
        ) from None
    if problems:
        raise SpecError(problems)
    if doc is None or not isinstance(doc.value, dict):
        raise SpecError(
            [
                Problem(
                    file,
                    doc.line if doc else 1,
                    "the file is not a mapping of keys to values",
                    "start with a line like `site: mysite`",
                )
            ]
        )
    return doc


def _syntax(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 0
    what = (error.problem or "cannot be understood").replace("\n", " ")
    if "character '\\t'" in what:
        return Problem(file, line, "there is a tab where YAML wants spaces", "indent with spaces")
    if "anchors and aliases" in what:
        what, _, fix = what.partition("; ")
        return Problem(file, line, what, fix)
    context = f" {error.context}" if error.context else ""
    return Problem(
        file,
        line,
        f"this is not valid YAML: {what}{context}",
        "check indentation, colons and quotes on this line and the one above",
    )


def _located(
    loader: _Loader, node: yaml.Node, file: str, key_line: int, problems: list[Problem]
) -> Located:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, Located] = {}
        for key_node, value_node in node.value:
            here = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(Problem(file, here, "a key must be a plain word", "quote it"))
                continue
            key = str(key_node.value)
            if key in seen:
                problems.append(
                    Problem(
                        file,
                        here,
                        f"the key `{key}` is here a second time (first on line "
                        f"{seen[key].key_line})",
                        "keep one of them",
                    )
                )
                continue
            seen[key] = _located(loader, value_node, file, here, problems)
        return Located(seen, file, line, key_line)
    if isinstance(node, yaml.SequenceNode):
        items = [
            _located(loader, item, file, item.start_mark.line + 1, problems) for item in node.value
        ]
        return Located(items, file, line, key_line)
    value: Any = _scalar(node)
    if value is _UNKNOWN_TAG:
        problems.append(
            Problem(file, line, f"the tag `{node.tag}` is not supported", "write a plain value")
        )
        value = None
    return Located(value, file, line, key_line)


_UNKNOWN_TAG = object()


def _scalar(node: yaml.Node) -> Any:
    text = str(node.value)
    match node.tag.removeprefix("tag:yaml.org,2002:"):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 16) if text.lower().startswith("0x") else int(text)
        case "float":
            return float(text)
        case "str":
            return text
        case _:
            return _UNKNOWN_TAG
