"""The engine on a real kernel: second writes, foreign objects, drift, tunnels, NAT, isolation.

One site (place.py) for all; a test that changes it puts it back by applying the file again, which
is what the engine is for.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dvn.engine import ApplyError, Engine
from dvn.spec import Site, Tunnel, site_from_json
from dvn.status import Applied
from lab.hosts import Lab
from tests.dvn.place import OUTSIDE, Place
from tests.dvn.wire import Events, Sniffer

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(240)]

FOREIGN = """
ip link add br-foreign type bridge && ip link add tap-foreign type veth peer name tap-other
ip link set tap-foreign master br-foreign up && ip address add 192.0.2.77/32 dev br-foreign
nft 'add table inet foreign; add chain inet foreign f { type filter hook forward priority 5; };
 add rule inet foreign f counter comment "theirs"; add table bridge foreign'
"""
THEIRS = (
    "ip -j link show br-foreign; ip -j link show tap-foreign; ip -j address show br-foreign;"
    "nft -s list table inet foreign; nft list table bridge foreign; ip -j address show lan0"
)


DELETE_LAST_RULE = (
    "nft delete rule inet dvn-cnaf leaving handle "
    "$(nft -a list chain inet dvn-cnaf leaving | awk '/closed by default/{print $NF}')"
)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Lab() as lab:
        made = Place(lab)
        made.gw(FOREIGN)
        yield made


@pytest.fixture
def applied(place: Place) -> Place:
    place.apply()
    return place


def test_the_second_apply_writes_nothing(place: Place) -> None:
    events = Events(place["gw"])
    first = place.apply()
    assert first.verified
    assert first.netlink_writes > 10
    route, nft = events.read(quiet_s=1.0)  # the control: writes do show
    assert route > 10
    assert nft > 50
    second = place.apply()
    assert second.steps == ()
    assert (second.netlink_writes, second.nft_writes, second.sysctl_writes) == (0, 0, 0)
    assert events.read(quiet_s=0.5) == (0, 0)
    events.close()
    assert place.plan() == ()


def test_foreign_objects_survive_apply_and_destroy(place: Place) -> None:
    before = place.gw(THEIRS)
    place.apply()
    assert place.gw(THEIRS) == before
    place["gw"].inside(lambda: place.engine.destroy("cnaf"))
    assert place.gw(THEIRS) == before
    assert "dvn" not in place.gw("nft list tables; ip link")
    assert "198.51.100.10/" not in place.gw("ip address")
    again = place["gw"].inside(lambda: place.engine.destroy("cnaf"))
    assert (again.steps, again.netlink_writes, again.nft_writes) == ((), 0, 0)


@pytest.mark.parametrize(
    "damage",
    [
        DELETE_LAST_RULE,
        "nft insert rule inet dvn-cnaf leaving accept",
        "nft add element inet dvn-cnaf open '{ \"b-atlas-disk\" }'",
        "nft delete element inet dvn-cnaf snat4 '{ 0x64760003 }'",
        "nft flush map inet dvn-cnaf zones",
        "ip rule delete pref 20100",
        "ip route delete 10.9.0.0/24",
        "ip link set b-cms-farm nomaster",
        "ip link delete g-atlas-disk",
        "nft flush ruleset; nft -f /tmp/foreign.nft",
        "nft delete table bridge dvn-cnaf",
        "nft flush chain bridge dvn-cnaf mss",
        "ip link delete t-cms-bari",
        "ip link delete b-cms-farm",
        "ip link set t-cms-bari mtu 1400 nomaster",
        "ip link set t-cms-bari type gretap remote 203.0.113.66 key 7",
        "ip link set b-cms-farm down mtu 1300",
        "ip address delete 10.9.0.1/24 dev b-cms-farm",
        "ip address delete 198.51.100.10/32 dev wan0",
        "echo 0 > /proc/sys/net/ipv4/conf/b-cms-farm/forwarding",
        "ip link set v-cms-farm alias ''",
        "ip link set lan0 down",
        "ip link add x type veth peer name y && ip link set x master b-cms-farm",
    ],
)
def test_drift_is_seen_and_repaired(applied: Place, damage: str) -> None:
    applied.gw("nft -s list table inet foreign > /tmp/foreign.nft")
    applied.gw(damage)
    assert applied.plan() != ()
    repaired = applied.apply()
    assert repaired.steps
    assert repaired.verified  # it looked again and found nothing to do


def test_a_rule_rewritten_under_its_comment_is_drift(applied: Place) -> None:
    applied.gw(
        "set -- $(nft -a list chain inet dvn-cnaf leaving | grep 'no network reaches another');"
        "for last; do :; done;"
        "comment=$(nft -a list chain inet dvn-cnaf leaving |"
        " sed -n 's/.*comment \\(\"no network reaches another.*\"\\).*/\\1/p');"
        'nft replace rule inet dvn-cnaf leaving handle $last counter accept comment "$comment"'
    )
    assert any("leaving" in line for line in applied.plan())
    applied.apply()
    assert not applied.pings("head", "10.8.0.10")


def test_a_new_process_knows_its_own(applied: Place) -> None:
    assert applied["gw"].inside(lambda: Engine().plan(applied.site)).steps == ()


def test_with_br_netfilter_as_without(applied: Place) -> None:
    """Bridged frames then pass the inet tables too; nothing may change."""
    applied.gw("modprobe br_netfilter; echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables")
    try:
        assert applied.pings("head", "10.9.0.101")
        assert applied.transfers("head", "cloud", "10.9.0.101", 1 << 20)
        assert applied.connects("head", "internet", OUTSIDE) == "198.51.100.10"
        assert not applied.pings("head", "10.8.0.10")
    finally:
        applied.gw("echo 0 > /proc/sys/net/bridge/bridge-nf-call-iptables")


def test_a_link_made_and_not_yet_stamped_is_ours(applied: Place) -> None:
    """What a kill between creation and stamp would leave, if it could happen."""
    applied.gw("ip link delete b-cms-farm; ip link add b-cms-farm group 6583918 type bridge")
    applied.apply()
    assert applied.plan() == ()
    assert applied.pings("head", "10.9.0.1")


def test_what_the_kernel_refuses_is_undone(applied: Place) -> None:
    """A bridge cannot be a port of a bridge (ELOOP): known only when the kernel is asked."""
    state = "ip link; ip address; nft -s list table inet dvn-cnaf; cat /proc/sys/net/ipv4/conf/*"
    before = applied.gw(state + "/forwarding")
    data = applied.site.model_dump(mode="json")
    data["tenants"]["cms"]["networks"]["more"] = {
        "prefix": ["10.9.7.0/24"],
        "vlan": {"id": 104, "uplink": "lan0"},
        "nat": {"snat": ["198.51.100.12"]},
        "ports": [{"interface": "br-foreign"}],
    }
    with pytest.raises(ApplyError, match=r"br-foreign in b-cms-more.*undone") as caught:
        applied.apply(site_from_json(data))
    assert caught.value.undone
    after = applied.gw(state + "/forwarding")
    assert after == before
    assert applied.plan() == ()


def test_ping_and_tcp_through_the_tunnel(applied: Place) -> None:
    assert applied.pings("head", "10.9.0.101")
    with Sniffer(applied["internet"], "cloud") as wire:
        assert applied.pings("head", "10.9.0.101", "-s", "1400")
        key = wire.wait(lambda frame: frame.gre_key() if frame.protocol == 47 else None)
        assert key == 42
        assert {f.addresses() for f in wire.frames() if f.protocol == 47} == {
            ("198.51.100.1", "203.0.113.7"),
            ("203.0.113.7", "198.51.100.1"),
        }
    assert applied.transfers("head", "cloud", "10.9.0.101", 2 << 20)
    status = applied["gw"].inside(lambda: applied.engine.tunnels("cnaf"))["cms/bari"]
    assert status.up
    assert status.rx_packets > 100
    assert status.tx_bytes > 2 << 20


def test_a_wrong_key_or_source_gets_nothing(applied: Place) -> None:
    cloud = applied["cloud"]
    change = (
        "ip link set dvn0 type gretap remote 198.51.100.1 local {local} key {key} ttl 64 "
        "nopmtudisc ignore-df"
    )
    cloud.script("ip address add 203.0.113.9/24 dev eth0")
    for local, key in (("203.0.113.7", 43), ("203.0.113.9", 42)):
        cloud.script(change.format(local=local, key=key))
        assert not applied.pings("cloud", "10.9.0.10")
    cloud.script(change.format(local="203.0.113.7", key=42))
    assert applied.pings("cloud", "10.9.0.10")


def test_a_tunnel_speaks_for_its_own_addresses_only(applied: Place) -> None:
    """As a lease's does: for its address and MAC address, and for nobody else's."""
    cloud = applied["cloud"]
    mac = cloud.script("cat /sys/class/net/dvn0/address").stdout.strip()
    cloud.script("ip address add 10.9.0.102/24 dev dvn0; ip address add 192.0.2.99/32 dev dvn0")
    data = applied.site.model_dump(mode="json")
    bari = data["tenants"]["cms"]["tunnels"]["bari"]

    def tries() -> list[bool]:
        sources = ("10.9.0.101", "10.9.0.102", "192.0.2.99")
        applied["head"].script("ip route replace 192.0.2.99 dev eth0")
        return [applied.pings("cloud", "10.9.0.10", "-I", source) for source in sources]

    try:
        assert tries() == [True, True, False]  # any of the network's prefix
        bari |= {"addresses": ["10.9.0.101"], "macs": [mac]}
        applied.apply(site_from_json(data))
        assert tries() == [True, False, False]
        bari |= {"macs": ["02:00:00:00:00:99"]}
        applied.apply(site_from_json(data))
        assert tries() == [False, False, False]
        applied.gw("nft flush chain bridge dvn-cnaf isolation")
        assert tries() == [True, True, True]  # the control
    finally:
        cloud.script(
            "ip address delete 10.9.0.102/24 dev dvn0; ip address delete 192.0.2.99/32 dev dvn0"
        )
        applied["head"].script("ip route delete 192.0.2.99 dev eth0")
        applied.apply()


def test_nothing_comes_in_through_the_kernels_own_gre_device(applied: Place) -> None:
    """gre0 takes GRE without a key from anybody, once somebody sets it up (VU#199397). The lab's
    hosts have none: one of the same name takes its place."""
    cloud = applied["cloud"]

    def heard() -> bool:
        with Sniffer(applied["head"], "eth0") as wire:
            applied.pings("cloud", "10.9.0.10", "-I", "203.0.113.7")
            assert applied.pings("head", "10.9.0.1")  # what came before it has been seen
            return any(
                frame.protocol == 1 and frame.addresses()[0] == "203.0.113.7"
                for frame in wire.frames()
            )

    try:
        cloud.script(
            "ip link add loose type gre local 203.0.113.7 remote 198.51.100.1;"
            "ip link set loose up; ip route add 10.9.0.10 dev loose"
        )
        applied.gw(
            "ip link add gre0 type gre; ip link set gre0 up; cd /proc/sys/net/ipv4/conf/gre0;"
            "echo 1 > forwarding; echo 0 > rp_filter"
        )
        assert not heard()
        applied.gw("nft flush chain inet dvn-cnaf fallback")
        assert heard()  # the control
    finally:
        cloud.script("ip link delete loose")
        applied.gw("ip link delete gre0")
        applied.apply()


def test_mss_is_clamped_both_ways_bridged(applied: Place) -> None:
    """Both ends have an MTU of 1500 and say so; each hears what fits the tunnel."""
    applied["cloud"].script("ip link set dvn0 mtu 1500")
    try:
        with Sniffer(applied["head"], "eth0") as near, Sniffer(applied["cloud"], "dvn0") as far:
            assert applied.connects("head", "cloud", "10.9.0.101") == "10.9.0.10"
            assert near.wait(lambda f: m if (m := f.mss()) and not m[0] else None)[1] == 1460
            assert far.wait(lambda f: m if (m := f.mss()) and not m[0] else None)[1] == 1418
            assert far.wait(lambda f: m if (m := f.mss()) and m[0] else None)[1] in (1460, 1418)
            assert near.wait(lambda f: m if (m := f.mss()) and m[0] else None)[1] == 1418
        with Sniffer(applied["head"], "eth0") as near, Sniffer(applied["cloud"], "dvn0") as far:
            assert applied.connects("cloud", "head", "10.9.0.10") == "10.9.0.101"
            assert far.wait(lambda f: m if (m := f.mss()) and not m[0] else None)[1] == 1460
            assert near.wait(lambda f: m if (m := f.mss()) and not m[0] else None)[1] == 1418
            assert near.wait(lambda f: m if (m := f.mss()) and m[0] else None)[1] in (1460, 1418)
            assert far.wait(lambda f: m if (m := f.mss()) and m[0] else None)[1] == 1418
    finally:
        applied["cloud"].script("ip link set dvn0 mtu 1458")


def test_mss_is_clamped_both_ways_routed(applied: Place) -> None:
    with Sniffer(applied["head"], "eth0") as near, Sniffer(applied["internet"], "site") as far:
        assert applied.connects("head", "internet", OUTSIDE) == "198.51.100.10"
        assert near.wait(lambda f: m if (m := f.mss()) and not m[0] else None)[1] == 1460
        assert far.wait(lambda f: m if (m := f.mss()) and not m[0] else None)[1] == 1418
        assert far.wait(lambda f: m if (m := f.mss()) and m[0] else None)[1] == 1460
        assert near.wait(lambda f: m if (m := f.mss()) and m[0] else None)[1] == 1418


def test_the_uplink_is_tagged(applied: Place) -> None:
    with Sniffer(applied["tor"], "gw") as trunk:
        assert applied.pings("head", "10.9.0.1")
        assert applied.pings("disk", "10.8.0.1")
        seen = {frame.vlan for frame in trunk.frames() if frame.protocol == 1}
    assert seen == {101, 102}


def test_snat_by_network(applied: Place) -> None:
    assert applied.connects("head", "internet", OUTSIDE) == "198.51.100.10"
    assert applied.connects("disk", "internet", OUTSIDE) == "198.51.100.11"
    assert applied.connects("shut", "internet", OUTSIDE) is None  # no NAT declared: closed
    assert applied.pings("head", OUTSIDE)


def test_tenants_do_not_reach_each_other(applied: Place) -> None:
    for source, target, gateway in (
        ("head", "10.8.0.10", "10.9.0.1"),
        ("disk", "10.9.0.10", "10.8.0.1"),
        ("disk", "10.8.1.10", "10.8.0.1"),
        ("cloud", "10.8.0.10", "10.9.0.1"),
    ):
        assert applied.pings(source, gateway), "the control: the source is alive"
        assert not applied.pings(source, target)
    assert applied.connects("head", "disk", "10.8.0.10") is None
    # The filters stop them also where somebody makes a way between the two ...
    applied.gw("ip route add 10.8.0.0/24 dev b-atlas-disk")
    try:
        assert not applied.pings("head", "10.8.0.10")
        # ... and the positive control: without filters the very same packets arrive by that way.
        applied.gw("nft delete table inet dvn-cnaf")
        assert applied.pings("head", "10.8.0.10")
        assert applied.connects("head", "disk", "10.8.0.10") == "10.9.0.10"
        applied.apply()
        assert not applied.pings("head", "10.8.0.10")
    finally:
        applied.gw("ip route delete 10.8.0.0/24")


def test_the_gateways_own_services(applied: Place) -> None:
    assert applied.connects("head", "gw", "10.9.0.1", 22) == "10.9.0.10"  # declared
    assert applied.connects("head", "gw", "10.9.0.1", 23) is None
    assert applied.connects("disk", "gw", "10.8.0.1", 22) is None
    assert applied.connects("head", "gw", "198.51.100.1", 22) is None  # not by another address
    assert applied.connects("gw", "head", "10.9.0.10", 22) == "10.9.0.1"  # its own way in
    assert not applied.pings("head", "10.8.0.1")
    assert applied.connects("internet", "gw", "198.51.100.1", 23)  # others' traffic: untouched


def test_probe(applied: Place) -> None:
    probe = applied["gw"].inside(lambda: applied.engine.probe("10.9.0.101", "cms/farm", 3))
    assert probe.received == 3
    assert probe.rtt_ms is not None
    assert probe.rtt_ms > 0
    silent = applied["gw"].inside(
        lambda: applied.engine.probe("10.9.0.200", "cms/farm", 1, timeout=0.2)
    )
    assert silent.rtt_ms is None
    assert "10.9.0.200" in silent.detail
    applied["head"].script("ip address replace fd00:9::10/64 dev eth0 nodad")
    six = applied["gw"].inside(lambda: applied.engine.probe("fd00:9::10", "cms/farm", 1))
    assert six.rtt_ms is not None


def test_a_lease_comes_and_goes(applied: Place) -> None:
    """Its tunnel is a few steps, and nothing else is touched."""
    lease = Tunnel.model_validate(
        {"tenant": "cms", "name": "lease-7", "network": "farm", "remote": "203.0.113.8", "key": 9}
    )
    index = applied.gw("cat /sys/class/net/b-cms-farm/ifindex")
    came = applied.apply(applied.site.with_tunnels([lease]))
    assert len(came.steps) == 8
    assert came.nft_writes == 5  # its elements of three sets and two maps
    went = applied.apply()
    assert len(went.steps) == 6
    assert applied.gw("cat /sys/class/net/b-cms-farm/ifindex") == index


def test_a_file_applied_beside_the_daemon_leaves_its_tunnels(applied: Place) -> None:
    """The machine behind the tunnel is answered all the time, also while the file changes."""
    lease = applied.site.tunnels()[0].model_copy(update={"dynamic": True})
    data = applied.site.model_dump(mode="json")
    data["tenants"]["cms"]["tunnels"] = {}
    file = site_from_json(data)
    applied.apply(file.with_tunnels([lease]))
    device = "/sys/class/net/t-cms-bari/ifindex"
    index = applied.gw(f"cat {device}")

    def beside(site: Site) -> Applied:
        return applied["gw"].inside(lambda: applied.engine.apply(site, keep_dynamic=True))

    assert beside(file).steps == ()
    data["tenants"]["atlas"]["networks"].pop("closed")
    assert beside(site_from_json(data)).steps
    assert beside(site_from_json(data)).steps == ()
    assert applied.gw(f"cat {device}") == index
    assert "t-cms-bari" in applied.gw("nft list set bridge dvn-cnaf tunnels")
    assert applied.pings("head", "10.9.0.101")
    # The control: who knows the leases, and knows of none, removes it.
    applied.apply(file)
    assert not applied.pings("head", "10.9.0.101")
    applied.apply(file.with_tunnels([lease]))
    applied["gw"].inside(lambda: applied.engine.destroy("cnaf"))
    assert "t-cms-bari" not in applied.gw("ip link")
