"""The underlay's own addresses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dvn.checks.rule import Declared
from dvn.problems import Problem

if TYPE_CHECKING:
    from dvn.spec import Site


def underlay_families(site: Site, _: Declared) -> Iterator[Problem]:
    if site.underlay is None:
        return
    own = {address.version for address in site.underlay.address}
    for field in ("address", "public"):
        seen: set[int] = set()
        for address in getattr(site.underlay, field):
            if address.version in seen:
                yield Problem(
                    "",
                    0,
                    f"the underlay has two IPv{address.version} addresses in `{field}`",
                    "keep one of each family; a tunnel may name another as `local`",
                    ("underlay", field),
                )
            elif address.version not in own:
                yield Problem(
                    "",
                    0,
                    f"public {address} stands before no IPv{address.version} address",
                    f"add the IPv{address.version} address that this host has itself to `address`",
                    ("underlay", field),
                )
            seen.add(address.version)
