"""Agent and provider find Debian's libvirt binding from a virtual environment of Debian's Python,
and tell an environment that has none from one that does."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burst.providers import libvirt_binding as providers
from dvn.hosts import binding as agents
from dvn.hosts.virtual import Libvirt, NoLibvirtError

Binding = Callable[[Path], Any]
both = pytest.mark.parametrize("binding", [providers.binding, agents.binding])


@pytest.fixture(autouse=True)
def an_environment_without(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "libvirt":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in ("libvirt", "libvirtmod"):  # put back at the end, with what a test had loaded
        monkeypatch.setitem(sys.modules, name, sys)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "base_prefix", "/usr")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "libvirtmod.py").write_text("ANSWER = 42\n")
    (tmp_path / "libvirt.py").write_text("from libvirtmod import ANSWER\n")
    return tmp_path


@both
def test_debians_is_found_and_nothing_else_of_its_place(binding: Binding, place: Path) -> None:
    (place / "stranger.py").write_text("")
    before = list(sys.path)
    assert binding(place).ANSWER == 42
    assert sys.path == before


@both
def test_it_is_not_for_another_python(
    binding: Binding, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")
    with pytest.raises(ImportError):
        binding(place)


@both
def test_a_place_without_it_is_an_import_error(binding: Binding, tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="no libvirtmod in"):
        binding(tmp_path)


def test_the_agent_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")
    with pytest.raises(NoLibvirtError, match="apt install python3-libvirt"):
        Libvirt("qemu:///system")
