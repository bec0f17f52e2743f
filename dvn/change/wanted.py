"""What the agent keeps a site at: the daemon's word and the operator's, whoever spoke last.

The daemon asks again and again for the file it was started with and its leases' tunnels. Between
two of its requests an operator may apply, try or roll back something by hand. That is in the
history (or waits to be confirmed), and it stands until the daemon itself comes with another file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dvn.change.changes import Changes, Wish
from dvn.change.files import ChangeError
from dvn.change.history import Revision, static_site
from dvn.spec import Port, Site, Tunnel

DAEMON = "the daemon"


@dataclass(frozen=True)
class Standing:
    """What is to be. `note`: why it is not what was asked for; "" if it is."""

    site: Site
    note: str = ""


@dataclass(frozen=True)
class _Asked:
    """The daemon's last word: its file, and the newest revision then."""

    static: Site
    revision: int


@dataclass(frozen=True)
class _Brought:
    """What is there besides the file: tunnels of leases, and ports of machines that run, by
    (tenant, network)."""

    tunnels: tuple[Tunnel, ...] = ()
    ports: tuple[tuple[tuple[str, str], tuple[Port, ...]], ...] = ()


class WantedSites:
    """In memory, and read from the history at the start. Not thread-safe: the agent's lock is."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._asked: dict[str, _Asked] = {}
        self._leases: dict[str, _Brought] = {}
        self._read: dict[str, tuple[int, Revision | None]] = {}
        self._made: dict[str, tuple[tuple[object, ...], Site]] = {}

    def asked(self, site: Site) -> Standing:
        """The daemon asks for `site`. ChangeError while a change is being undone."""
        name, static = site.site, static_site(site)
        self._leases[name] = _brought(site)
        pending = self._changes.pending.get(name)
        if pending is not None:
            if pending.state == "undoing":
                raise ChangeError(f"a trial of site {name} is being undone; ask again")
            tried = self._with_leases(pending.site_spec())
            return Standing(tried, f"{pending.who} tries a change: dvn confirm {name}")
        before = self._asked.get(name)
        current = self._current(name)
        if current is not None and before is not None and before.static == static:
            spoken = current.number > before.revision and current.spec != _spec(static)
            if spoken:
                said = f"revision {current.number} of {current.who} stands: restart the daemon"
                return Standing(
                    self._with_leases(current.site_spec()), f"{said} with a file that says the same"
                )
        return Standing(site)

    def done(self, site: Site) -> None:
        """`site` was asked for and stands: keep it as a revision, unless it is one."""
        static = static_site(site)
        known = self._asked.get(site.site)
        if known is not None and known.static == static:
            return
        revision = self._changes.keep(Wish(site, DAEMON), ())
        self._asked[site.site] = _Asked(static, revision)

    def sites(self) -> dict[str, Site]:
        """What every site is to be, for repairs; not those whose change waits to be confirmed."""
        found = {}
        waiting = set(self._changes.pending.sites())
        for name in {*self._changes.history.sites(), *self._asked} - waiting:
            site = self._standing(name)
            if site is not None:
                found[name] = site
        return found

    def _standing(self, name: str) -> Site | None:
        current, asked = self._current(name), self._asked.get(name)
        if asked is not None and (current is None or current.number <= asked.revision):
            return self._made_once(name, ("asked", asked.revision), lambda: asked.static)
        # What an earlier start of the machine had is not brought back by itself.
        if current is None or current.boot != self._changes.boot():
            return None
        return self._made_once(name, (current.number,), current.site_spec)

    def _made_once(self, name: str, key: tuple[object, ...], make: Callable[[], Site]) -> Site:
        key = (*key, self._leases.get(name))
        known = self._made.get(name)
        if known is None or known[0] != key:
            known = self._made[name] = (key, self._with_leases(make()))
        return known[1]

    def speaks_for(self, name: str) -> bool:
        """Whether the daemon has said which leases there are: else their tunnels are left alone."""
        return name in self._leases

    def forget(self, name: str) -> None:
        self._asked.pop(name, None)
        self._leases.pop(name, None)

    def _current(self, name: str) -> Revision | None:
        newest = self._changes.history.newest_number(name)
        known = self._read.get(name)
        if known is None or known[0] != newest:
            known = self._read[name] = (newest, self._changes.history.current(name))
        return known[1]

    def _with_leases(self, static: Site) -> Site:
        """With the tunnels of leases whose networks it has."""
        networks = {(tenant, name) for tenant, name, _network in static.networks()}
        brought = self._leases.get(static.site, _Brought())
        leases = [t for t in brought.tunnels if (t.tenant, t.network) in networks]
        with_leases = static.with_tunnels(leases) if leases else static
        ports = {owner: ports for owner, ports in brought.ports if owner in networks}
        return with_leases.with_ports(ports) if ports else with_leases


def _brought(site: Site) -> _Brought:
    ports = (
        ((tenant, name), tuple(port for port in network.ports if port.dynamic))
        for tenant, name, network in site.networks()
    )
    return _Brought(
        tuple(tunnel for tunnel in site.tunnels() if tunnel.dynamic and not tunnel.beyond),
        tuple((owner, some) for owner, some in ports if some),
    )


def _spec(site: Site) -> object:
    return site.model_dump(mode="json")
