"""What others do of the same, with their own code, in an environment of their own.

*aws-parallelcluster-node* (`of_parallelcluster.py`): `InstanceManager.add_instances` for the nodes
of a flash. Comparable with our flash: both ask EC2 in batches, note which machine stands for which
node, and wait for nothing, with EC2 and the store made up. Not comparable: it is told the node
names by Slurm and decides nothing; ours decides, reserves money and gives each machine an address
and a key. Its table of names (DynamoDB) and the `scontrol update` that tells each node's address
are counted; ours writes its store before and after each call, and a node names itself when it
joins.

*COBalD/TARDIS* (`of_tardis.py`): one heartbeat of as many drones, all available, on the project's
own fake site and batch system, and one step of COBalD's LinearController over their pool.
Comparable with our decision while nobody waits: both look once at each machine and decide whether
there should be more or fewer. Not comparable: nothing of it looks at a job, so there is no figure
beside ours for a queue; and it asks site and batch system for each drone, which fake ones answer
at once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WANTED = HERE / "requirements.txt"
HOME = Path(__file__).parents[3] / ".cache" / "bench-peers"
_INSTALL_S, _RUN_S = 900, 600


def measure(machines: int, leases: int) -> dict[str, Any]:
    """By peer; `error` in place of figures where one could not be run."""
    problem = installed()
    if problem:
        return {name: {"error": problem} for name in ("parallelcluster", "tardis")}
    return {
        "parallelcluster": _run("of_parallelcluster.py", machines),
        "tardis": _run("of_tardis.py", leases),
    }


def installed() -> str:
    """Installs what is missing; what hindered that, or "". Settings of pip are respected."""
    done = HOME / "installed.txt"
    wanted = WANTED.read_text(encoding="utf-8")
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return ""
    sys.stderr.write("bench: installing aws-parallelcluster-node, COBalD and TARDIS\n")
    try:
        venv.create(HOME, clear=True, with_pip=True)
        command = [_python(), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        _call([*command, "--no-deps", "-r", str(WANTED)], _INSTALL_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"its packages could not be installed: {_said(error)}"
    done.write_text(wanted, encoding="utf-8")
    return ""


def _run(script: str, size: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(
            _call([_python(), str(HERE / script), str(size)], _RUN_S)
        )
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"error": _said(error)}
    return found


def _call(command: list[str], seconds: int) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    return done.stdout


def _python() -> str:
    return str(HOME / "bin" / "python")


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = str(error.stderr).strip().splitlines()
        return lines[-1] if lines else f"status {error.returncode}"
    return str(error)
