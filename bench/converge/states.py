"""Whether two namespaces are in the same state, as `ip` and `nft` tell it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

# What differs from one run to the next, or is a count.
_PASSING = frozenset(
    {
        "ifindex", "link_index", "handle", "expires", "preferred_life_time", "valid_life_time",
        "hello_timer", "tcn_timer", "topology_change_timer", "gc_timer", "bridge_id", "root_id",
        "packets", "bytes", "operstate", "flags", "linkmode", "txqlen", "qdisc", "min_mtu",
        "max_mtu", "protocol", "root_port", "stats", "stats64", "id", "no", "port_id",
        "designated_port", "designated_bridge", "designated_root", "message_age_timer",
        "forward_delay_timer", "hold_timer", "state", "address_of",
    }
)  # fmt: skip
_MADE_UP = ("wan", "lo")


def state_here() -> dict[str, Any]:
    """Links, addresses and the whole ruleset, without what passes; sorted."""
    links = [_plain(link) for link in _read("ip", "-j", "-d", "link") if not _set_up(link)]
    for link in links:
        if link.get("linkinfo", {}).get("info_kind") != "bridge":
            link.pop("address", None)  # the kernel chose it
    addresses = [
        {"link": link["ifname"], "address": f"{a['local']}/{a['prefixlen']}"}
        for link in _read("ip", "-j", "address")
        for a in link.get("addr_info", ())
        if not (_set_up(link) and a["local"].startswith("fe80:")) and link.get("ifname") != "lo"
    ]
    routing = [
        _plain(row)
        for argv in (("ip", "-j", "rule"), ("ip", "-j", "route", "list", "table", "all"))
        for row in _read(*argv)
        if row.get("protocol") != "kernel"
    ]
    rules = [_plain(rule) for rule in _read("nft", "-j", "list", "ruleset")["nftables"]]
    return {
        "links": sorted(map(_text, links)),
        "addresses": sorted(map(_text, addresses)),
        "routing": sorted(map(_text, routing)),
        "nft": sorted(
            _text(each) for rule in rules if "metainfo" not in rule for each in _apart(rule)
        ),
    }


def reversed_by_nft(ours: dict[str, Any], theirs: dict[str, Any]) -> int:
    """Elements whose number `nft -f` put into the kernel with its bytes the wrong way round.

    nft 1.0.6 was seen to do so with 2 of 4,000 elements of `mark . prefix`, and with none of 1,000;
    ours packs its elements itself, and reads the same from the kernel as it wrote. They are
    taken out of both states: what is left is to be equal.
    """
    gone = set(theirs["nft"]) - set(ours["nft"])
    found = 0
    for text in sorted(set(ours["nft"]) - set(theirs["nft"])):
        row = json.loads(text)
        parts = row["element"].get("concat", ()) if isinstance(row.get("element"), dict) else ()
        if not parts or not isinstance(parts[0], int):
            continue
        number = int.from_bytes(parts[0].to_bytes(4, "little"), "big")
        other = _text({**row, "element": {"concat": [number, *parts[1:]]}})
        if other in gone:
            ours["nft"].remove(text)
            theirs["nft"].remove(other)
            found += 1
    return found


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    found = []
    for key in one:
        ours, theirs = set(one[key]), set(two[key])
        found += [f"only ours: {text[:1000]}" for text in sorted(ours - theirs)[:3]]
        found += [f"only theirs: {text[:1000]}" for text in sorted(theirs - ours)[:3]]
    return found


def _set_up(link: dict[str, Any]) -> bool:
    return str(link.get("ifname", "")).startswith(_MADE_UP)


def _read(*argv: str) -> Any:
    return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout or b"[]")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in _PASSING}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _apart(rule: Any) -> Iterator[Any]:
    """A set without its elements, and each of them by itself: a difference is to be one of them,
    not thousands."""
    for kind, body in rule.items():
        elements = body.pop("elem", ()) if isinstance(body, dict) else ()
        yield {kind: body}
        if isinstance(elements, list):
            name = f"{body.get('family')} {body.get('table')} {body.get('name')}"
            yield from ({"of": name, "element": element} for element in elements)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
