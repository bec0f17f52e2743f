"""Links and addresses as the kernel shows them: whose they are, and what they are to us."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from dvn.allocate import number_of
from dvn.kernel import rtnl
from dvn.kernel.rtnl import RawAddress, RawLink
from dvn.kernel.state import (
    ADDRESS_PROTOCOL,
    ALIAS_PREFIX,
    LINK_GROUP,
    Gretap,
    HostLink,
    HostLinks,
    Link,
    Vrf,
)


def site_of(link: RawLink) -> str:
    """The site a link of ours is stamped with; "" if it is not ours."""
    parts = link.alias.split(":", 2)
    return parts[1] if len(parts) == 3 and link.alias.startswith(ALIAS_PREFIX) else ""


def table_of(link: RawLink) -> int:
    params = rtnl.params_of(link, str)
    return params.table if isinstance(params, Vrf) else 0


def numbers_of(routers: Iterable[RawLink]) -> dict[tuple[str, str, str], int]:
    """{(site, tenant, network): number} of the routers that are ours."""
    found = {}
    for link in routers:
        number = number_of(table_of(link))
        if site_of(link) and link.alias.count(":") >= 3 and number is not None:
            _dvn, site, _kind, name = link.alias.split(":", 3)
            tenant, _, network = name.partition("/")
            found[site, tenant, network] = number
    return found


def unstamped(link: RawLink) -> bool:
    """Ours, made by a process that was killed before it wrote the alias."""
    return link.group == LINK_GROUP and not link.alias


def is_ours(link: RawLink) -> bool:
    return bool(site_of(link)) or unstamped(link)


def is_own_address(address: RawAddress, own: set[int], taken: set[str]) -> bool:
    if address.index in own:
        # The kernel's own link-local addresses are not ours.
        return address.scope != rtnl.RT_SCOPE_LINK or address.protocol == ADDRESS_PROTOCOL
    return address.protocol == ADDRESS_PROTOCOL and address.address.split("/")[0] not in taken


def link_of(link: RawLink, names: dict[int, str]) -> Link:
    params = rtnl.params_of(link, _namer(names))
    if params is None:  # ours by its stamp, but of a kind we do not make: will be removed
        params = Gretap("0.0.0.0", "0.0.0.0", 0)
    return Link(
        name=link.name,
        alias=link.alias,
        params=params,
        mtu=link.mtu,
        up=link.up,
        master=names.get(link.master) if link.master else None,
        mac=link.mac,
        isolated=link.kind in ("gretap", "ip6gretap") and link.isolated,
        link_local=link.link_local,
    )


def _namer(names: dict[int, str]) -> Callable[[int], str]:
    return lambda index: names.get(index, f"#{index}")


class LinksOfALook(HostLinks):
    """The links of a look."""

    def __init__(self, links: Mapping[str, RawLink], names: Mapping[int, str]) -> None:
        # The kernel's own memory of links changes with each glance; a look stays what it was.
        self._links, self._names = dict(links), dict(names)
        self._made: dict[str, HostLink] = {}

    def __getitem__(self, name: str) -> HostLink:
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = _host_link(self._links[name], self._names)
        return made

    def others(self, site: str) -> dict[str, HostLink]:
        return {name: self[name] for name, raw in self._links.items() if site_of(raw) != site}

    def __iter__(self) -> Iterator[str]:
        return iter(self._links)

    def __len__(self) -> int:
        return len(self._links)


def _host_link(link: RawLink, names: dict[int, str]) -> HostLink:
    params = rtnl.params_of(link, _namer(names))
    return HostLink(
        name=link.name,
        kind=link.kind,
        mtu=link.mtu,
        up=link.up,
        ours=is_ours(link),
        site=site_of(link),
        master=names.get(link.master) if link.master else None,
        slot=params.slot() if params else None,
        queue=link.queue,
    )
