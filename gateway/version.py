"""This software's version, from the installed package or, in a checkout, from its project file."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def version() -> str:
    try:
        return metadata.version("dvn")
    except metadata.PackageNotFoundError:
        return _of_checkout(Path(__file__).parents[1] / "pyproject.toml")


def _of_checkout(project: Path) -> str:
    import tomllib

    try:
        with project.open("rb") as stream:
            return str(tomllib.load(stream)["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return "unknown"
