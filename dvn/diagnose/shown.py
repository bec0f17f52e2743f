"""A walk for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dvn.diagnose.describe import describe, inside
from dvn.diagnose.walk import Hop, Walk


def walk_lines(walk: Walk, *, verbose: bool = False) -> Iterator[tuple[str, str]]:
    """(verdict or "", line) of each step; without `verbose`, chains that had nothing to say are
    left out."""
    hops = [hop for hop in walk.hops if verbose or _tells(hop)]
    width = max((len(hop.device) for hop in hops), default=0)
    where = max((len(hop.where) for hop in hops), default=0)
    for hop in hops:
        decided = hop.verdict == "drop" or (hop.rules and hop.words != "nothing objects")
        words = f"{hop.verdict}: {hop.words}" if decided else hop.words
        yield hop.verdict, f"{hop.device.ljust(width)}  {hop.where.ljust(where)}  {words}"
        if verbose:
            for hit in hop.rules:
                line = f"{hit.chain}: {hit.line.text or hit.line.comment} -> {hit.verdict}"
                yield "", f"{'':{width}}  {'':{where}}    {line}"
        for line_ in hop.unknown:
            yield "", f"{'':{width}}  {'':{where}}    not understood: {line_.text or line_.comment}"


def _tells(hop: Hop) -> bool:
    return bool(hop.unknown or hop.verdict == "drop") or hop.words != "nothing objects"


def conclusion(walk: Walk) -> str:
    """The end, in one line: where to and as what, or by what it was stopped."""
    if not walk.exits:
        return walk.why
    ends = {f"{each.device} as {inside(each.packet)}" for each in walk.exits}
    return "delivered to " + "; ".join(sorted(ends))


def walk_json(walk: Walk) -> dict[str, Any]:
    return {
        "packet": describe(walk.packet),
        "enters": walk.enters,
        "verdict": walk.verdict,
        "why": walk.why,
        "exits": [{"device": each.device, "packet": describe(each.packet)} for each in walk.exits],
        "hops": [
            {
                "where": hop.where,
                "device": hop.device,
                "what": hop.words,
                "verdict": hop.verdict,
                "rules": [
                    {
                        "table": hit.table,
                        "chain": hit.chain,
                        "rule": hit.line.text,
                        "comment": hit.line.comment,
                        "verdict": hit.verdict,
                    }
                    for hit in hop.rules
                ],
                "not_understood": [line.text or line.comment for line in hop.unknown],
            }
            for hop in walk.hops
        ],
    }
