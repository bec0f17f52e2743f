"""Each batch system's section of a site file becomes its adapter and its join recipe."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml

from burst.join.bundle import BundleError
from burst.lrms.base import Announces, LrmsError
from gateway import sitefile
from gateway.batch_parts import Announced, condor_token, make_lrms, make_recipe, name_teller
from gateway.sections import BurstConfig
from tests.gateway.leases import lease as a_lease

RIGHT = (Path(__file__).parent / "right.yaml").read_text()
HERE = {"qmaster": "head", "qmaster_address": "10.9.0.10"}
SERVER = {"server": "head", "server_address": "10.9.0.10"}


def burst(tmp_path: Path, lrms: dict[str, object]) -> BurstConfig:
    document = yaml.safe_load(RIGHT)
    document["burst"]["lrms"] = lrms
    for pool in document["burst"]["pools"].values():
        pool["from"] = pool["from"][:1]
    file = tmp_path / "site.yaml"
    file.write_text(json.dumps(document))
    found = sitefile.load(file).burst
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("lrms", "adapter"),
    [
        ({"type": "slurm", "munge_key": "/k", "slurm_conf": "/c"}, "Slurm"),
        ({"type": "htcondor", "central_manager": "10.9.0.10", "domain": "lab"}, "HtCondor"),
        ({"type": "gridengine", **HERE}, "GridEngine"),
        ({"type": "openpbs", **SERVER}, "OpenPbs"),
        ({"type": "torque", **SERVER}, "Torque"),
        ({"type": "lsf", "lsf_conf": "/share/lsf.conf"}, "Lsf"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_the_section_names_the_adapter(
    tmp_path: Path, lrms: dict[str, object], adapter: str
) -> None:
    config = burst(tmp_path, lrms)
    assert type(make_lrms(config)).__name__ == adapter
    if lrms["type"] in ("gridengine", "openpbs", "torque"):
        assert isinstance(make_lrms(config), Announces)
        assert isinstance(make_recipe(config, 1462), Announced)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Told:
    """An LRMS that is told of nodes, or refuses them."""

    def __init__(self, refuses: str = "") -> None:
        self.nodes: list[tuple[str, str, int, str]] = []
        self.refuses = refuses

    def announce(self, node: str, *, address: str, cores: int, partition: str) -> None:
        if self.refuses:
            raise LrmsError(self.refuses)
        self.nodes.append((node, address, cores, partition))


def announced(tmp_path: Path, lrms: Told, told: list[tuple[str, str, str]]) -> Announced:
    config = burst(tmp_path, {"type": "openpbs", **SERVER})
    recipe = make_recipe(config, 1462)
    assert isinstance(recipe, Announced)
    return Announced(
        recipe._recipe,
        lambda: lrms,  # type: ignore[arg-type,return-value]
        lambda *words: told.append(words),
    )


def test_a_node_is_named_and_declared_before_its_machine_gets_the_bundle(tmp_path: Path) -> None:
    lrms, told = Told(), list[tuple[str, str, str]]()
    lease = a_lease()
    bundle = announced(tmp_path, lrms, told).bundle(lease, ("burst-cms",))
    assert bundle.node == lease.node
    assert told == [("add", lease.node, lease.address)]
    assert lrms.nodes == [(lease.node, lease.address, lease.cores, "burst-cms")]


def test_a_node_that_cannot_be_declared_has_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot be declared: no permission"):
        announced(tmp_path, Told("no permission"), []).bundle(a_lease(), ("burst-cms",))


def test_the_name_command_gets_action_name_and_address(tmp_path: Path) -> None:
    told = tmp_path / "told"
    command = script(tmp_path / "names", f'echo "$@" >> {told}')
    config = burst(tmp_path, {"type": "gridengine", "name_command": f"{command} dns", **HERE}).lrms
    name_teller(config)("add", "cms-1", "10.9.0.101")  # type: ignore[arg-type]
    assert told.read_text() == "dns add cms-1 10.9.0.101\n"
    script(tmp_path / "names", "echo no zone >&2; exit 3")
    with pytest.raises(BundleError, match="status 3: no zone"):
        name_teller(config)("add", "cms-1", "10.9.0.101")  # type: ignore[arg-type]


def test_a_condor_token_may_advertise_a_machine_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "condor_token_create", 'echo "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    lrms = {"type": "htcondor", "central_manager": "10.9.0.10", "domain": "lab"}
    config = burst(tmp_path, {**lrms, "token_lifetime": "1h"}).lrms
    assert condor_token(config)().split() == [  # type: ignore[arg-type]
        "-identity", "burst@lab", "-lifetime", "3600",
        "-authz", "ADVERTISE_STARTD", "-authz", "ADVERTISE_MASTER", "-authz", "READ",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["openpbs", "torque"])
def test_pbs_machines_know_their_server(tmp_path: Path, kind: str) -> None:
    config = burst(tmp_path, {"type": kind, **SERVER})
    recipe = make_recipe(config, 1462)
    assert isinstance(recipe, Announced)
    bundle = recipe._recipe.bundle(a_lease(), ("burst-cms",))
    files = {file.path: file.content.decode() for file in bundle.files}
    assert any("head" in text for path, text in files.items() if "mom_priv/config" in path)
    assert "10.9.0.10 head" in files["/etc/hosts"]


def test_an_lsf_machine_has_its_queues_resource(tmp_path: Path) -> None:
    conf = tmp_path / "lsf.conf"
    conf.write_text('LSF_SERVERDIR=/share/lsf/etc\nLSF_LOCAL_RESOURCES="[resource other]"\n')
    recipe = make_recipe(burst(tmp_path, {"type": "lsf", "lsf_conf": str(conf)}), 1462)
    bundle = recipe.bundle(a_lease(), ("burst-cms",))
    text = bundle.files[0].content.decode()
    assert text.endswith('LSF_LOCAL_RESOURCES="[resource burst_cms]"\n')
    assert "other" not in text
    conf.write_text("")
    with pytest.raises(BundleError, match="LSF_SERVERDIR"):
        make_recipe(burst(tmp_path, {"type": "lsf", "lsf_conf": str(conf)}), 1462).bundle(
            a_lease(), ("burst-cms",)
        )
