"""`python -m bench NAME [--json FILE] [--quick]`; `./run bench` installs first."""

from __future__ import annotations

import argparse
import sys

from bench.converge import command as converge
from bench.faults import command as faults
from bench.mixed import command as mixed
from bench.policy import command as policy
from bench.scale import command as scale


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (converge, faults, mixed, policy, scale):
        command.add(commands)
    options = parser.parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
