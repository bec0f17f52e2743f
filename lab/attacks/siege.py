"""Runs the suite on the kernel it is started on: `python -m lab.attacks.siege CASES RESULT`.

`dvn lab attack` starts it through lab.kernel: in place, or in a VM.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dvn.kernel.state import KernelState
from lab.attacks.bench import Bench
from lab.attacks.case import Case, load
from lab.attacks.change import NoSuchPartError, Part, find, rules, without
from lab.attacks.judge import Verdict, judge
from lab.attacks.matrix import lost
from lab.hosts import Lab
from lab.kernel import FEATURES, missing_features

HELD, BROKEN, WRONG = 0, 1, 2


def besiege(bench: Bench, cases: Sequence[Case]) -> Verdict:
    """One run of all cases that this kernel can do, against the gateway as it is now."""
    chosen = [case for case in cases if bench.possible(case)]
    left_out = {
        case.name: f"this kernel lacks {', '.join(sorted(case.needs - bench.features))}"
        for case in cases
        if not bench.possible(case)
    }
    began = time.monotonic()
    sightings, frames = bench.run(chosen)
    return judge(chosen, sightings, left_out, seconds=time.monotonic() - began, frames=frames)


def matrix(bench: Bench, cases: Sequence[Case], parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Each rule taken away by itself: which cases then come through, which controls stay out."""
    chosen = [case for case in cases if bench.possible(case)]
    rows = []
    for part in parts:
        bench.apply(partial(without, part=part))
        rows.append(lost(part, judge(chosen, bench.run(chosen)[0])))
    bench.apply()
    return rows


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.attacks.siege")
    parser.add_argument("cases", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--matrix", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """0: everything blocked and every control passed; 1: not; 2: no such rule."""
    options = _options(arguments)
    cases = load(options.cases.read_text())
    features = FEATURES - set(missing_features())
    with Lab() as lab, Bench(lab, features) as bench:
        whole = bench.apply()
        try:
            broken = [part for text in options.without for part in find(whole, text)]
        except NoSuchPartError as error:
            sys.stderr.write(f"{error}\n")
            return WRONG
        if broken:
            bench.apply(lambda state: _without_all(state, broken))
        verdict = besiege(bench, cases)
        result = verdict.as_json() | {"without": [str(part) for part in broken]}
        if options.matrix:
            result["matrix"] = matrix(bench, cases, rules(whole))
    options.result.write_text(json.dumps(result, indent=1))
    return HELD if verdict.holds else BROKEN


def _without_all(state: KernelState, parts: Iterable[Part]) -> KernelState:
    for part in parts:
        state = without(state, part)
    return state


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
