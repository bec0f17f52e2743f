"""The NICs of this host's running libvirt domains, kept up to date by libvirt's events.

Level-triggered: an event (a start, an end, a NIC or metadata that changed) only says when to look
at all domains again. While libvirt does not answer, its machines go on running, and so what was
seen last stands.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dvn.hosts.binding import binding
from dvn.hosts.domains import Domain, Misnamed, domain_of
from dvn.hosts.joining import Nic

log = logging.getLogger(__name__)

_LOOK_S = 60.0  # between two looks that no event asked for
_RETRY_S = 2.0
_KEEPALIVE_S, _KEEPALIVE_COUNT = 5, 3


@dataclass(frozen=True)
class Machines:
    """What runs here: NICs that ask for a network, and those that ask for what cannot be."""

    nics: tuple[Nic, ...] = ()
    wrong: tuple[Misnamed, ...] = ()


class NoLibvirtError(RuntimeError):
    """The libvirt library is not installed."""


class Libvirt:
    """`seen` is what runs now; None until libvirt has answered once. Raises NoLibvirtError."""

    def __init__(self, uri: str) -> None:
        try:
            self._libvirt = binding()
        except ImportError as error:
            raise NoLibvirtError(
                "the Python library of libvirt is missing: apt install python3-libvirt, or "
                "pip install 'dvn[libvirt]'"
            ) from error
        self._uri = uri
        self._changed: Callable[[], None] = lambda: None
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="libvirt", daemon=True)
        self.seen: Machines | None = None
        self.error = "libvirt was not asked yet"

    def start(self, changed: Callable[[], None]) -> None:
        """`changed` is called, from another thread, when there is something new to see."""
        self._changed = changed
        # Errors come as exceptions; the library would print them as well.
        self._libvirt.registerErrorHandler(lambda *_: None, None)
        self._libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._events, name="libvirt-events", daemon=True).start()
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    def _events(self) -> None:
        while not self._stopping:
            self._libvirt.virEventRunDefaultImpl()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._follow()
            except self._libvirt.libvirtError as error:
                if str(error) != self.error:
                    log.warning("event=no-libvirt uri=%s error=%r", self._uri, str(error))
                self.error = str(error)
            self._woken.wait(_RETRY_S)
            self._woken.clear()

    def _follow(self) -> None:
        """Look, and look again after each event, until the connection breaks."""
        connection = self._libvirt.open(self._uri)
        try:
            broken = threading.Event()
            self._register(connection, broken)
            log.info("event=libvirt uri=%s", self._uri)
            while not (self._stopping or broken.is_set()):
                self._woken.clear()  # before the look: what happens during it is looked at again
                self._look(connection)
                self._woken.wait(_LOOK_S)
        finally:
            connection.close()

    def _register(self, connection: Any, broken: threading.Event) -> None:
        lib = self._libvirt

        def happened(*_: object) -> None:
            self._woken.set()

        def closed(*_: object) -> None:
            broken.set()
            self._woken.set()

        for kind in (
            lib.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            lib.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            lib.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            lib.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
        ):
            connection.domainEventRegisterAny(None, kind, happened, None)
        connection.registerCloseCallback(closed, None)
        connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_COUNT)

    def _look(self, connection: Any) -> None:
        found = []
        for domain in connection.listAllDomains(self._libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            try:
                found.append(domain_of(domain.XMLDesc(0)))
            except (self._libvirt.libvirtError, ValueError) as error:
                # One that ended meanwhile; its end is an event of its own.
                log.debug("event=domain-not-read error=%r", str(error))
        self.error = ""
        seen = _together(found)
        if seen != self.seen:
            self.seen = seen
            self._changed()


def _together(domains: list[Domain]) -> Machines:
    nics = sorted((nic for each in domains for nic in each.nics), key=lambda nic: nic.interface)
    wrong = sorted((one for each in domains for one in each.wrong), key=str)
    return Machines(tuple(nics), tuple(wrong))
