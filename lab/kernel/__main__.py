"""`python -m lab.kernel [--vm|--here|--uml] [--timeout S] [--output PATH]... -- command...`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.kernel import KernelError, find_kernel, missing_features, uml
from lab.kernel.runner import run

FAILED = 125
"""Exit status when it is not the command that failed (as env(1), timeout(1) and docker have it)."""


def main(arguments: list[str] | None = None) -> int:
    """The exit status of the command, or 125 with one line on stderr when there is no kernel to
    run it on.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lab.kernel",
        description="Runs a command on a full kernel: here if this one has GRE, VLANs, VRF ..., "
        "else in a small VM with the same files (writes stay in the VM's memory).",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--vm", dest="where", action="store_const", const="vm", help="always in the VM"
    )
    place.add_argument(
        "--here", dest="where", action="store_const", const="here", help="never in the VM"
    )
    place.add_argument(
        "--uml",
        dest="where",
        action="store_const",
        const="uml",
        help="on a kernel that is a process (lab/kernel/uml.py): for what computes much",
    )
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="end the command after S seconds (status 124)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="copy this file or directory out",
    )
    parser.add_argument("--cpus", type=int, default=4, help="of the VM (default 4)")
    parser.add_argument(
        "--memory", type=int, default=6144, metavar="MB", help="of the VM (default 6144)"
    )
    parser.add_argument(
        "--missing", action="store_true", help="print what this kernel lacks; status 1 if anything"
    )
    parser.add_argument(
        "--image", action="store_true", help="print the kernel image a VM would boot"
    )
    parser.add_argument("argv", nargs="*", metavar="command")
    given = parser.parse_args(arguments)
    if not given.argv and not given.missing and not given.image:
        parser.error("no command given: python -m lab.kernel -- COMMAND ...")
    try:
        if given.missing:
            missing = missing_features()
            sys.stdout.write("".join(f"{name}\n" for name in missing))
            return 1 if missing else 0
        if given.image:
            sys.stdout.write(f"{find_kernel().image}\n")
            return 0
        if given.where == "uml":
            if given.output:
                parser.error("--uml copies nothing out: have the command write to stdout")
            return uml.run(given.argv, timeout=given.timeout, memory_mb=given.memory)
        return run(
            given.argv,
            outputs=given.output,
            timeout=given.timeout,
            cpus=given.cpus,
            memory_mb=given.memory,
            where=given.where or "auto",
        )
    except KernelError as error:
        sys.stderr.write(f"lab.kernel: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
