"""Each wrong file, and what a person reads about it. `wrong/NAME.yaml` gives `wrong/NAME.txt` on
standard error and exit status 2; nothing in the kernel changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dvn.engine import Engine
from dvn.kernel.fake import FakeKernel
from dvn.kernel.state import HostLink
from gateway.cli import change, network

WRONG = Path(__file__).parent / "wrong"
FILES = sorted(WRONG.glob("*.yaml"))


def a_host() -> FakeKernel:
    """wan0 and lan0, a bridge of libvirt with a port, and two devices that stand in our way."""
    kernel = FakeKernel()
    for link in (
        HostLink("wan0", "", 1500, True, False),
        HostLink("lan0", "", 1500, True, False),
        HostLink("virbr0", "bridge", 1500, True, False),
        HostLink("vnet1", "tun", 1500, True, False, master="virbr0"),
        HostLink("lan0.102", "vlan", 1500, True, False, slot=("vlan", "lan0", 102)),
        HostLink("b-cms-store", "bridge", 1500, True, False),
    ):
        kernel.foreign[link.name] = link
    kernel.foreign_addresses = {"198.51.100.1", "192.168.122.1"}
    return kernel


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = a_host()
    for module in (network, change):
        monkeypatch.setattr(module, "engine", lambda: Engine(kernel))
    return kernel


def test_there_are_many() -> None:
    assert len(FILES) >= 20


# A file that is right on another host passes `validate`, which does not look at this one.
CASES = [
    pytest.param(command, file, id=f"{command}-{file.stem}")
    for file in FILES
    for command in ("validate", "plan", "apply")
    if not (command == "validate" and file.stem.startswith("host-"))
]


@pytest.mark.parametrize(("command", "file"), CASES)
def test_message_and_status(
    command: str, file: Path, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(WRONG)
    result = CliRunner().invoke(network.app, [command, file.name])
    assert result.stderr == file.with_suffix(".txt").read_text()
    assert result.exit_code == 2
    assert result.stdout == ""
    assert kernel.done == []


@pytest.mark.parametrize("command", ["validate", "plan", "apply", "show", "destroy"])
def test_missing_file(command: str, kernel: FakeKernel) -> None:
    result = CliRunner().invoke(network.app, [command, "nowhere.yaml"])
    assert result.exit_code == 2
    assert result.stderr == (
        "nowhere.yaml: there is no such file; check the path, or write the file first\n"
    )
    assert kernel.done == []


def test_as_json(kernel: FakeKernel) -> None:
    result = CliRunner().invoke(network.app, ["apply", str(WRONG / "vlan-5000.yaml"), "-o", "json"])
    assert result.exit_code == 2
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert [problem["line"] for problem in answer["problems"]] == [8]
    assert result.stderr == f"{answer['error']}\n"
    assert ":8: " in answer["error"]


def test_what_the_kernel_refuses_as_json(kernel: FakeKernel, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("site: cnaf\ntenants: {cms: {networks: {farm: {prefix: 10.9.9.0/24}}}}\n")
    kernel.fail = lambda _step: True
    result = CliRunner().invoke(network.app, ["apply", str(file), "-o", "json"])
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    assert "told to fail" in answer["error"]
    assert result.stderr == f"dvn: {answer['error']}\n"


def test_a_right_file_passes_all_commands(kernel: FakeKernel, tmp_path: Path) -> None:
    """The positive control: the same host, commands and checks."""
    file = tmp_path / "site.yaml"
    file.write_text(
        "site: cnaf\nunderlay: {interface: wan0, address: 198.51.100.1}\ntenants:\n  cms:\n"
        "    networks:\n      farm: {prefix: 10.9.9.0/24, vlan: {id: 101, uplink: lan0}}\n"
    )
    runner = CliRunner()
    for command in ("validate", "plan", "apply", "apply", "show", "destroy"):
        for form in ("text", "json"):
            result = runner.invoke(network.app, [command, str(file), "-o", form])
            assert result.exit_code == 0, result.output
            if form == "json":
                json.loads(result.stdout)
    assert kernel.links == {}
    assert kernel.tables == {}
