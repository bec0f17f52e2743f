"""Virtual machines by libvirt: never two for one lease, never a disk left behind, never one core
given out twice, whatever is killed and wherever."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burst.join.userdata import inner_mac
from burst.model import FailureClass, MachineState
from burst.providers.base import LaunchRequest, Misconfigured, NoCapacity, Unreachable
from burst.providers.libvirt import HALF_MADE, REMEMBERED, LibvirtProvider, room
from burst.providers.libvirt_domain import (
    Domain,
    Flavour,
    HostSize,
    Image,
    LibvirtConfig,
    Names,
    Tag,
    domain_xml,
    lease_of_uuid,
    lease_of_volume,
    read_domain,
    tag_of,
    tap_name,
    uuid_of,
)
from burst.providers.libvirt_errors import provider_error
from burst.providers.libvirt_host import without_questions
from burst.providers.libvirt_seed import seed_files, seed_image
from dvn.hosts.domains import domain_of
from tests.burst.hypervisor_stand_in import Killed, StandIn, Volume, refused

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LEASE = "0123456789abcdef0123456789abcdef"
CONFIG = LibvirtConfig(
    uri="qemu:///system",
    site="cnaf",
    images={"el9": Image("el9.qcow2"), "deb12": Image("deb12.raw", "raw")},
    types={
        "small": Flavour(1, 2048, 10, "el9"),
        "large": Flavour(4, 8192, 20, "deb12", Decimal("0.05")),
    },
)
REQUEST = LaunchRequest(
    lease_id=LEASE,
    tenant="cms",
    pool="cms-hv",
    type="small",
    zone="hv1",
    name="cms-hv-01234567",
    user_data="#!/bin/bash\nTOKEN=secret\n",
    network="farm",
    address="10.9.0.101",
)
IMAGES = {"el9.qcow2": Volume(""), "deb12.raw": Volume("")}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def stand_in(**changes: Any) -> StandIn:
    return StandIn(stored=dict(IMAGES), **changes)


def provider(host: StandIn, clock: Clock | None = None) -> LibvirtProvider:
    return LibvirtProvider("farm-hv", CONFIG, hypervisor=host, clock=clock or Clock())


def left(host: StandIn) -> tuple[set[str], set[str]]:
    """What is there beside the images."""
    return set(host.stored) - set(IMAGES), set(host.known)


# One lease, one machine


def test_a_launch_makes_the_machine_that_the_lease_asked_for() -> None:
    host = stand_in()
    machine = provider(host).launch(REQUEST)
    assert (machine.id, machine.state) == (uuid_of(LEASE), MachineState.RUNNING)
    assert (machine.lease_id, machine.public_address) == (LEASE, "10.9.0.101")
    (seed,) = [v for name, v in host.stored.items() if name.endswith("-seed.iso")]
    assert b"TOKEN=secret" in seed.content
    (disk,) = [
        v for name, v in host.stored.items() if name.startswith("dvn-") and "seed" not in name
    ]
    backing = ET.fromstring(disk.xml).find("backingStore")
    assert backing is not None
    assert backing.findtext("path") == "/images/el9.qcow2"


def steps_of_a_launch() -> int:
    host = stand_in()
    provider(host).launch(REQUEST)
    return len(host.calls)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(steps_of_a_launch()))
def test_a_launch_killed_anywhere_is_finished_by_its_repeat(step: int, after: bool) -> None:
    host = stand_in(at=step, after=after)
    with pytest.raises(Killed):
        provider(host).launch(REQUEST)
    again = provider(host)  # another process: it remembers nothing
    machine = again.launch(REQUEST)
    assert machine.id == uuid_of(LEASE)
    assert (len(host.known), host.running(), host.starts) == (1, 1, 1)
    assert host.stored[Names.of("cnaf", LEASE).seed].content
    again.terminate([machine.id])
    assert left(host) == (set(), set())


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(steps_of_a_launch()))
def test_a_half_made_machine_whose_lease_is_over_is_found_and_returned(
    step: int, after: bool
) -> None:
    """Nobody repeats this launch: after a while the machine is listed, and the controller, which
    knows no lease of it, returns it."""
    host, clock = stand_in(at=step, after=after), Clock()
    with pytest.raises(Killed):
        provider(host, clock).launch(REQUEST)
    clock.now += HALF_MADE
    again = provider(host, clock)
    listed = again.machines()
    assert len(listed) == (0 if step == 0 and not after else 1)
    again.terminate([machine.id for machine in listed])
    assert left(host) == (set(), set())


def test_a_launch_under_way_is_not_listed_yet() -> None:
    """A machine that is listed is not asked for again: a killed launch would never be finished."""
    host, clock = stand_in(at=2), Clock()
    with pytest.raises(Killed):
        provider(host, clock).launch(REQUEST)
    assert provider(host, clock).machines() == ()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(4))
def test_a_return_killed_anywhere_is_finished_by_its_repeat(step: int, after: bool) -> None:
    host = stand_in()
    machine = provider(host).launch(REQUEST)
    host.at, host.after = len(host.calls) + step, after
    with pytest.raises(Killed):
        provider(host).terminate([machine.id])
    again = provider(host)
    assert len(host.known) == 1 or left(host) == (set(), set()), "forgotten before all is gone"
    again.terminate([machine.id])
    assert left(host) == (set(), set())


def test_a_machine_that_powers_itself_off_is_gone_and_leaves_nothing() -> None:
    host, clock = stand_in(), Clock()
    ours = provider(host, clock)
    machine = ours.launch(REQUEST)
    clock.now += timedelta(minutes=7)
    host.powers_off(machine.id)
    (listed,) = ours.machines()
    assert (listed.state, listed.ended) == (MachineState.TERMINATED, clock.now)
    assert left(host) == (set(), set())
    assert [m.state for m in ours.machines()] == [MachineState.TERMINATED], "listed for a while"
    clock.now += REMEMBERED
    assert ours.machines() == ()


def test_a_machine_that_ended_with_its_hypervisor_is_not_started_again() -> None:
    """libvirt has restarted and forgot why the domain is off: our mark says that it ran."""
    host = stand_in()
    machine = provider(host).launch(REQUEST)
    host.powers_off(machine.id, libvirt_remembers=False)
    again = provider(host).launch(REQUEST)
    assert (again.state, host.starts) == (MachineState.TERMINATED, 1)


def test_disks_whose_domain_somebody_removed_are_returned_like_a_machine() -> None:
    host = stand_in()
    machine = provider(host).launch(REQUEST)
    del host.known[machine.id]
    ours = provider(host)
    (listed,) = ours.machines()
    assert (listed.id, listed.lease_id, listed.state) == (machine.id, LEASE, MachineState.PENDING)
    ours.terminate([listed.id])
    assert left(host) == (set(), set())


def test_what_others_run_is_neither_listed_nor_touched() -> None:
    host = stand_in()
    host.add_foreign(2, 4096)
    other = replace(CONFIG, site="bari")
    LibvirtProvider("x", other, hypervisor=host, clock=Clock()).launch(REQUEST)
    ours = provider(host)
    before = left(host)
    assert ours.machines() == ()
    ours.terminate(list(host.known))
    assert left(host) == before
    assert host.running() == 2
    with pytest.raises(Misconfigured, match="was not made by this site"):
        ours.launch(REQUEST)


# Failures


@pytest.mark.parametrize("step", range(steps_of_a_launch() - 1))
def test_a_clear_no_leaves_nothing_behind(step: int) -> None:
    host = stand_in(at=step, fault=refused(Misconfigured, "no"))
    with pytest.raises(Misconfigured):
        provider(host).launch(REQUEST)
    assert left(host) == (set(), set())


def test_after_silence_what_was_made_stays_for_the_repeat() -> None:
    host = stand_in(at=1, fault=refused(Unreachable, "no answer"))
    with pytest.raises(Unreachable):
        provider(host).launch(REQUEST)
    assert len(host.known) == 1
    assert provider(host).launch(REQUEST).state is MachineState.RUNNING


def test_an_image_that_is_not_there_says_where_to_look() -> None:
    host = stand_in()
    del host.stored["el9.qcow2"]
    with pytest.raises(Misconfigured, match=r"has no volume el9\.qcow2; see `images`"):
        provider(host).launch(REQUEST)
    assert host.known == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"type": "huge"}, "no type huge"),
        ({"lease_id": "../../etc"}, "32 hex digits"),
        ({"address": ""}, "lease 0123"),
    ],
)
def test_a_request_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    host = stand_in()
    with pytest.raises(Misconfigured, match=said):
        provider(host).launch(replace(REQUEST, **changes))
    assert host.calls == []


@pytest.mark.parametrize(
    ("code", "text", "kind", "hint"),
    [
        (38, "Failed to connect socket to '/run/x': No such file", FailureClass.LOST, ""),
        (38, "Cannot recv data: ssh: connect to host h port 22: refused", FailureClass.LOST, ""),
        (38, "Cannot recv data: Permission denied (publickey).", FailureClass.CONFIG, "group"),
        (38, "ssh: Could not resolve hostname h: Name or", FailureClass.CONFIG, "`uri`"),
        (38, "Cannot recv data: Host key verification failed.", FailureClass.CONFIG, "known_hosts"),
        (49, "Storage pool not found", FailureClass.CONFIG, "`storage`"),
        (50, "Storage volume not found", FailureClass.CONFIG, "`images`"),
        (1, "qemu: cannot set up guest memory: Cannot allocate", FailureClass.NO_CAPACITY, ""),
        (1, "write: No space left on device", FailureClass.NO_CAPACITY, ""),
        (67, "unsupported configuration: no KVM", FailureClass.CONFIG, ""),
        (88, "access denied", FailureClass.CONFIG, "group libvirt"),
    ],
)
def test_errors_have_a_class_and_say_what_to_look_at(
    code: int, text: str, kind: FailureClass, hint: str
) -> None:
    error = provider_error(code, text)
    assert error.kind is kind
    assert text in str(error)
    assert hint in str(error)


def test_a_file_that_the_hypervisor_misses_is_no_silence() -> None:
    """errno of QEMU's files and of the connection come with one code; their source differs."""
    assert provider_error(38, "unable to stat: /no/kernel", 10).kind is FailureClass.CONFIG


# Room


def test_offers_say_how_many_fit_beside_what_runs() -> None:
    host = stand_in(cores=8, memory_mb=16_384)
    ours = provider(host)
    assert {o.type: o.available for o in ours.offers()} == {"small": 7, "large": 1}
    host.add_foreign(5, 1024)
    assert {o.type: o.available for o in ours.offers()} == {"small": 3, "large": 0}
    host.add_foreign(3, 1024, active=False)
    assert {o.type: o.available for o in ours.offers()} == {"small": 3, "large": 0}
    offer = ours.offers()[0]
    assert (offer.zone, offer.price_per_hour, offer.cores) == ("hv1", Decimal("0.05"), 4)


def test_a_full_hypervisor_is_no_capacity_and_says_how_full() -> None:
    host = stand_in(cores=4)
    host.add_foreign(4, 1024)
    with pytest.raises(NoCapacity, match="hv1 has 0 cores"):
        provider(host).launch(REQUEST)
    assert left(host)[0] == set()


launches = st.lists(
    st.tuples(st.sampled_from(["launch", "end", "foreign", "return"]), st.integers(0, 9)),
    max_size=25,
)


@given(launches, st.integers(1, 9), st.integers(0, 2), st.one_of(st.none(), st.integers(1, 6)))
def test_no_core_is_given_out_twice(
    steps: list[tuple[str, int]], cores: int, reserved: int, limit: int | None
) -> None:
    """Whatever starts, ends and is returned, ours never exceed what the file and the host allow."""
    host = stand_in(cores=cores, memory_mb=200_000)
    config = replace(CONFIG, reserve_cores=reserved, cores=limit)
    ours = LibvirtProvider("farm-hv", config, hypervisor=host, clock=Clock())
    for what, number in steps:
        lease = f"{number:032x}"
        kind = "large" if number % 3 == 0 else "small"
        before = sum(d.cores for d in host.known.values() if d.active)
        if what == "launch":
            request = replace(REQUEST, lease_id=lease, type=kind, name=f"n{number}")
            try:
                ours.launch(request)
            except NoCapacity:
                assert before + config.types[kind].cores > min(cores - reserved, limit or 99)
                continue
            after = sum(d.cores for d in host.known.values() if d.active)
            assert after <= max(cores - reserved, before)
        elif what == "end" and uuid_of(lease) in host.known:
            host.powers_off(uuid_of(lease))
        elif what == "return":
            ours.terminate([uuid_of(lease)])
        elif what == "foreign" and before + 1 <= cores - reserved:
            host.add_foreign(1, 512)
        tagged = sum(d.cores for d in host.known.values() if d.active and d.tag)
        assert tagged <= (limit if limit is not None else cores)


def test_a_machine_promised_and_not_started_keeps_its_place() -> None:
    tag = Tag("cnaf", LEASE, "p", "cms", "small")
    promised = Domain(uuid_of(LEASE), "x", False, False, 3, 1024, tag)
    size = HostSize("hv1", 4, 4096)
    assert room(CONFIG, size, [promised]).cores == 1
    assert room(CONFIG, size, [replace(promised, ended=True)]).cores == 4


# Names and texts

hexes = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(hexes)
def test_names_lead_back_to_the_lease(lease: str) -> None:
    names = Names.of("cnaf", lease)
    assert lease_of_uuid(names.uuid) == lease
    assert {lease_of_volume("cnaf", name) for name in (names.disk, names.seed)} == {lease}
    assert lease_of_volume("bari", names.disk) is None
    assert len(tap_name(lease)) <= 15


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30)


@given(words, words)
def test_what_a_domain_says_of_itself_is_read_as_it_was_written(pool: str, network: str) -> None:
    request = replace(REQUEST, pool=pool, network=network)
    tag = tag_of(request, "cnaf", NOW)
    domain = read_domain(domain_xml(request, CONFIG, tag), active=True, ended=False)
    assert domain.tag == tag
    assert (domain.cores, domain.memory_mb, domain.uuid) == (1, 2048, uuid_of(LEASE))


def test_the_network_engine_is_told_the_network_and_finds_a_tap_without_a_bridge() -> None:
    """Nothing passes before the port filter is there."""
    root = ET.fromstring(domain_xml(REQUEST, CONFIG, tag_of(REQUEST, "cnaf", NOW)))
    (nic,) = root.findall("devices/interface")
    assert nic.get("type") == "ethernet"
    assert nic.find("source") is None
    target = nic.find("target")
    assert target is not None
    assert target.get("dev") == tap_name(LEASE)


def test_the_network_engine_reads_the_machines_port() -> None:
    """Written in one room, read in another, which must not know each other: here they meet."""
    (nic,) = domain_of(domain_xml(REQUEST, CONFIG, tag_of(REQUEST, "cnaf", NOW))).nics
    assert (nic.network, nic.interface, nic.lease) == ("cms/farm", tap_name(LEASE), LEASE)
    assert (str(nic.mac), [str(a) for a in nic.address]) == (
        inner_mac("10.9.0.101"),
        ["10.9.0.101"],
    )


def test_libvirt_keeps_both_our_elements() -> None:
    """One element for each namespace ("Domain XML format"): two in one would lose one."""
    root = ET.fromstring(domain_xml(REQUEST, CONFIG, tag_of(REQUEST, "cnaf", NOW)))
    metadata = root.find("metadata")
    assert metadata is not None
    spaces = [element.tag.partition("}")[0] for element in metadata]
    assert len(spaces) == len(set(spaces)) == 2


def test_the_seed_is_what_cloud_init_looks_for() -> None:
    import pycdlib

    files = seed_files(LEASE, "node-1", REQUEST.user_data, "02:00:0a:09:00:65")
    iso: Any = pycdlib.PyCdlib()
    image = seed_image(files)
    assert len(seed_image(files)) == len(image), "a repeated launch writes it in the same place"
    iso.open_fp(io.BytesIO(image))
    assert iso.pvd.volume_identifier.decode().strip() == "cidata"
    read = {}
    for name in files:
        out = io.BytesIO()
        iso.get_file_from_iso_fp(out, rr_path=f"/{name}")
        read[name] = out.getvalue().decode()
    assert read == files
    assert LEASE in read["meta-data"]


@pytest.mark.parametrize(
    ("uri", "used"),
    [
        ("qemu:///system", "qemu:///system"),
        ("qemu+ssh://u@h/system", "qemu+ssh://u@h/system?no_tty=1"),
        ("qemu+ssh://h/system?keyfile=/k", "qemu+ssh://h/system?keyfile=/k&no_tty=1"),
        ("qemu+ssh://h/system?no_tty=0", "qemu+ssh://h/system?no_tty=0"),
        ("qemu+tls://h/system", "qemu+tls://h/system"),
    ],
)
def test_ssh_never_asks_for_a_password(uri: str, used: str) -> None:
    assert without_questions(uri) == used
