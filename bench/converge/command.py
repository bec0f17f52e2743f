"""`./run bench converge`: the whole comparison, a table, and its figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.converge.content import make_site
from lab.kernel.vm import MARK

_TIMEOUT_S = 5400.0


def add(commands: Any) -> None:
    parser = commands.add_parser("converge", help="thousands of networks, against ip and nft")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run at all?")
    parser.add_argument("--runs", type=int, default=5, help="of each, at least 5 for a median")
    parser.add_argument(
        "--here", action="store_true",
        help="on this kernel as root, with vxlan in the place of gretap if it has none",
    )  # fmt: skip
    parser.add_argument(
        "--only", default="", metavar="PARTS", help="cold,restart,paths,peers; all unless given"
    )
    parser.add_argument(
        "--sizes", default="100,1000,4000", metavar="S,M,L", help="numbers of networks"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if not options.here and not os.environ.get(MARK):
        return _elsewhere(options)
    from bench.converge import measure, report

    begin = time.monotonic()
    figures = measure.measure(measure.Wanted.of(options))
    figures["seconds"] = round(time.monotonic() - begin, 1)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    report.show(figures)
    return 0


def _elsewhere(options: argparse.Namespace) -> int:
    """The same command on the lab's kernel."""
    from lab.kernel.runner import run as run_there

    argv = [sys.executable, "-m", "bench", *sys.argv[1:]]
    outputs = [options.json.absolute()] if options.json else []
    return run_there(argv, outputs=outputs, timeout=_TIMEOUT_S)


__all__ = ["add", "make_site", "run"]
