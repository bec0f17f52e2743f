"""Imports go one way: lab -> gateway -> {dvn, burst}. Read from the source, so that an import
inside a function or under TYPE_CHECKING counts as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("dvn", "burst", "gateway", "lab")
MAY_IMPORT = {
    "dvn": {"dvn"},
    "burst": {"burst"},
    "gateway": {"gateway", "dvn", "burst"},
    "lab": {"lab", "gateway", "dvn", "burst"},
}
NEVER = {"tests", "bench"}  # no room of the product knows them
# What only some rooms may load: the network engine knows no cloud, the burst engine no netlink,
# and lab packages are not installed at a real site.
ONLY_IN = {
    "boto3": {"burst", "lab"},
    "botocore": {"burst", "lab"},
    "pyroute2": {"dvn", "lab"},
    "sqlalchemy": {"gateway", "lab"},
    "alembic": {"gateway"},
    "fastapi": {"gateway"},
    "uvicorn": {"gateway"},
    "typer": {"gateway", "lab"},
    "moto": {"lab"},
    "werkzeug": {"lab"},
    "scapy": {"lab"},
    "matplotlib": {"burst", "lab"},  # the simulator draws, where it is installed
    "libvirt": {"burst", "dvn"},
    "pycdlib": {"burst"},
}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import statement, and of importlib calls with a literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")
            parent = ".".join(base[: len(base) - node.level + 1]) if node.level else ""
            yield node.lineno, ".".join(filter(None, (parent, node.module or "")))
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def offences(source: str, room: str, package: str) -> list[str]:
    found = []
    for line, module in imported(ast.parse(source), package):
        top = module.partition(".")[0]
        if top in NEVER or (top in ROOMS and top not in MAY_IMPORT[room]):
            found.append(f"{line}: {room} imports {module}")
        elif room not in ONLY_IN.get(top, {room}):
            found.append(f"{line}: {module} belongs in {', '.join(sorted(ONLY_IN[top]))}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = []
    for path in files:
        package = ".".join(path.relative_to(ROOT).parent.parts)
        at = path.relative_to(ROOT)
        wrong += [f"{at}:{text}" for text in offences(path.read_text(), room, package)]
    assert wrong == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("dvn", "import burst.model"),
        ("dvn", "def f():\n    from gateway import store"),
        ("burst", "if TYPE_CHECKING:\n    from dvn.spec import Site"),
        ("burst", "import lab.hosts as h"),
        ("gateway", "from lab import hosts"),
        ("burst", "import importlib\nimportlib.import_module('dvn.spec')"),
        ("gateway", "from tests.gateway import world"),
        ("dvn", "import boto3"),
    ],
)
def test_the_test_itself_finds_offences(room: str, source: str) -> None:
    assert len(offences(source, room, f"{room}.x")) == 1


def test_what_is_allowed_is_no_offence() -> None:
    source = "import json\nfrom dvn.spec import Site\nfrom burst import model\nfrom . import store"
    assert offences(source, "gateway", "gateway") == []
