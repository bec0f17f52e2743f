"""One command on a full kernel, in place or in a VM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lab.kernel.vm import Vm


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    outputs: Sequence[Path] = (),
    timeout: float | None = None,
    tty: bool | None = None,
    cpus: int = 4,
    memory_mb: int = 6144,
    where: Literal["auto", "here", "vm"] = "auto",
) -> int:
    """Runs `argv` in place if this kernel misses nothing, else in a VM; returns its exit status."""
    with Vm(cpus=cpus, memory_mb=memory_mb) as vm:
        return vm.run(argv, env=env, cwd=cwd, outputs=outputs, timeout=timeout, tty=tty)
