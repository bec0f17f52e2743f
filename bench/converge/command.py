"""`./run bench converge`: the whole comparison, a table, and its figures as JSON.

Times are taken on the kernel that is here, in network namespaces, since an emulated machine says
nothing of 20 ms; what that kernel lacks has a stand-in, and the report begins with that. How
packets fare is measured on the lab's kernel, which has everything. `--vm`: all of it there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lab.kernel import KernelError
from lab.kernel.runner import run as run_there
from lab.kernel.vm import MARK

_TIMEOUT_S = 10_800.0
PARTS = ("cold", "restart", "drift", "peers", "paths")


def add(commands: Any) -> None:
    parser = commands.add_parser("converge", help="thousands of networks, against ip and nft")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run at all?")
    parser.add_argument("--runs", type=int, default=5, help="of each, at least 5 for a median")
    parser.add_argument("--vm", action="store_true", help="everything on the lab's kernel")
    parser.add_argument(
        "--only", default=",".join(PARTS), metavar="PARTS", help=f"some of {','.join(PARTS)}"
    )
    parser.add_argument(
        "--sizes", default="100,1000,4000", metavar="S,M,L", help="numbers of networks"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    parts = options.only.split(",")
    inside = bool(os.environ.get(MARK))
    if not set(parts) <= set(PARTS):
        sys.stderr.write(f"bench: --only takes some of {','.join(PARTS)}\n")
        return 2
    if not inside and os.geteuid() != 0:
        sys.stderr.write("bench: it makes network namespaces: run it as root (sudo ./run ...)\n")
        return 1
    there = [part for part in parts if not inside and (options.vm or part == "paths")]
    here = [part for part in parts if part not in there]
    from bench.converge import measure, report
    from bench.converge.journal import Journal

    journal = Journal(options.json, time.monotonic)
    try:
        elsewhere = _elsewhere(options, there) if there else {}
    except KernelError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    if here:
        # What each place says of itself is said by the one that takes the times.
        own = {key: value for key, value in elsewhere.items() if key not in measure.OF_EACH}
        journal.keep(own)
        measure.measure(measure.Wanted.of(options, here), journal)
        elsewhere = {}
    journal.keep(elsewhere)
    journal.keep({}, complete=True)
    if not inside or not os.environ.get("DVN_BENCH_PART"):
        report.show(journal.figures)
    return 0


def _elsewhere(options: argparse.Namespace, parts: list[str]) -> dict[str, Any]:
    """The figures of some parts, measured on the lab's kernel."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "figures.json")
        argv = [sys.executable, "-m", "bench", "converge", "--only", ",".join(parts)]
        argv += ["--runs", str(options.runs), "--sizes", options.sizes, "--json", str(file)]
        argv += ["--quick"] if options.quick else []
        env = os.environ | {"DVN_BENCH_PART": "1"}
        status = run_there(argv, env=env, outputs=[file], timeout=_TIMEOUT_S)
        if status != 0 or not file.exists():
            raise KernelError(f"the benchmark on the lab's kernel ended with status {status}")
        found: dict[str, Any] = json.loads(file.read_text())
        return found
