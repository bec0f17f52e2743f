"""One hypervisor, spoken to through libvirt's own Python binding: small and dumb.

The binding is imported when it is first needed. It is the only one of Debian's Python packages
that is compiled against what the machine has, so a virtual environment of the system's Python
takes Debian's python3-libvirt when it has none of its own.

A connection over ssh that falls silent is noticed by keepalive messages (libvirt's remote driver)
after about a quarter of a minute; who waits for an answer then gets an error.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol
from urllib.parse import urlsplit

from burst.providers import libvirt_errors as errors
from burst.providers.base import Misconfigured
from burst.providers.libvirt_binding import binding
from burst.providers.libvirt_domain import LEASE_NS, Domain, HostSize, read_domain

KEEPALIVE_S, KEEPALIVE_COUNT = 5, 3
# VIR_DOMAIN_SHUTOFF_SHUTDOWN, _DESTROYED, _CRASHED: it ran, and has ended.
_RAN = (1, 2, 3)
# MANAGED_SAVE, SNAPSHOTS_METADATA, NVRAM, CHECKPOINTS_METADATA: nothing stays behind.
_UNDEFINE_ALL = 1 | 2 | 4 | 16


class Hypervisor(Protocol):
    """What the provider needs of a hypervisor. Every method may raise a `ProviderError`."""

    def size(self) -> HostSize:
        """What the host has, whoever uses it."""

    def domains(self) -> list[Domain]:
        """All of them, running or not, anybody's."""

    def define(self, xml: str) -> None:
        """Make the domain known, without starting it."""

    def start(self, uuid: str) -> None:
        """Start it; a domain that runs already is no error."""

    def mark(self, uuid: str, element: str) -> None:
        """Replace the `burst:lease` element of its metadata."""

    def stop(self, uuid: str) -> None:
        """Take its power away; one that does not run, or is not there, is no error."""

    def undefine(self, uuid: str) -> None:
        """Forget it, with all that libvirt keeps about it; one that is not there is no error."""

    def volumes(self, pool: str) -> Mapping[str, str]:
        """Paths by the volumes' names."""

    def create(self, pool: str, xml: str) -> None:
        """Make a volume; one of that name that is there already is no error."""

    def upload(self, pool: str, name: str, content: bytes) -> None:
        """Write a volume from its beginning."""

    def delete(self, pool: str, name: str) -> None:
        """Remove a volume; one that is not there is no error."""


class LibvirtHost:
    """A `Hypervisor` at a libvirt URI. Connects when it is first asked, and again when the
    connection was lost."""

    def __init__(self, uri: str) -> None:
        self.uri = without_questions(uri)
        self._connection: Any = None
        self._lock = threading.Lock()

    def size(self) -> HostSize:
        with self._asked() as host:
            info = host.getInfo()  # model, memory in MiB, CPUs, ... (virNodeInfo)
            return HostSize(str(host.getHostname()), int(info[2]), int(info[1]))

    def domains(self) -> list[Domain]:
        found = []
        with self._asked() as host:
            for domain in host.listAllDomains():
                with _absent(errors.NO_DOMAIN):  # gone between the list and the question
                    state, reason = domain.state()
                    active = bool(domain.isActive())
                    ended = not active and state == 5 and reason in _RAN  # VIR_DOMAIN_SHUTOFF
                    found.append(read_domain(domain.XMLDesc(), active=active, ended=ended))
        return found

    def define(self, xml: str) -> None:
        with self._asked() as host:
            host.defineXMLFlags(xml, 1)  # VIR_DOMAIN_DEFINE_VALIDATE: no element is ignored

    def start(self, uuid: str) -> None:
        with self._asked() as host:
            domain = host.lookupByUUIDString(uuid)
            if not domain.isActive():
                domain.create()

    def mark(self, uuid: str, element: str) -> None:
        with self._asked() as host:
            domain = host.lookupByUUIDString(uuid)
            flags = 2 | (1 if domain.isActive() else 0)  # VIR_DOMAIN_AFFECT_CONFIG, _LIVE
            # VIR_DOMAIN_METADATA_ELEMENT; the namespace is given beside the element.
            domain.setMetadata(2, element, "burst", LEASE_NS, flags)

    def stop(self, uuid: str) -> None:
        with self._asked() as host, _absent(errors.NO_DOMAIN, errors.OPERATION_INVALID):
            domain = host.lookupByUUIDString(uuid)
            if domain.isActive():
                domain.destroy()

    def undefine(self, uuid: str) -> None:
        with self._asked() as host, _absent(errors.NO_DOMAIN):
            host.lookupByUUIDString(uuid).undefineFlags(_UNDEFINE_ALL)

    def volumes(self, pool: str) -> Mapping[str, str]:
        with self._asked() as host:
            storage = host.storagePoolLookupByName(pool)
            if not storage.isActive():
                raise Misconfigured(
                    f"storage pool {pool} of {self.uri} is not started: virsh pool-start {pool}"
                )
            storage.refresh()
            return {volume.name(): volume.path() for volume in storage.listAllVolumes()}

    def create(self, pool: str, xml: str) -> None:
        with self._asked() as host, _absent(errors.STORAGE_VOL_EXISTS):
            host.storagePoolLookupByName(pool).createXML(xml)

    def upload(self, pool: str, name: str, content: bytes) -> None:
        with self._asked() as host:
            volume = host.storagePoolLookupByName(pool).storageVolLookupByName(name)
            stream = host.newStream()
            try:
                volume.upload(stream, 0, len(content))
                stream.sendAll(lambda _stream, size, rest: rest.read(size), io.BytesIO(content))
                stream.finish()
            except _library().libvirtError:
                stream.abort()
                raise

    def delete(self, pool: str, name: str) -> None:
        with self._asked() as host, _absent(errors.NO_STORAGE_VOL):
            host.storagePoolLookupByName(pool).storageVolLookupByName(name).delete()

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        """The connection; libvirt's errors become ours, and a lost connection is let go of."""
        library = _library()
        try:
            yield self._connected(library)
        except library.libvirtError as error:
            self._drop_if_dead(library)
            text = error.get_error_message() or str(error)
            raise errors.provider_error(
                error.get_error_code(), f"{self.uri}: {text}", error.get_error_domain()
            ) from error

    def _connected(self, library: Any) -> Any:
        with self._lock:
            if self._connection is None or not self._connection.isAlive():
                self._connection = library.open(self.uri)
                self._connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
            return self._connection

    def _drop_if_dead(self, library: Any) -> None:
        with self._lock:
            try:
                dead = self._connection is not None and not self._connection.isAlive()
            except library.libvirtError:
                dead = True
            if dead:
                self._connection = None


def without_questions(uri: str) -> str:
    """The URI with `no_tty=1` where ssh would otherwise ask for a password, and wait for ever
    ("Connection URIs", ssh transport)."""
    parts = urlsplit(uri)
    if not parts.scheme.endswith(("+ssh", "+libssh", "+libssh2")) or "no_tty=" in parts.query:
        return uri
    return uri + ("&" if parts.query else "?") + "no_tty=1"


@contextmanager
def _absent(*codes: int) -> Iterator[None]:
    """What is gone already, or there already, is as it should be."""
    try:
        yield
    except _library().libvirtError as error:
        if error.get_error_code() not in codes:
            raise


@cache
def _library() -> Any:
    """libvirt's binding, quiet (it prints every error by itself), with an event loop, which its
    keepalive messages need. Raises Misconfigured."""
    try:
        library = binding()
    except ImportError as error:
        raise Misconfigured(
            "the libvirt binding is missing: install Debian's python3-libvirt, or `pip install "
            "'dvn[libvirt]'` (which needs libvirt-dev and a C compiler)"
        ) from error
    library.registerErrorHandler(lambda _context, _error: None, None)
    library.virEventRegisterDefaultImpl()
    thread = threading.Thread(target=_events, args=(library,), name="libvirt-events", daemon=True)
    thread.start()
    return library


def _events(library: Any) -> None:
    while True:
        library.virEventRunDefaultImpl()
