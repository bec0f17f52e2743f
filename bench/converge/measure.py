"""Runs everything in turn, ours and theirs side by side, and works out the ratios."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from bench.converge import converging, drifting, paths, peers, restart, standin
from bench.converge.content import make_site
from bench.converge.journal import Journal
from bench.converge.space import in_space
from bench.converge.states import differences, reversed_by_nft
from lab.kernel import missing_features

# What each place that measures says of itself.
OF_EACH = ("kernel", "stand_in", "missing_here", "sizes", "runs", "seconds", "complete")


@dataclass(frozen=True)
class Wanted:
    """`sizes`: small, middle, large; the change is compared between the first and the last."""

    sizes: tuple[int, int, int]
    runs: int
    parts: tuple[str, ...]

    @staticmethod
    def of(options: argparse.Namespace, parts: Sequence[str]) -> Wanted:
        if options.quick:
            return Wanted((5, 10, 40), 1, tuple(parts))
        small, middle, large = map(int, options.sizes.split(","))
        return Wanted((small, middle, large), options.runs, tuple(parts))


def measure(wanted: Wanted, journal: Journal) -> None:
    """Adds to the journal what each part finds, as it finds it."""
    missing = missing_features()
    standin.stand_in(missing)
    journal.keep(
        {
            "kernel": platform.release(),
            "stand_in": standin.stands_in(),
            "missing_here": list(missing),
            "sizes": list(wanted.sizes),
            "runs": wanted.runs,
        }
    )
    for part, work in _WORK.items():
        if part in wanted.parts:
            work(wanted, journal)


def _restarts(wanted: Wanted, journal: Journal) -> None:
    size = wanted.sizes[1]
    rows: list[dict[str, Any]] = []
    for _ in range(wanted.runs):
        rows.append(in_space(partial(restart.restart, size)))
        journal.say(f"restart with {size} networks", {"": rows[-1]["seconds"]})
        journal.keep(
            {
                "restart_s_1000": median(row["seconds"] for row in rows),
                "restart_writes": max(row["writes"] + row["steps"] for row in rows),
                "restart_packets_lost": max(row["packets_lost"] for row in rows),
                "restart_runs": rows,
            }
        )


def _drifts(wanted: Wanted, journal: Journal) -> None:
    size = wanted.sizes[1]
    rows: list[dict[str, float]] = []
    for _ in range(wanted.runs):
        rows.append(in_space(partial(drifting.drift, size)))
        journal.say(f"repairs with {size} networks", rows[-1])
        slowest = max(median(row[name] for row in rows) for name in rows[0])
        journal.keep({"drift_s_1000": slowest, "drift_runs": rows})


def _paths(wanted: Wanted, journal: Journal) -> None:
    """Needs a full kernel: the hosts are the lab's."""
    many = 10_000 if wanted.runs > 1 else 100
    seconds = 2 if wanted.runs > 1 else 1
    # One run on an emulated kernel is a sixth off the next.
    runs = 2 * wanted.runs + 1 if wanted.runs > 1 else 1
    nat = paths.nat_paths(10, many, runs, seconds)
    journal.say("the packet path with few and with many NAT entries")
    journal.keep({"nat_path_ratio": min(nat["tcp_ratio"], nat["udp_ratio"]), "nat_paths": nat})
    tunnels = paths.tunnel_paths(runs, seconds)
    journal.say("the tunnels beside the plain path")
    plain = median(tunnels["plain_tcp"])
    journal.keep(
        {
            "gretap_ratio": median(tunnels["gretap_tcp"]) / plain,
            "wireguard_ratio": median(tunnels["wireguard_tcp"]) / plain,
            "tunnel_paths": tunnels,
        }
    )


def _peers(wanted: Wanted, journal: Journal) -> None:
    found: dict[str, Any] = {"networks": wanted.sizes[0]}
    for name, seconds in peers.peers(wanted.sizes[0]):
        found[name] = seconds
        journal.say(f"peer: {name}", {"": seconds} if isinstance(seconds, float) else None)
        journal.keep({"peers": dict(found)})


def _converging(wanted: Wanted, journal: Journal) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for size, label in zip(wanted.sizes, ("100", "1000", "4000"), strict=True):
        row = rows[label] = _at(size, wanted.runs, journal)
        found: dict[str, Any] = {"by_size": {}}
        for number, each in zip(wanted.sizes, rows.values(), strict=False):
            found["by_size"][str(number)] = each
        if label != "100":
            found[f"cold_ratio_{label}"] = _ratio(row["ours"]["cold"], row["theirs"]["cold"])
            # The same content indeed: ours sets the links' sysctls, too.
            theirs = row["theirs"]
            settled = [a + b for a, b in zip(theirs["cold"], theirs["sysctls"], strict=True)]
            found[f"cold_settings_ratio_{label}"] = _ratio(row["ours"]["cold"], settled)
            # Until all of it is there; ours then looks whether it is, which ip and nft do not.
            found[f"cold_writing_ratio_{label}"] = _ratio(
                row["ours"]["cold_writing"], row["theirs"]["cold"]
            )
            found[f"noop_ratio_{label}"] = _ratio(row["ours"]["noop"], row["theirs"]["reads"])
        journal.keep(found)
    small, middle, large = rows.values()
    slowest = _slower(large, "")
    journal.keep(
        {
            "growth_4000_1000": _ratio(large["ours"]["cold"], middle["ours"]["cold"]),
            "change_ms_4000": 1000 * slowest,
            "change_cpu_ms_4000": 1000 * _slower(large, "_cpu"),
            "change_ratio_4000_100": slowest / _slower(small, ""),
        }
    )


_WORK: dict[str, Callable[[Wanted, Journal], None]] = {
    "cold": _converging,
    "restart": _restarts,
    "drift": _drifts,
    "paths": _paths,
    "peers": _peers,
}


def _at(size: int, runs: int, journal: Journal) -> dict[str, Any]:
    site = make_site(size)
    ours, theirs = [], []
    for number in range(runs):
        full = number == 0
        ours.append(in_space(partial(converging.ours, site, full=full)))
        theirs.append(in_space(partial(converging.theirs, site, full=full)))
        seconds = {
            "ours": ours[-1]["cold"],
            "of it writing": ours[-1]["cold_writing"],
            "ip and nft": theirs[-1]["cold"],
        }
        journal.say(f"cold start of {size} networks", seconds)
    own, other = ours[0].pop("state"), theirs[0].pop("state")
    wrong = reversed_by_nft(own, other)
    unlike = differences(own, other)
    if unlike:
        raise RuntimeError("the end states differ:\n" + "\n".join(unlike))
    if len(theirs[0]["left"]) != 2 * wrong:  # each away, and the right one there
        raise RuntimeError(f"what ip and nft made is not what was wanted: {theirs[0]['left']}")
    if wrong:
        journal.say(f"nft -f stored {wrong} elements with their bytes the wrong way round")
    once = ours[0]
    return {
        "same_end_state": True,
        "reversed_by_nft": wrong,
        "ours": {
            "cold": [row["cold"] for row in ours],
            **{
                name: [row[name] for row in ours]
                for name in ("cold_cpu", "cold_writing", "cold_looking")
            },
            **{key: value for key, value in once.items() if not key.startswith("cold")},
        },
        "theirs": {
            "cold": [row["cold"] for row in theirs],
            "ip": [row["ip"] for row in theirs],
            "nft": [row["nft"] for row in theirs],
            "sysctls": [row["sysctls"] for row in theirs],
            "reads": once["reads"],
        },
    }


def _slower(row: dict[str, Any], what: str) -> float:
    """Of one network more and another NAT entry, the one that takes longer."""
    ours = row["ours"]
    return float(max(median(ours[f"add{what}"]), median(ours[f"nat{what}"])))


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(ours) / median(theirs)
