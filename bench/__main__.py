"""`python -m bench converge [--json FILE] [--quick]`; `./run bench` installs first."""

from __future__ import annotations

import argparse
import sys

from bench.converge import command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command.add(commands)
    options = parser.parse_args(arguments)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
