"""From a file or from JSON to a `Site`, or to every problem in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dvn import checks
from dvn.forms import problems_of, unplaced, validate
from dvn.problems import Path_, Problem, SpecError
from dvn.spec.site import Site, check_site

if TYPE_CHECKING:
    from dvn.located import Located


def parse_site(doc: Located, *, also: Iterable[str] = ()) -> Site:
    """The site a file declares; `also` names top-level keys that are somebody else's.

    Raises SpecError with every problem in the file, those between values too.
    """
    doc = doc.without_keys(also)
    problems: list[Problem] = []
    try:
        site = Site.model_validate(doc.plain())
    except ValidationError as error:
        problems += problems_of(error, Site, doc)
        partial = _valid_part(doc, problems)
        if partial is None:
            raise SpecError(problems) from None
        site = partial
    problems += [problem.placed(doc) for problem in checks.conflicts(site, _declared(doc))]
    problems += [problem.placed(doc) for problem in _not_in_files(site)]
    if problems:
        raise SpecError(problems)
    return site


def _not_in_files(site: Site) -> Iterator[Problem]:
    for tunnel in site.tunnels():
        if tunnel.dynamic and not tunnel.beyond:
            path: Path_ = ("tenants", tunnel.tenant, "tunnels", tunnel.name, "dynamic")
            yield Problem("", 0, "a tunnel in a file is not dynamic", "remove the key", path)
    given: list[Path_] = [
        (field,) for field in ("here", "upstream", "closed") if getattr(site, field)
    ]
    if site.fabric:
        given += [("fabric", f) for f in ("path", "outer") if getattr(site.fabric, f) is not None]
    for where in given:
        fix = "remove the key: every host finds out by itself which part is its own"
        yield Problem("", 0, f"`{where[-1]}` is not for files", fix, where)
    for tenant, name, network in site.networks():
        for index, port in enumerate(network.ports):
            if port.dynamic:
                path = ("tenants", tenant, "networks", name, "ports", index, "dynamic")
                yield Problem("", 0, "a port in a file is not dynamic", "remove the key", path)
        if network.dhcp and network.dhcp.reserved:
            path = ("tenants", tenant, "networks", name, "dhcp", "reserved")
            fix = "remove the key: those of ports, tunnels and pools are left out by themselves"
            yield Problem("", 0, "addresses are not reserved in a file", fix, path)


def _valid_part(doc: Located, problems: list[Problem]) -> Site | None:
    """The site without the entries that have problems, so that the rest is checked as well."""
    for path in {_entry(problem.path) for problem in problems}:
        doc = doc.without(*path)
    if "site" not in doc:
        return None
    try:
        return validate(Site, doc)
    except SpecError:
        return None


def _entry(path: Path_) -> Path_:
    """The network, tunnel or top-level key that a path lies in."""
    return path[:4] if path[:1] == ("tenants",) and len(path) >= 4 else path[:1]


def _declared(doc: Located) -> checks.Declared:
    """What the file names, also where that has problems of its own."""
    names = set()
    tenants = doc.get("tenants")
    for tenant in tenants.keys() if tenants else ():
        networks = tenants.child(tenant).get("networks") if tenants else None
        names |= {(tenant, network) for network in (networks.keys() if networks else ())}
    return checks.Declared(frozenset(names), "underlay" in doc)


def site_from_json(data: object) -> Site:
    """A site that `Site.model_dump(mode="json")` made; trusts nothing. Raises SpecError."""
    try:
        site = Site.model_validate(data)
    except ValidationError as error:
        raise SpecError(unplaced(error, Site)) from None
    check_site(site)
    return site
