"""Reading: all there is of a site, some links of it, sysctls, counters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from dvn.kernel import makers, ours, procsys, rtnl
from dvn.kernel.driver import LinkCounters
from dvn.kernel.opened import refused
from dvn.kernel.rtnl import RawAddress, RawLink
from dvn.kernel.state import (
    ADDRESS_PROTOCOL,
    Address,
    Gretap,
    Host,
    KernelState,
    Link,
    Port,
    Sysctl,
    View,
    table_name,
)
from dvn.kernel.tables import Tables
from dvn.kernel.things import Sight, Thing
from dvn.nat import driver as routing
from dvn.nat.things import Rule


class Looking(Tables):
    """What is read; links that are as they were are not made into values again."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[RawLink, tuple[str | None, str | None], Link]] = {}
        self._looked: dict[str, RawLink] = {}
        self._names: dict[int, str] = {}

    def look(self, site: str) -> View:
        self._evidence.begin()
        generation = self._generation()
        links, addresses = self._dumps()
        names = {link.index: link.name for link in links}
        self._looked, self._names = {link.name: link for link in links}, names
        sites = {link.index: ours.site_of(link) for link in links}
        own = {i for i, name in sites.items() if name == site}
        own |= {link.index for link in links if ours.unstamped(link)}
        bridges = {link.index for link in links if link.kind == "bridge" and link.index in own}
        tables, others, foreign_tables = self._tables_at(site, generation)
        # An address on somebody else's link bears our mark but not the site's: it is the site's
        # whose map translates to it, or nobody's, and then whoever looks may clear it away.
        taken = {
            part
            for table in others
            for s in table.sets
            if s.data
            for element in s.elements
            for part in element
        }
        routers = {link.name: link for link in links if link.kind == "vrf"}
        tables_of = {name: ours.table_of(link) for name, link in routers.items()}
        rules = self._rules()
        state = KernelState(
            links=self._own_links(links, names, own),
            ports=tuple(
                Port(link.name, names[link.master])
                for link in links
                if link.master in bridges and not ours.is_ours(link)
            ),
            addresses=tuple(
                Address(names[address.index], address.address)
                for address in addresses
                if ours.is_own_address(address, own, taken)
            ),
            tables=tables,
            raised=frozenset(link.name for link in links if link.up and link.index not in own),
            things=self._things(
                Sight(
                    site,
                    names=names,
                    indexes={link.name: link.index for link in links},
                    own=frozenset(link.name for link in links if link.index in own),
                    queues={link.name: link.queue for link in links},
                    links=links,
                    rules=rules,
                    others_tables=frozenset(
                        tables_of[name]
                        for name, link in routers.items()
                        if ours.is_ours(link) and link.index not in own
                    ),
                )
            ),
        )
        host = Host(
            links=ours.LinksOfALook(self._looked, names),
            addresses=frozenset(
                address.address.split("/")[0]
                for address in addresses
                if address.index not in own and address.protocol != ADDRESS_PROTOCOL
            ),
            foreign_tables=foreign_tables,
            bridge_meta=self._nft.knows_bridges(),
            numbers=ours.numbers_of(routers.values()),
            foreign_routing=routing.foreign_routing(
                rules,
                [
                    (name, tables_of[name])
                    for name, link in routers.items()
                    if not ours.is_ours(link)
                ],
            ),
        )
        self._evidence.saw(links, addresses, generation)
        return View(host, state, tuple(others))

    def _own_links(
        self, links: Iterable[RawLink], names: dict[int, str], own: Collection[int]
    ) -> tuple[Link, ...]:
        """The links with these indexes; those that are as they were are the same objects."""
        before, self._made = self._made, {}
        found: list[Link] = []
        for raw in links:
            if raw.index not in own:
                continue
            ends = (names.get(raw.master), names.get(raw.parent))
            known = before.get(raw.index)
            if known is None or known[0] != raw or known[1] != ends:
                known = (raw, ends, ours.link_of(raw, names))
            found.append(known[2])
            # Its own name for a third link is read anew each time.
            if not isinstance(known[2].params, Gretap) or known[2].params.through is None:
                self._made[raw.index] = known
        return tuple(found)

    def rely(self) -> None:
        self._evidence.rely()

    def undisturbed(self) -> bool:
        return self._evidence.holds(self._generation())

    def glance(self, names: Collection[str]) -> KernelState:
        self._evidence.own(names)
        try:
            links = rtnl.get_links(self._socket, sorted(names))
            there = [link for link in links.values() if link]
            own = {link.index for link in there if ours.is_ours(link)}
            addresses = [a for i in own for a in rtnl.dump_addresses(self._socket, i)]
        except OSError as error:
            raise refused(error) from error
        reread: dict[int, RawLink | None] = {link.index: link for link in there}
        for name, link in links.items():
            before = self._looked.pop(name, None)
            if before:
                reread.setdefault(before.index, None)
                self._names.pop(before.index, None)
            if link:
                self._looked[name] = link
                self._names[link.index] = name
        self._evidence.reread(reread, addresses)
        known = self._names
        return KernelState(
            links=tuple(ours.link_of(link, known) for link in there if link.index in own),
            ports=tuple(
                Port(link.name, known[link.master])
                for link in there
                if link.master and link.index not in own
            ),
            addresses=tuple(
                Address(known[a.index], a.address)
                for a in addresses
                if ours.is_own_address(a, own, set())
            ),
        )

    def _rules(self) -> tuple[tuple[Rule | None, int, int, int], ...]:
        try:
            return routing.dump_rules(self._socket)
        except OSError as error:
            raise refused(error) from error

    def _things(self, sight: Sight) -> tuple[Thing, ...]:
        try:
            drivers = (*makers.PACKED, *makers.GROUPED, *makers.DRIVERS)
            return tuple(t for each in drivers for t in each.observe(self._socket, sight))
        except OSError as error:
            raise refused(error) from error

    def sites(self) -> tuple[str, ...]:
        links, _addresses = self._dumps()
        found = {ours.site_of(link) for link in links}
        found |= {
            name.removeprefix(table_name("")) for _f, name, table in self._our_tables() if table
        }
        return tuple(sorted(found - {""}))

    def sysctls(self, keys: Iterable[str]) -> tuple[Sysctl, ...]:
        found = []
        for key in keys:
            if self._is_gone(key):
                continue
            known = self._conf(key)
            try:
                value = procsys.read(f"/proc/sys/{key}") if known is None else known
            except OSError:
                continue
            found.append(Sysctl(key, value))
        return tuple(found)

    def _is_gone(self, key: str) -> bool:
        """Whether it is of a link that the last look did not find."""
        name = procsys.parts_of(key)[1]
        return bool(self._looked) and name not in self._looked and name not in procsys.NO_LINKS

    def _conf(self, key: str) -> str | None:
        """A sysctl of a link as the last look read it along with the link, of which there are
        thousands; None of others."""
        version, name, word = procsys.parts_of(key)
        link = self._looked.get(name)
        value = rtnl.conf_of(link, version, word) if link else None
        return None if value is None else str(value)

    def tunnels(self) -> tuple[LinkCounters, ...]:
        try:
            links = rtnl.dump_links(self._socket, stats=True)
        except OSError as error:
            raise refused(error) from error
        found = []
        for link in links:
            params = rtnl.params_of(link, str)
            if (
                link.alias.count(":") < 3
                or not ours.site_of(link)
                or not isinstance(params, Gretap)
            ):
                continue
            rx_packets, tx_packets, rx_bytes, tx_bytes = link.stats or (0, 0, 0, 0)
            found.append(
                LinkCounters(
                    link.name, link.alias, link.up, params.local, params.remote, params.key,
                    rx_packets, tx_packets, rx_bytes, tx_bytes,
                )
            )  # fmt: skip
        return tuple(found)

    def passed(self) -> Mapping[str, tuple[int, int, int, int]]:
        try:
            links = rtnl.dump_links(self._socket, stats=True)
        except OSError as error:
            raise refused(error) from error
        return {link.name: link.stats for link in links if link.stats}

    def _dumps(self) -> tuple[list[RawLink], list[RawAddress]]:
        try:
            return rtnl.dump_links(self._socket), rtnl.dump_addresses(self._socket)
        except OSError as error:
            raise refused(error) from error
