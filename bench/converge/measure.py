"""Runs everything in turn, ours and theirs side by side, and works out the ratios."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from bench.converge import converging, drifting, paths, peers, restart, standin
from bench.converge.content import make_site
from bench.converge.space import in_space
from bench.converge.states import differences
from lab.kernel import missing_features

# What each place that measures says of itself.
OF_EACH = ("kernel", "stand_in", "missing_here", "sizes", "runs", "seconds")


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


def measure(wanted: Wanted) -> dict[str, Any]:
    missing = missing_features()
    standin.stand_in(missing)
    figures: dict[str, Any] = {
        "kernel": platform.release(),
        "stand_in": standin.stands_in(),
        "missing_here": list(missing),
        "sizes": list(wanted.sizes),
        "runs": wanted.runs,
    }
    if "cold" in wanted.parts:
        figures |= _converging(wanted)
    if "restart" in wanted.parts:
        figures |= _restarts(wanted)
    if "drift" in wanted.parts:
        figures |= _drifts(wanted)
    if "paths" in wanted.parts:
        figures |= _paths(wanted)
    if "peers" in wanted.parts:
        figures["peers"] = peers.peers(wanted.sizes[0])
    return figures


def _restarts(wanted: Wanted) -> dict[str, Any]:
    rows = [in_space(partial(restart.restart, wanted.sizes[1])) for _ in range(wanted.runs)]
    return {
        "restart_s_1000": median(row["seconds"] for row in rows),
        "restart_writes": max(row["writes"] + row["steps"] for row in rows),
        "restart_packets_lost": max(row["packets_lost"] for row in rows),
        "restart_runs": rows,
    }


def _drifts(wanted: Wanted) -> dict[str, Any]:
    rows = [in_space(partial(drifting.drift, wanted.sizes[1])) for _ in range(wanted.runs)]
    return {
        "drift_s_1000": max(median(row[name] for row in rows) for name in rows[0]),
        "drift_runs": rows,
    }


def _paths(wanted: Wanted) -> dict[str, Any]:
    """Needs a full kernel: the hosts are the lab's."""
    many = 10_000 if wanted.runs > 1 else 100
    seconds = 2.0 if wanted.runs > 1 else 0.5
    nat = paths.nat_paths(10, many, wanted.runs, seconds)
    tunnels = paths.tunnel_paths(wanted.runs, seconds)
    plain = median(tunnels["plain_tcp"])
    return {
        "nat_path_ratio": min(nat["tcp_ratio"], nat["udp_ratio"]),
        "gretap_ratio": median(tunnels["gretap_tcp"]) / plain,
        "wireguard_ratio": median(tunnels["wireguard_tcp"]) / plain,
        "paths": {"nat": nat, "tunnels": tunnels},
    }


def _converging(wanted: Wanted) -> dict[str, Any]:
    found: dict[str, Any] = {"by_size": {}}
    for size in wanted.sizes:
        found["by_size"][str(size)] = _at(size, wanted.runs)
    small, middle, large = (found["by_size"][str(size)] for size in wanted.sizes)
    for row, label in ((middle, "1000"), (large, "4000")):
        found[f"cold_ratio_{label}"] = _ratio(row["ours"]["cold"], row["theirs"]["cold"])
        found[f"noop_ratio_{label}"] = _ratio(row["ours"]["noop"], row["theirs"]["reads"])
    found["growth_4000_1000"] = _ratio(large["ours"]["cold"], middle["ours"]["cold"])
    slowest = {size: _slower(row, "") for size, row in (("100", small), ("4000", large))}
    found["change_ms_4000"] = 1000 * slowest["4000"]
    found["change_cpu_ms_4000"] = 1000 * _slower(large, "_cpu")
    found["change_ratio_4000_100"] = slowest["4000"] / slowest["100"]
    return found


def _at(size: int, runs: int) -> dict[str, Any]:
    site = make_site(size)
    ours, theirs = [], []
    for number in range(runs):
        full = number == 0
        ours.append(in_space(partial(converging.ours, site, full=full)))
        theirs.append(in_space(partial(converging.theirs, site, full=full)))
    unlike = differences(ours[0].pop("state"), theirs[0].pop("state"))
    if unlike:
        raise RuntimeError("the end states differ:\n" + "\n".join(unlike))
    if theirs[0]["left"]:
        raise RuntimeError(f"what ip and nft made is not what was wanted: {theirs[0]['left']}")
    once = ours[0]
    return {
        "same_end_state": True,
        "ours": {
            "cold": [row["cold"] for row in ours],
            "cold_cpu": [row["cold_cpu"] for row in ours],
            **{key: value for key, value in once.items() if not key.startswith("cold")},
        },
        "theirs": {
            "cold": [row["cold"] for row in theirs],
            "ip": [row["ip"] for row in theirs],
            "nft": [row["nft"] for row in theirs],
            "sysctls": theirs[0]["sysctls"],
            "reads": once["reads"],
        },
    }


def _slower(row: dict[str, Any], what: str) -> float:
    """Of one network more and another NAT entry, the one that takes longer."""
    ours = row["ours"]
    return float(max(median(ours[f"add{what}"]), median(ours[f"nat{what}"])))


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return median(ours) / median(theirs)
