"""`./run bench mixed`: batch jobs and virtual machines on one host, with and without weights.

Runs where the kernel has control groups of version 2 with the cpu controller: here, or on the
lab's kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.mixed.groups import NoGroupsError
from lab.kernel import KernelError
from lab.kernel.runner import run as run_there
from lab.kernel.vm import MARK

_TIMEOUT_S = 3600.0


def add(commands: Any) -> None:
    parser = commands.add_parser("mixed", help="what batch jobs lose to machines beside them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them, as SVG or PNG")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--runs", type=int, default=3, help="of each")
    parser.add_argument("--batch-weight", type=int, default=400)
    parser.add_argument("--machine-weight", type=int, default=100)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from bench.mixed import report

    if os.geteuid() != 0:
        sys.stderr.write("bench: it makes control groups: run it as root (sudo ./run ...)\n")
        return 1
    try:
        figures = _figures(options)
    except (KernelError, NoGroupsError) as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.plot:
        report.plot(figures, options.plot)
    if not os.environ.get("DVN_BENCH_PART"):
        report.show(figures)
    return 0


def _figures(options: argparse.Namespace) -> dict[str, Any]:
    from bench.mixed.measure import Wanted, measure

    wanted = Wanted(options.seconds, options.runs, options.batch_weight, options.machine_weight)
    try:
        return measure(wanted)
    except NoGroupsError:
        if os.environ.get(MARK):
            raise
    return _elsewhere(options)


def _elsewhere(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "figures.json")
        argv = [sys.executable, "-m", "bench", "mixed", "--json", str(file)]
        argv += ["--seconds", str(options.seconds), "--runs", str(options.runs)]
        argv += ["--batch-weight", str(options.batch_weight)]
        argv += ["--machine-weight", str(options.machine_weight)]
        env = os.environ | {"DVN_BENCH_PART": "1"}
        status = run_there(argv, env=env, outputs=[file], timeout=_TIMEOUT_S)
        if status != 0 or not file.exists():
            raise KernelError(f"the benchmark on the lab's kernel ended with status {status}")
        found: dict[str, Any] = json.loads(file.read_text())
        return found
