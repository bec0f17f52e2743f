"""Virtual machines on hypervisors of the site or of a partner: on-demand virtual worker nodes.

libvirt knows nothing of idempotency, so the order of steps makes it: the domain is defined first,
under the lease's id as its UUID and with our tag, and forgotten last. Between the two it names all
there is to remove. A launch killed at any step is repeated and goes on where the first one ended.

A machine that has powered itself off is gone, as on EC2 with shutdown behaviour `terminate`: its
disk and seed are removed when it is next listed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from burst.join.userdata import inner_mac
from burst.model import FailureClass, Machine, MachineState, Offer
from burst.providers.base import LaunchRequest, Misconfigured, NoCapacity, ProviderError
from burst.providers.libvirt_domain import (
    Domain,
    Flavour,
    HostSize,
    LibvirtConfig,
    Names,
    domain_xml,
    lease_of_uuid,
    lease_of_volume,
    overlay_xml,
    seed_xml,
    tag_of,
    uuid_of,
)
from burst.providers.libvirt_host import Hypervisor, LibvirtHost
from burst.providers.libvirt_seed import seed_files, seed_image

log = logging.getLogger(__name__)

HALF_MADE = timedelta(minutes=5)  # a defined domain that nobody started is listed when it is older
REMEMBERED = timedelta(hours=1)  # ended machines stay listed for so long, as on EC2
_DOUBT = (FailureClass.THROTTLED, FailureClass.LOST)


def _now() -> datetime:
    return datetime.now(UTC)


class LibvirtProvider:
    """`burst.providers.base.Provider` for one hypervisor. `hypervisor` is for tests."""

    offers_last = timedelta(0)  # what is free changes with each machine, and looking costs little

    def __init__(
        self,
        name: str,
        config: LibvirtConfig,
        *,
        hypervisor: Hypervisor | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.name = name
        self.config = config
        self._host = hypervisor or LibvirtHost(config.uri)
        self._clock = clock
        self._lock = threading.Lock()  # one look or change at a time: listing removes, too
        self._ended: dict[str, Machine] = {}
        self._zone = ""

    def offers(self) -> Sequence[Offer]:
        """One for each type, with how many of it fit beside what runs now."""
        with self._lock:
            size = self._size()
            free = room(self.config, size, self._host.domains())
        return tuple(
            Offer(
                provider=self.name,
                type=name,
                zone=size.name,
                cores=flavour.cores,
                memory_mb=flavour.memory_mb,
                price_per_hour=flavour.price_per_hour,
                available=free.times(flavour),
            )
            for name, flavour in sorted(self.config.types.items())
        )

    def launch(self, request: LaunchRequest) -> Machine:
        """The machine of this lease: found, finished, or made."""
        names = self._names(request)
        with self._lock:
            found = next((d for d in self._host.domains() if d.uuid == names.uuid), None)
            if found is not None and not self._ours(found):
                raise Misconfigured(
                    f"domain {found.name} of {self.config.uri} has the UUID of lease "
                    f"{request.lease_id}, and was not made by this site: it is left alone"
                )
            if found is not None and (found.active or _over(found)):
                return self._machine(found)
            try:
                return self._machine(self._made(request, names, found))
            except ProviderError as error:
                if error.kind not in _DOUBT:  # a clear no leaves nothing behind
                    self._remove_quietly(names)
                raise

    def machines(self) -> Sequence[Machine]:
        """All domains with this site's tag, those that ended within the last hour, and what is
        left of any that somebody else took away but for its disks."""
        with self._lock:
            now = self._clock()
            self._size()
            ours = [domain for domain in self._host.domains() if self._ours(domain)]
            listed = []
            for domain in ours:
                if not domain.active and _over(domain):
                    listed.append(self._buried(domain))
                elif domain.active or self._old(domain, now):
                    listed.append(self._machine(domain))
            known = {lease_of_uuid(domain.uuid) for domain in ours}
            listed += self._leftovers(known)
            self._ended = {
                name: machine
                for name, machine in self._ended.items()
                if machine.ended is None or now - machine.ended < REMEMBERED
            }
            there = {machine.id for machine in listed}
            return (*listed, *(m for name, m in self._ended.items() if name not in there))

    def terminate(self, machine_ids: Sequence[str]) -> None:
        """Take the power away, remove disk and seed, forget the domain; in this order."""
        with self._lock:
            domains = {d.uuid: d for d in self._host.domains()}
            for uuid in dict.fromkeys(machine_ids):
                domain = domains.get(uuid)
                if domain is not None and not self._ours(domain):
                    log.warning("event=not-ours domain=%s uuid=%s", domain.name, uuid)
                    continue
                self._remove(Names.of(self.config.site, lease_of_uuid(uuid)))
                if domain is not None:
                    self._remember(domain)

    def places(self) -> Mapping[str, int]:
        """Cores by lease id of all our domains that have not ended, started or not."""
        with self._lock:
            return {
                lease_of_uuid(domain.uuid): domain.cores
                for domain in self._host.domains()
                if self._ours(domain) and not _over(domain)
            }

    def cores_of(self, kind: str) -> int:
        """The cores of a machine of this type. Raises Misconfigured."""
        return self._flavour(kind).cores

    def _flavour(self, kind: str) -> Flavour:
        found = self.config.types.get(kind)
        if found is None:
            raise Misconfigured(f"provider {self.name} has no type {kind}: see `types`")
        return found

    def _made(self, request: LaunchRequest, names: Names, found: Domain | None) -> Domain:
        config = self.config
        flavour = config.types[request.type]
        image = config.images[flavour.image]
        volumes = self._host.volumes(config.storage)
        base = volumes.get(image.volume)
        if base is None:
            raise Misconfigured(
                f"image {flavour.image}: storage pool {config.storage} of {config.uri} has no "
                f"volume {image.volume}; see `images` in the site file"
            )
        tag = found.tag if found is not None else None
        if tag is None:
            self._check_room(flavour, request.type)
            tag = tag_of(request, config.site, self._clock())
            self._host.define(domain_xml(request, config, tag))
        if names.disk not in volumes:
            self._host.create(config.storage, overlay_xml(names, image, base, flavour.disk_gb))
        seed = seed_image(
            seed_files(
                request.lease_id, request.name, request.user_data, inner_mac(request.address)
            )
        )
        if names.seed not in volumes:
            self._host.create(config.storage, seed_xml(names, len(seed)))
        self._host.upload(config.storage, names.seed, seed)
        self._host.start(names.uuid)
        tag = replace(tag, started=True)
        self._host.mark(names.uuid, tag.xml())
        cores, memory = flavour.cores, flavour.memory_mb
        return Domain(names.uuid, f"dvn-{request.name}", True, False, cores, memory, tag)

    def _check_room(self, flavour: Flavour, kind: str) -> None:
        size = self._size()
        free = room(self.config, size, self._host.domains())
        if not free.times(flavour):
            raise NoCapacity(
                f"{size.name} has {free.cores} cores and {free.memory_mb} MiB free for machines, "
                f"and a {kind} takes {flavour.cores} and {flavour.memory_mb}"
            )

    def _names(self, request: LaunchRequest) -> Names:
        config = self.config
        flavour = self._flavour(request.type)
        if flavour.image not in config.images:
            raise Misconfigured(f"type {request.type}: there is no image {flavour.image}")
        try:
            inner_mac(request.address)
            return Names.of(config.site, request.lease_id)
        except ValueError as error:
            raise Misconfigured(f"lease {request.lease_id}: {error}") from error

    def _ours(self, domain: Domain) -> bool:
        return domain.tag is not None and domain.tag.site == self.config.site

    def _old(self, domain: Domain, now: datetime) -> bool:
        """A launch of ours may be under way; if it was killed, it is about to be repeated."""
        defined = domain.tag.defined if domain.tag else None
        return defined is None or now - defined >= HALF_MADE

    def _machine(self, domain: Domain) -> Machine:
        assert domain.tag is not None
        if domain.active:
            state = MachineState.RUNNING
        else:
            state = MachineState.TERMINATED if _over(domain) else MachineState.PENDING
        return Machine(
            id=domain.uuid,
            provider=self.name,
            lease_id=domain.tag.lease_id,
            state=state,
            type=domain.tag.type,
            zone=self._zone,
            private_address=domain.tag.address,
            public_address=domain.tag.address,  # it is in the tenant's network: no tunnel to it
            launched=domain.tag.defined,
        )

    def _buried(self, domain: Domain) -> Machine:
        """It has ended by itself: remove what is left of it."""
        machine = self._remember(domain)
        try:
            self._remove(Names.of(self.config.site, lease_of_uuid(domain.uuid)))
        except ProviderError as error:  # listed again, and tried again, in the next round
            log.warning("event=not-removed domain=%s error=%r", domain.name, str(error))
        return machine

    def _remember(self, domain: Domain) -> Machine:
        known = self._ended.get(domain.uuid)
        if known is None:
            gone = replace(domain, active=False, ended=True)
            known = replace(self._machine(gone), ended=self._clock())
            self._ended[domain.uuid] = known
        return known

    def _leftovers(self, known: set[str]) -> list[Machine]:
        """Disks and seeds of leases whose domain is no more: they are returned like machines."""
        volumes = self._host.volumes(self.config.storage)
        leases = {lease_of_volume(self.config.site, name) for name in volumes}
        return [
            Machine(
                id=uuid_of(lease),
                provider=self.name,
                lease_id=lease,
                state=MachineState.PENDING,
                type="",
                zone=self._zone,
            )
            for lease in sorted(lease for lease in leases if lease and lease not in known)
        ]

    def _remove(self, names: Names) -> None:
        self._host.stop(names.uuid)
        for volume in (names.seed, names.disk):
            self._host.delete(self.config.storage, volume)
        self._host.undefine(names.uuid)

    def _remove_quietly(self, names: Names) -> None:
        try:
            self._remove(names)
        except ProviderError as error:  # listed by its tag later, and returned then
            log.warning("event=not-removed uuid=%s error=%r", names.uuid, str(error))

    def _size(self) -> HostSize:
        size = self._host.size()
        self._zone = size.name
        return size


def _over(domain: Domain) -> bool:
    """It ran and runs no more. libvirt forgets why a domain is off when it restarts; our mark
    remembers that it was started."""
    return not domain.active and (domain.ended or (domain.tag is not None and domain.tag.started))


class Room:
    """What is free on a hypervisor."""

    __slots__ = ("cores", "memory_mb")

    def __init__(self, cores: int, memory_mb: int) -> None:
        self.cores = max(cores, 0)
        self.memory_mb = max(memory_mb, 0)

    def times(self, flavour: Flavour) -> int:
        """How many machines of this type fit."""
        return min(self.cores // flavour.cores, self.memory_mb // flavour.memory_mb)


def room(config: LibvirtConfig, size: HostSize, domains: Iterable[Domain]) -> Room:
    """What our machines may still take: no core and no MiB is given out twice.

    Anybody's running machines count, ours also before they are started: their place is promised.
    """
    cores = size.cores - config.reserve_cores
    memory = size.memory_mb - config.reserve_memory_mb
    ours_cores = ours_memory = 0
    for domain in domains:
        ours = domain.tag is not None and domain.tag.site == config.site and not _over(domain)
        if domain.active or ours:
            cores -= domain.cores
            memory -= domain.memory_mb
        if ours:
            ours_cores += domain.cores
            ours_memory += domain.memory_mb
    if config.cores is not None:
        cores = min(cores, config.cores - ours_cores)
    if config.memory_mb is not None:
        memory = min(memory, config.memory_mb - ours_memory)
    return Room(cores, memory)
