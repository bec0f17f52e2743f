"""`./run bench scale`: decisions and snapshots of a very big site, beside what others do for one.

A part is a module with `measure() -> dict`: its figures are put into one object. What a part
compares itself with is under `peers`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

PARTS = ("decide", "parse", "batch")  # modules of this package; those that are there are run


def add(commands: Any) -> None:
    parser = commands.add_parser("scale", help="100,000 jobs, 2,000 machines, 5,000 nodes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help="some of them")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    figures: dict[str, Any] = {}
    begin = time.monotonic()
    for part in options.only.split(","):
        if part not in PARTS:
            sys.stderr.write(f"bench: there is no part {part!r}; there are {', '.join(PARTS)}\n")
            return 2
        name = f"bench.scale.{part}"
        if importlib.util.find_spec(name) is None:
            continue
        found = importlib.import_module(name).measure()
        peers = figures.get("peers", {}) | found.pop("peers", {})
        figures |= found
        if peers:
            figures["peers"] = peers
        simple = {key: value for key, value in found.items() if isinstance(value, int | float)}
        sys.stdout.write("".join(f"{key:24} {value}\n" for key, value in simple.items()))
        sys.stdout.flush()
    for key, value in figures.get("peers", {}).items():
        sys.stdout.write(f"{'peer: ' + key:24} {value}\n")
    figures["seconds"] = round(time.monotonic() - begin, 1)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0
