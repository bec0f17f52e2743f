"""The demo's jobs: real CPU work whose result can be checked by another algorithm.

A job counts the primes of its own interval by trial division and writes the count to a file on
the shared file system. `expected` counts the same primes by a sieve: a wrong or missing file is a
wrong job, wherever it ran.
"""

from __future__ import annotations

from dataclasses import dataclass

RESULTS = "results"  # directory in the user's home, on the shared file system


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a batch script says to its batch system, and a job is told by it."""

    directives: str  # lines of the script; {name} is the job's, {minutes} its limit
    job_id: str  # an expression of the shell


SLURM = Dialect(
    "#SBATCH --job-name={name}\n#SBATCH --ntasks=1 --cpus-per-task=1 --time={minutes}\n"
    "#SBATCH --output=/dev/null\n",
    "$SLURM_JOB_ID",
)


@dataclass(frozen=True, slots=True)
class Task:
    """Count the primes in [start, stop)."""

    index: int
    start: int
    stop: int

    @property
    def result_file(self) -> str:
        """Relative to the user's home."""
        return f"{RESULTS}/count-{self.index:03d}.txt"


def flash(count: int, *, size: int, first: int = 1_000_000) -> tuple[Task, ...]:
    """`count` neighbouring intervals of `size` numbers: about equal work for each."""
    if count < 1 or size < 1:
        raise ValueError("a flash has at least one job of at least one number")
    return tuple(Task(i, first + i * size, first + (i + 1) * size) for i in range(count))


def script(
    task: Task, *, directory: str = RESULTS, minutes: int = 10, dialect: Dialect = SLURM
) -> str:
    """The batch script: nothing but `sh` and the system's Python; its time limit is `minutes`.

    The result is written to a temporary name and renamed, so that a job killed half way leaves no
    half result; the file also says on which host it was made and by which job.
    """
    target = f'"$HOME/{directory}/count-{task.index:03d}.txt"'
    directives = dialect.directives.format(name=f"primes-{task.index:03d}", minutes=minutes)
    return f"""#!/bin/sh
{directives}set -eu
job={dialect.job_id}
/usr/bin/python3 -I -S - {task.start} {task.stop} > {target}.$job <<'PROGRAM'
import sys
start, stop = int(sys.argv[1]), int(sys.argv[2])
divisors = [2] + [n for n in range(3, int(stop**0.5) + 2, 2)
                  if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
count = 0
for n in range(start, stop):
    for d in divisors:
        if d * d > n:
            count += 1
            break
        if n % d == 0:
            break
    else:
        count += 1
print(count)
PROGRAM
echo "$job $(hostname)" >> {target}.$job
mv {target}.$job {target}
echo "$job" >> "$HOME/{directory}/runs-{task.index:03d}.log"
"""


def expected(tasks: tuple[Task, ...]) -> dict[int, int]:
    """The right count for each task's index, by one sieve of Eratosthenes."""
    if not tasks:
        return {}
    limit = max(task.stop for task in tasks)
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
    return {task.index: sum(sieve[task.start : task.stop]) for task in tasks}


def judge(task: Task, text: str | None, right: int) -> tuple[bool, str]:
    """Whether a result file's text is right; and if not, what is wrong with it."""
    if text is None:
        return False, f"{task.result_file} is missing"
    lines = text.split("\n")
    if not lines[0].strip().isdigit():
        return False, f"{task.result_file} does not begin with a number"
    if int(lines[0]) != right:
        return False, f"{task.result_file} says {lines[0]}, the sieve says {right}"
    return True, ""
