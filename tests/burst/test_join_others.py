"""What a machine gets to join HTCondor or Grid Engine."""

from __future__ import annotations

from typing import Any

import pytest

from burst.join.bundle import BundleError, Mount
from burst.join.gridengine import GridEngineJoin, machine_script
from burst.join.htcondor import HtCondorJoin, machine_config
from tests.gateway.leases import lease


def condor(**changed: Any) -> HtCondorJoin:
    values: dict[str, Any] = {
        "central_manager": "10.9.0.10",
        "domain": "lab",
        "token": lambda: "eyJ.abc.def\n",
        "mounts": (Mount.parse("10.9.0.10:/home /home nfs4"),),
    }
    return HtCondorJoin(**{**values, **changed})


def test_a_condor_machine_takes_only_what_is_routed_to_it_and_retires_in_peace() -> None:
    text = machine_config(
        central_manager="10.9.0.10", domain="lab", node="cms-1", partition="burst-cms",
        features=("avx",), cores=4, memory_mb=7000,
    )  # fmt: skip
    lines = dict(line.split(" = ", 1) for line in text.splitlines())
    assert lines["START"] == (
        "(TARGET.BurstTarget =!= undefined) && stringListMember(MY.BurstPool, TARGET.BurstTarget)"
    )
    assert lines["MAXJOBRETIREMENTTIME"] == "604800"
    assert (lines["BurstNode"], lines["BurstPool"]) == ('"cms-1"', '"burst-cms"')
    assert lines["BurstHeartbeat"] == lines["UPDATE_INTERVAL"]
    assert {"BurstNode", "BurstPool", "BurstFeatures", "BurstHeartbeat"} <= set(
        lines["STARTD_ATTRS"].split()
    )


def test_a_condor_machine_is_known_by_its_address_in_the_tunnel() -> None:
    """It has two, and the pool can reach only this one."""
    asked = lease()
    bundle = condor().bundle(asked, ("burst-cms",))
    text = next(f for f in bundle.files if "config.d" in f.path).content.decode()
    assert f"NETWORK_INTERFACE = {asked.address}\n" in text


def test_a_condor_bundle_keeps_its_token_to_root() -> None:
    bundle = condor().bundle(lease(), ("burst-cms",))
    token = next(file for file in bundle.files if "tokens.d" in file.path)
    assert (token.content, token.mode) == (b"eyJ.abc.def\n", 0o600)
    assert "abc" not in repr(bundle)
    assert [reach.name for reach in bundle.reach] == ["condor_collector", "NFS server"]


def test_what_is_no_token_is_not_sent() -> None:
    with pytest.raises(BundleError, match="no token"):
        condor(token=lambda: "Failed to sign").bundle(lease(), ("burst-cms",))


def test_a_grid_engine_machines_cell_belongs_to_the_daemons_user() -> None:
    script = machine_script("head", "default", 6444, 6445)
    assert "echo head > /var/lib/gridengine/default/common/act_qmaster" in script
    owner = "chown -R sgeadmin:sgeadmin /var/lib/gridengine/default"
    assert script.index("act_qmaster") < script.index(owner)


def test_a_grid_engine_machine_knows_its_qmaster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burst.join.gridengine.accounts", lambda names: ((), ()))
    join = GridEngineJoin("head", "10.9.0.10")
    bundle = join.bundle(lease(), ("burst.q",))
    hosts = next(file.content for file in bundle.files if file.path == "/etc/hosts")
    assert b"10.9.0.10 head" in hosts
    assert bundle.reach[0].port == 6444
    assert [command.name for command in bundle.commands] == ["hostname", "cell", "sge_execd"]
