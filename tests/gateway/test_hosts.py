"""A hypervisor's agent and its gateway: over real TLS, with a network that only notes what it is
told. On the wire: tests/dvn/test_kernel_hosts.py; with libvirt: tests/lab/test_hypervisors.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dvn import located
from dvn.hosts.domains import Misnamed
from dvn.hosts.follow import Follower
from dvn.hosts.gateway import HttpsGateway
from dvn.hosts.joining import Nic
from dvn.hosts.kept import KeptPart
from dvn.hosts.virtual import Machines
from dvn.spec import Site
from gateway import sitefile
from gateway.hosts.keeper import HostKeeper, make_hosts
from gateway.hosts.service import HostService
from gateway.https import HttpsServer
from gateway.tls import TlsIdentity
from gateway.tokens import SiteSecret
from tests.dvn.test_hosts import SITE

NOW = datetime(2026, 7, 1, tzinfo=UTC)
GATEWAY = "gateway: {hosts: {port: 8444}, directory: DIRECTORY}\n"


def a_nic(number: int, network: str = "cms/store", **values: Any) -> Nic:
    some = {"interface": f"vnet{number}", "mac": f"52:54:00:00:00:{number:02x}", **values}
    return Nic.model_validate({"network": network, "machine": f"vm{number}", **some})


class Notes:
    """A host's network that is only written down. `broken`: why it cannot be changed now."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self.changes = 0
        self.broken = ""

    def apply(self, part: Site) -> tuple[str, ...]:
        if self.broken:
            raise RuntimeError(self.broken)
        self.site = part
        self.changes += 1
        return ()

    def destroy(self, site: str) -> None:
        assert self.site is not None
        assert self.site.site == site
        self.site = None

    @property
    def ports(self) -> set[str]:
        return {
            f"{port.interface} {tenant}/{name}"
            for tenant, name, network in (self.site.networks() if self.site else ())
            for port in network.on(self.site.here if self.site else None)
        }


class Side:
    """The gateway's side, with its server on a port of its own."""

    def __init__(self, directory: Path, text: str = SITE, port: int = 0) -> None:
        whole = text + GATEWAY.replace("DIRECTORY", str(directory))
        self.file = sitefile.parse(located.loads(whole), directory / "site.yaml")
        keeper = make_hosts(self.file, lambda: NOW)
        assert keeper is not None
        self.keeper: HostKeeper = keeper
        self.wakes = 0
        self.service = HostService(
            self.file.site,
            keeper.reports,
            SiteSecret.load_or_create(directory),
            site_now=lambda: keeper.reports.joined().site,
            changed=self._woken,
            clock=lambda: NOW,
        )
        self.server = HttpsServer(
            self.service,
            address="127.0.0.1",
            port=port,
            identity=TlsIdentity.load_or_create(directory, "127.0.0.1", NOW),
            what="hosts",
            where="gateway.hosts",
        )
        self.server.start()
        self.port = self.server.port

    def _woken(self) -> None:
        self.wakes += 1

    def client(self, host: str = "hv1", pin: str = "") -> HttpsGateway:
        pin = pin or self.server.pin
        url = f"https://127.0.0.1:{self.port}"
        return HttpsGateway(url, pin, self.service.token(host), timeout=10)

    def ports(self) -> set[str]:
        site = self.keeper.reports.joined().site
        return {
            f"{port.host} {port.interface} {tenant}/{name}"
            for tenant, name, network in site.networks()
            for port in network.ports
            if port.dynamic
        }


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Side]]:
    sides: list[Side] = []

    def begin(text: str = SITE) -> Side:
        port = sides[0].port if sides else 0
        for side in sides:
            side.server.stop()
        sides.append(Side(tmp_path / "gateway", text, port))
        return sides[-1]

    yield begin
    for side in sides:
        side.server.stop()


class Hypervisor:
    """A follower and what it has to do with. The client outlives the gateway's restarts."""

    def __init__(self, directory: Path, client: HttpsGateway, host: str = "hv1") -> None:
        self.network = Notes()
        self.machines: Machines | None = Machines()
        self.follower = Follower(
            host=host,
            gateway=client,
            machines=lambda: self.machines,
            network=self.network,
            kept=KeptPart(directory / host),
            now=lambda: NOW,
            interval=1.0,
        )

    def run(self, *nics: Nic) -> None:
        self.machines = Machines(nics)
        self.follower.round()

    @property
    def closed(self) -> tuple[str, ...]:
        return self.network.site.closed if self.network.site else ()


OWN = {"tap3 cms/farm", "tap4 cms/farm"}  # what the file itself has on hv1


def test_a_machine_that_starts_is_a_port_on_both_sides(
    start: Callable[..., Side], tmp_path: Path
) -> None:
    side = start()
    here = Hypervisor(tmp_path, side.client())
    here.run()
    assert here.network.ports == OWN
    here.run(a_nic(1), a_nic(2, "atlas/farm", address="10.9.0.7"))
    assert here.network.ports == {*OWN, "vnet1 cms/store", "vnet2 atlas/farm"}
    assert side.ports() == {"hv1 vnet1 cms/store", "hv1 vnet2 atlas/farm"}
    assert side.wakes == 1
    changes = here.network.changes
    here.run(a_nic(1), a_nic(2, "atlas/farm", address="10.9.0.7"))
    assert (here.network.changes, side.wakes) == (changes, 1), "nothing new, nothing done"
    here.run(a_nic(2, "atlas/farm", address="10.9.0.7"))
    assert here.network.ports == {*OWN, "vnet2 atlas/farm"}
    assert side.ports() == {"hv1 vnet2 atlas/farm"}
    (view, *_) = side.keeper.reports.heard().values()
    assert view.at == NOW


def test_without_the_gateway_the_last_word_stands(
    start: Callable[..., Side], tmp_path: Path
) -> None:
    """Also for an agent that starts, and for a machine that starts then."""
    side = start()
    before = Hypervisor(tmp_path, side.client())
    before.run(a_nic(1))
    side.server.stop()
    before.run(a_nic(1), a_nic(2))
    assert before.network.ports == {*OWN, "vnet1 cms/store", "vnet2 cms/store"}
    assert "does not answer" in before.follower.status.gateway
    after = Hypervisor(tmp_path, side.client())
    after.machines = None  # libvirt does not answer either
    after.follower.round()
    assert after.network.site == before.network.site
    side = start()
    after.follower.round()
    assert side.ports() == {"hv1 vnet1 cms/store", "hv1 vnet2 cms/store"}


def test_a_restarted_gateway_forgets_no_machine(start: Callable[..., Side], tmp_path: Path) -> None:
    """Before any host has asked again: else it would take their tunnels away."""
    side = start()
    Hypervisor(tmp_path, side.client()).run(a_nic(1))
    assert start().ports() == {"hv1 vnet1 cms/store"}


def test_who_came_first_keeps_the_address_and_the_other_is_shut_out(
    start: Callable[..., Side], tmp_path: Path
) -> None:
    side = start()
    one = Hypervisor(tmp_path, side.client("hv1"))
    two = Hypervisor(tmp_path, side.client("hv2"), "hv2")
    two.run()  # knows nothing of the other's yet
    one.run(a_nic(1, address="10.8.0.9"))
    two.run(a_nic(2, address="10.8.0.9"))
    assert "vnet1 cms/store" in one.network.ports
    assert "vnet2 cms/store" not in two.network.ports
    assert set(two.closed) == {"vnet2"}
    assert "10.8.0.9 is vm1 on hv1's already" in two.follower.status.refused[0]
    one.run()
    two.run(a_nic(2, address="10.8.0.9"))
    assert "vnet2 cms/store" in two.network.ports
    assert not two.closed


@pytest.mark.parametrize("gateway_there", [True, False])
def test_a_network_that_is_not_there_or_not_for_this_host_stays_closed(
    start: Callable[..., Side], tmp_path: Path, gateway_there: bool
) -> None:
    side = start()
    here = Hypervisor(tmp_path, side.client("hv3"), "hv3")
    here.run()
    if not gateway_there:
        side.server.stop()
    good = a_nic(1, "atlas/farm")
    here.machines = Machines(
        (good, a_nic(2, "cms/farm"), a_nic(3, "atlas/nothing")),
        (Misnamed("vm4", "vnet4", "names no network"),),
    )
    here.follower.round()
    assert here.network.ports == {"tap3 atlas/farm", "vnet1 atlas/farm"}
    assert here.closed == ("vnet2", "vnet3", "vnet4")
    said = " ".join(here.follower.status.refused)
    for word in ("vnet2", "tenant cms", "vnet3", "no network nothing", "vnet4", "names no network"):
        assert word in said


def test_a_host_that_the_site_has_no_more_takes_its_part_down(
    start: Callable[..., Side], tmp_path: Path
) -> None:
    side = start()
    here = Hypervisor(tmp_path, side.client("hv3"), "hv3")
    here.run(a_nic(1, "atlas/farm"))
    without = "".join(
        line.replace("{host: hv3, interface: tap3}", "{interface: tap9}")
        for line in SITE.splitlines(keepends=True)
        if not line.startswith("  hv3:")
    )
    start(without)
    assert here.network.ports
    here.run(a_nic(1, "atlas/farm"))
    assert here.network.site is None
    assert "no host of this site any more" in here.follower.status.gateway


def test_a_void_token_is_refused_and_the_host_keeps_what_it_has(
    start: Callable[..., Side], tmp_path: Path
) -> None:
    side = start()
    here = Hypervisor(tmp_path, side.client())
    here.run()
    side = start(SITE.replace("address: 198.51.100.11}", "address: 198.51.100.11}, invitation: 2"))
    here.run(a_nic(1))
    assert "made void: invite it again" in here.follower.status.gateway
    assert here.network.ports >= OWN
    assert side.ports() == set()
    again = Hypervisor(tmp_path / "again", side.client())
    again.run(a_nic(1))
    assert side.ports() == {"hv1 vnet1 cms/store"}


@pytest.mark.parametrize("token", ["", "hv1.1", "hv1.1." + "0" * 64, "é", "x" * 200])
def test_without_a_genuine_token_nothing_is_told(start: Callable[..., Side], token: str) -> None:
    side = start()
    answer = side.service.answer("POST", "/host", token, {}, "192.0.2.9")
    assert answer.status == 403
    assert set(answer.body or {}) == {"error"}
    assert side.service.refusals == 1


def test_a_leases_token_is_no_hosts_token(start: Callable[..., Side], tmp_path: Path) -> None:
    secret = SiteSecret.load_or_create(tmp_path / "gateway")
    assert start().service.answer("POST", "/host", secret.token("hv1.1"), {}, "x").status == 403


def test_who_has_another_key_is_told_nothing(start: Callable[..., Side], tmp_path: Path) -> None:
    """Not even the token."""
    side = start()
    other = TlsIdentity.load_or_create(tmp_path / "other", "127.0.0.1", NOW)
    here = Hypervisor(tmp_path, side.client(pin=other.pin))
    here.run(a_nic(1))
    assert "is not our gateway" in here.follower.status.gateway
    assert side.keeper.reports.heard() == {}
    assert here.network.site is None


def test_a_host_that_cannot_is_seen_at_the_gateway_and_tries_again(
    start: Callable[..., Side], tmp_path: Path
) -> None:
    side = start()
    here = Hypervisor(tmp_path, side.client())
    here.network.broken = "the kernel would not"
    here.run()
    here.run()
    assert side.keeper.reports.heard()["hv1"].state["error"] == "the kernel would not"
    here.network.broken = ""
    here.run()
    here.run()
    assert side.keeper.reports.heard()["hv1"].state["error"] == ""
    assert here.network.ports == OWN


def test_an_invitation_is_what_the_agent_reads(start: Callable[..., Side], tmp_path: Path) -> None:
    from dvn.hosts import config

    side = start()
    side.keeper.serve(lambda: side.file.site, lambda: None)
    path = tmp_path / "agent.yaml"
    path.write_text(side.keeper.invitation("hv1"))
    path.chmod(0o600)
    found = config.load(path)
    assert (found.host, found.gateway) == ("hv1", "https://198.51.100.1:8444")
    assert found.pin == side.server.pin
    assert found.token == side.service.token("hv1")
    assert found.token not in repr(found)
    path.chmod(0o644)
    with pytest.raises(located.SpecError, match="others may read this file"):
        config.load(path)


def test_the_hosts_are_shown_with_what_is_wrong(start: Callable[..., Side], tmp_path: Path) -> None:
    side = start()
    side.keeper.serve(lambda: side.keeper.reports.joined().site, lambda: None)
    Hypervisor(tmp_path, side.client()).run(a_nic(1), a_nic(2, "cms/nothing"))
    views = {v.name: v for v in side.keeper.views(side.keeper.reports.joined().site)}
    assert views["hv1"].machines == 2
    assert views["hv1"].seen == NOW
    assert ["no network nothing" in words for words in views["hv1"].problems] == [True]
    assert views["hv2"].seen is None


def test_an_address_that_is_not_there_yet_is_said_and_tried_again(
    start: Callable[..., Side],
) -> None:
    side = start()
    side.keeper.serve(lambda: side.file.site, lambda: None)
    side.keeper.listen()
    assert "198.51.100.1 port 8444" in side.keeper.error
    assert "see gateway.hosts in the site file" in side.keeper.error
    assert side.keeper.since == NOW
    side.keeper.listen()
    side.keeper.stop()
