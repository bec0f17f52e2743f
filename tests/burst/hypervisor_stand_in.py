"""A hypervisor in memory that keeps libvirt's rules, and can be killed, or fail, at any call."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from burst.providers.base import Misconfigured, ProviderError
from burst.providers.libvirt_domain import Domain, HostSize, Tag, read_domain


class Killed(BaseException):
    """The gateway's process ended here (SIGKILL): nothing after it happens."""


@dataclass
class Volume:
    xml: str
    content: bytes = b""


@dataclass
class StandIn:
    """What libvirt keeps, and a fault for call number `at`: before it acts, or after."""

    cores: int = 8
    memory_mb: int = 16_384
    known: dict[str, Domain] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Volume] = field(default_factory=dict)
    at: int = -1
    fault: Callable[[], BaseException] = Killed
    after: bool = False
    calls: list[str] = field(default_factory=list)
    starts: int = 0

    def _call(self, name: str, act: Callable[[], None]) -> None:
        here = len(self.calls) == self.at
        self.calls.append(name)
        if here and not self.after:
            raise self.fault()
        act()
        if here:
            raise self.fault()

    def size(self) -> HostSize:
        return HostSize("hv1", self.cores, self.memory_mb)

    def domains(self) -> list[Domain]:
        return list(self.known.values())

    def define(self, xml: str) -> None:
        def act() -> None:
            domain = read_domain(xml, active=False, ended=False)
            others = [d for d in self.known.values() if d.uuid != domain.uuid]
            if any(d.name == domain.name for d in others):
                raise Misconfigured(f"domain {domain.name} already exists with another uuid")
            self.known[domain.uuid] = domain
            self.definitions[domain.uuid] = xml

        self._call("define", act)

    def start(self, uuid: str) -> None:
        def act() -> None:
            if self.known[uuid].active:
                return
            for source in ET.fromstring(self.definitions[uuid]).iter("source"):
                if source.get("volume") not in self.stored:
                    raise Misconfigured(f"no storage vol {source.get('volume')}")
            self.starts += 1
            self.known[uuid] = replace(self.known[uuid], active=True, ended=False)

        self._call("start", act)

    def mark(self, uuid: str, element: str) -> None:
        def act() -> None:
            attributes = ET.fromstring(element).attrib
            tag = self.known[uuid].tag
            assert tag is not None
            started = replace(tag, started=attributes.get("started") == "yes")
            self.known[uuid] = replace(self.known[uuid], tag=started)

        self._call("mark", act)

    def stop(self, uuid: str) -> None:
        def act() -> None:
            if uuid in self.known and self.known[uuid].active:
                self.known[uuid] = replace(self.known[uuid], active=False, ended=True)

        self._call("stop", act)

    def undefine(self, uuid: str) -> None:
        def act() -> None:
            found = self.known.get(uuid)
            if found is not None and found.active:
                return  # it becomes transient: never asked for by the provider
            self.known.pop(uuid, None)

        self._call("undefine", act)

    def volumes(self, pool: str) -> Mapping[str, str]:
        if pool != "default":
            raise Misconfigured(f"no storage pool with matching name {pool!r}")
        return {name: f"/images/{name}" for name in self.stored}

    def create(self, pool: str, xml: str) -> None:
        name = ET.fromstring(xml).findtext("name", "")
        self._call(f"create {pool}", lambda: self._create(name, xml))

    def _create(self, name: str, xml: str) -> None:
        self.stored.setdefault(name, Volume(xml))

    def upload(self, pool: str, name: str, content: bytes) -> None:
        def act() -> None:
            self.stored[name].content = content

        self._call(f"upload {pool}", act)

    def delete(self, pool: str, name: str) -> None:
        self._call(f"delete {pool}", lambda: self._delete(name))

    def _delete(self, name: str) -> None:
        self.stored.pop(name, None)

    # What happens on the hypervisor without us

    def add_foreign(self, cores: int, memory_mb: int, *, active: bool = True) -> None:
        uuid = f"ffffffff-0000-0000-0000-{len(self.known):012d}"
        self.known[uuid] = Domain(uuid, f"other{len(self.known)}", active, False, cores, memory_mb)

    def powers_off(self, uuid: str, *, libvirt_remembers: bool = True) -> None:
        domain = self.known[uuid]
        self.known[uuid] = replace(domain, active=False, ended=libvirt_remembers)

    def running(self) -> int:
        return sum(domain.active for domain in self.known.values())

    def tag(self, uuid: str) -> Tag | None:
        return read_domain(self.definitions[uuid], active=True, ended=False).tag


def refused(kind: type[ProviderError], text: str) -> Callable[[], BaseException]:
    return lambda: kind(text)
