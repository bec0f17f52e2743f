"""Runs the suite inside a kernel: `python -m lab.attacks.siege CASES RESULT`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab.attacks.bench import Bench
from lab.attacks.case import Case, load
from lab.attacks.judge import Verdict, judge
from lab.hosts import Lab
from lab.kernel import FEATURES, missing_features


def besiege(bench: Bench, cases: Sequence[Case]) -> Verdict:
    """One run of all cases that this kernel can do, against the gateway as it is now."""
    chosen = [case for case in cases if bench.possible(case)]
    left_out = {
        case.name: f"this kernel lacks {', '.join(sorted(case.needs - bench.features))}"
        for case in cases
        if not bench.possible(case)
    }
    began = time.monotonic()
    sightings = bench.run(chosen)
    return judge(chosen, sightings, left_out, seconds=time.monotonic() - began)


def main(arguments: Sequence[str]) -> int:
    cases = load(Path(arguments[0]).read_text())
    features = FEATURES - set(missing_features())
    began = time.monotonic()
    with Lab() as lab, Bench(lab, features) as bench:
        bench.apply()
        sys.stderr.write(f"ground: {time.monotonic() - began:.1f} s\n")
        verdict = besiege(bench, cases)
    Path(arguments[1]).write_text(json.dumps(verdict.as_json(), indent=1))
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
