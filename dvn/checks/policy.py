"""What a tenant lets pass between its networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared
from dvn.forms import nearest
from dvn.problems import Path_, Problem

if TYPE_CHECKING:
    from dvn.spec import Site, Tenant
    from dvn.spec.policy import Policy


def policy(site: Site, declared: Declared) -> Iterator[Problem]:
    for tenant, content in sorted(site.tenants.items()):
        seen: dict[tuple[str, str], int] = {}
        for index, each in enumerate(content.policy):
            path: Path_ = ("tenants", tenant, "policy", index)
            yield from _names(tenant, each, declared, path)
            yield from _addresses(content, each, path)
            pair = (each.from_, each.to)
            if pair in seen:
                yield Problem(
                    "",
                    0,
                    f"what {each.from_} may reach in {each.to} is declared twice",
                    "put all services into one entry",
                    path,
                )
            seen.setdefault(pair, index)


def _names(tenant: str, each: Policy, declared: Declared, path: Path_) -> Iterator[Problem]:
    known = [network for owner, network in declared.networks if owner == tenant]
    for key, name in (("from", each.from_), ("to", each.to)):
        if name not in known:
            yield Problem(
                "",
                0,
                f"a policy of {tenant} names network {name!r}, which the tenant does not have",
                nearest(name, known),
                (*path, key),
            )
    if each.from_ == each.to:
        yield Problem(
            "",
            0,
            f"a policy of {tenant} leads from {each.to} to itself",
            "remove it: machines of one network reach each other anyway",
            path,
        )


def _addresses(tenant: Tenant, each: Policy, path: Path_) -> Iterator[Problem]:
    one, two = (tenant.networks.get(name) for name in (each.from_, each.to))
    if one is None or two is None or one is two:
        return
    for prefix in one.prefix:
        for other in two.prefix:
            if prefix.version == other.version and prefix.overlaps(other):
                yield Problem(
                    "",
                    0,
                    f"networks {each.from_} ({prefix}) and {each.to} ({other}) overlap, so their "
                    "machines cannot address each other",
                    "give one of them another prefix, or remove the policy",
                    path,
                )
