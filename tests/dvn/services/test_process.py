"""What the agent leaves for the DHCP server to read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dvn import located
from dvn.compile import compile_site
from dvn.services import process
from dvn.services.config import CONFIG, Service, digest
from dvn.spec import parse_site
from tests.dvn.sites import FULL, a_kernel


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_the_server_can_read_its_file_whatever_the_agents_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon keeps its secrets by umask 077, and the agent is its child."""
    monkeypatch.setattr(process, "RUN", tmp_path / "run")
    monkeypatch.setattr(process, "LIB", tmp_path / "lib")
    monkeypatch.setattr(process.Process, "is_alive", lambda _self: True)
    file = tmp_path / "run/cnaf/services" / CONFIG

    def load(_self: object, _word: str) -> dict[str, Any]:
        return {"digest": digest(file.read_text())}

    monkeypatch.setattr(process.Process, "_ask", load)
    site = parse_site(located.loads(FULL.replace("services: [tcp/22]", "dhcp: true")))
    state = compile_site(site, a_kernel().look("cnaf").host).state
    before = os.umask(0o077)
    try:
        (tmp_path / "run").mkdir()  # the daemon's, for its sockets
        process.Process("cnaf").serve(tuple(t for t in state.things if isinstance(t, Service)))
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o644
    for directory in (file.parent, file.parent.parent, file.parent.parent.parent):
        assert directory.stat().st_mode & 0o001, directory
