"""Which NICs of a libvirt domain ask for which network: read from its XML, as libvirt shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from burst.providers.base import LaunchRequest
from burst.providers.libvirt_domain import Flavour, Image, LibvirtConfig, domain_xml, tag_of
from dvn.hosts.domains import domain_of

DOMAIN = """
<domain type='kvm' id='3'>
  <name>web1</name>
  <metadata>
    <other:thing xmlns:other="https://example.org/x"><other:port network="no/no"/></other:thing>
    <dvn:ports xmlns:dvn="urn:dvn:libvirt:1">PORTS</dvn:ports>
  </metadata>
  <devices>
    <interface type='ethernet'>
      <mac address='52:54:00:AA:00:01'/><target dev='vnet0'/>
    </interface>
    SECOND
    <interface type='user'><mac address='52:54:00:aa:00:09'/></interface>
  </devices>
</domain>
"""
SECOND = (
    "<interface type='ethernet'><mac address='52:54:00:aa:00:02'/><target dev='vnet1'/></interface>"
)


def xml(ports: str, second: bool = False) -> str:
    return DOMAIN.replace("PORTS", ports).replace("SECOND", SECOND if second else "")


def test_the_only_nic_needs_no_mac() -> None:
    found = domain_of(xml('<dvn:port network="cms/farm" address="10.9.0.20 fd00:9::20"/>'))
    assert found.wrong == ()
    (nic,) = found.nics
    assert (nic.interface, nic.network, nic.machine) == ("vnet0", "cms/farm", "web1")
    assert nic.mac == "52:54:00:aa:00:01"
    assert nic.address == (ip_address("10.9.0.20"), ip_address("fd00:9::20"))


def test_of_several_each_is_named_by_its_mac() -> None:
    ports = (
        '<dvn:port network="cms/farm" mac="52:54:00:AA:00:02"/>'
        '<dvn:port network="cms/store" mac="52:54:00:aa:00:01"/>'
    )
    found = domain_of(xml(ports, second=True))
    assert {(n.interface, n.network) for n in found.nics} == {
        ("vnet1", "cms/farm"),
        ("vnet0", "cms/store"),
    }


@pytest.mark.parametrize(
    ("ports", "second", "interface", "why"),
    [
        ('<dvn:port network="cms/farm"/>', True, "", "say which is meant"),
        ('<dvn:port network="cms/farm" mac="52:54:00:00:00:77"/>', False, "", "no NIC with MAC"),
        ("<dvn:port/>", False, "vnet0", "names no network"),
        ('<dvn:port network="farm"/>', False, "vnet0", "names no network"),
        ('<dvn:port network="cms/FARM"/>', False, "vnet0", "FARM"),
        ('<dvn:port network="cms/farm" address="10.9"/>', False, "vnet0", "10.9"),
        (
            '<dvn:port network="cms/farm" adress="10.9.0.2"/>',
            False,
            "vnet0",
            "no attribute `adress`",
        ),
    ],
)
def test_what_cannot_be_is_named(ports: str, second: bool, interface: str, why: str) -> None:
    """With its interface where there is one, so that it can be closed."""
    found = domain_of(xml(ports, second))
    assert found.nics == ()
    (wrong,) = found.wrong
    assert (wrong.machine, wrong.interface) == ("web1", interface)
    assert why in wrong.why


def test_what_the_burst_provider_writes_is_read() -> None:
    """The namespace and the words are a contract between two rooms that do not know each other."""
    request = LaunchRequest(
        lease_id="0123456789abcdef0123456789abcdef",
        tenant="cms",
        pool="cms-hv",
        type="small",
        zone="hv1",
        name="cms-hv-01234567",
        user_data="",
        network="farm",
        address="10.9.0.101",
    )
    config = LibvirtConfig(
        uri="qemu:///system",
        site="cnaf",
        images={"el9": Image("el9.qcow2")},
        types={"small": Flavour(1, 2048, 10, "el9")},
    )
    text = domain_xml(request, config, tag_of(request, "cnaf", datetime(2026, 3, 1, tzinfo=UTC)))
    (nic,) = domain_of(text).nics
    assert (nic.network, nic.address) == ("cms/farm", (ip_address("10.9.0.101"),))
    assert nic.lease == request.lease_id
    assert nic.interface.startswith("dvn")


def test_two_ports_for_one_nic_are_one_too_many() -> None:
    found = domain_of(xml('<dvn:port network="cms/farm"/><dvn:port network="cms/store"/>'))
    assert [nic.network for nic in found.nics] == ["cms/farm"]
    assert "vnet0 has two ports" in found.wrong[0].why


def test_others_machines_are_left_alone() -> None:
    assert domain_of(xml("")).nics == ()
    assert domain_of("<domain><name>x</name></domain>").nics == ()
    with pytest.raises(ValueError, match="no XML"):
        domain_of("<domain>")
