"""Mixed mode, turned on and off by an operator while machines and jobs run.

Kept in the store: a host that was turned off stays so over a restart of the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from burst.providers.base import Provider
from gateway.hypervisors import Libvirt
from gateway.loops.lending import LazyProvider
from gateway.sitefile import SiteFile
from gateway.store import Store

_OFF = "mixed-off:"  # begins the note of a host that is turned off


class MixedMode:
    """The hosts that can be in mixed mode, by the name of their provider."""

    def __init__(self, file: SiteFile, store: Store) -> None:
        providers = file.burst.providers if file.burst else {}
        self.names = tuple(
            name
            for name, config in sorted(providers.items())
            if isinstance(config, Libvirt) and config.mixed
        )
        self._store = store

    def on(self, name: str) -> bool:
        return not self._store.notes().get(_OFF + name)

    def turn(self, name: str, on: bool) -> None:
        """KeyError for a provider that has no such host."""
        if name not in self.names:
            raise KeyError(name)
        self._store.note(_OFF + name, "" if on else "off")

    def connect(self, providers: Mapping[str, Provider]) -> None:
        """Each host's switch asks the store from now on."""
        for name, provider in providers.items():
            switch = provider.switch if isinstance(provider, LazyProvider) else None
            if switch is not None:
                switch.ask = partial(self.on, name)
