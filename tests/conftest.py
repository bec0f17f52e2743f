"""Which tests run where: `kernel`, `native`, `whole` need root on a full kernel, `long` must be
asked for."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import HealthCheck, settings

from dvn.change.files import STATE_VARIABLE
from lab.kernel.vm import MARK

# The machines are shared and their speed changes by the minute: how long a case takes, or its
# generation, says nothing of the code.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """History and trials of a test are its own, not the machine's."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path_factory.mktemp("dvn-state")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")


def pytest_sessionstart() -> None:
    """In the VM br_netfilter is there from the start: loaded by a test, it would show the bridged
    frames of all hosts that others have just then to rules that are not made for them."""
    if os.environ.get(MARK) == "vm":
        subprocess.run(["modprobe", "br_netfilter"], check=False, capture_output=True, timeout=60)


def _why_not_here() -> str | None:
    """Why tests that need a full kernel cannot run in this process; None if they can."""
    if os.geteuid() != 0:
        return "needs root on a full kernel: run it with ./run test"
    if os.environ.get(MARK):  # set by lab.kernel, which has seen to it
        return None
    return "runs on the lab's kernel: ./run test, or python -m lab.kernel -- pytest ..."


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    why = _why_not_here()
    for item in items:
        if why and any(item.get_closest_marker(name) for name in ("kernel", "native", "whole")):
            item.add_marker(pytest.mark.skip(reason=why))
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long: runs with --long"))
