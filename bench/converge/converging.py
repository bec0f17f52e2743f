"""Cold start, no-op and small changes: ours, and `ip -batch` + `nft -f` with the same content."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.converge.content import with_another_nat, with_one_more
from bench.converge.script import script_of
from bench.converge.states import state_here
from dvn.compile import compile_site
from dvn.engine import Engine
from dvn.kernel.linux import LinuxKernel
from dvn.kernel.state import View, table_name
from dvn.kernel.steps import Step, Writes
from dvn.spec import Site

NO_OPS, CHANGES = 5, 11


def ours(site: Site, *, full: bool) -> dict[str, Any]:
    """Seconds of a cold start; with `full` also of no-ops and changes, and the end state."""
    kernel = _Timed()
    engine = Engine(kernel)
    found: dict[str, Any] = {}
    found["cold"], found["cold_cpu"], applied = _timed(lambda: engine.apply(site))
    # What bounds it: the kernel's own time for the writes, and that of looking whether they are so.
    found["cold_writing"], found["cold_looking"] = kernel.writing, kernel.looking
    found["steps"] = len(applied.steps)
    found["writes"] = [applied.netlink_writes, applied.nft_writes, applied.sysctl_writes]
    if not full:
        return found
    found["state"] = state_here()
    times = [_timed(lambda: engine.apply(site)) for _ in range(NO_OPS)]
    if any(applied.steps for _wall, _cpu, applied in times):
        raise RuntimeError("a no-op wrote something")
    found["noop"] = [wall for wall, _cpu, _applied in times]
    found["reads"] = [_reads(site) for _ in range(NO_OPS)]
    # The very first no-op of a process that knows nothing yet.
    found["noop_fresh"] = _timed(lambda: Engine(LinuxKernel()).apply(site))[0]
    count = sum(1 for _ in site.networks())
    for name, change in (("add", with_one_more), ("nat", with_another_nat)):
        rows = []
        for number in range(CHANGES + 1):
            site = change(site, count + number)
            rows.append(_timed(lambda site=site: engine.apply(site)))  # type: ignore[misc]
        found[f"{name}_first"] = rows[0][0]  # counts who holds what; the others know it
        found[name] = [wall for wall, _cpu, _applied in rows[1:]]
        found[f"{name}_cpu"] = [cpu for _wall, cpu, _applied in rows[1:]]
        found[f"{name}_steps"] = len(rows[-1][2].steps)
    return found


def theirs(site: Site, *, full: bool) -> dict[str, Any]:
    """Seconds of `ip -batch` and `nft -f` for the state that the engine would make."""
    view = LinuxKernel().look(site.site)
    state = compile_site(site, view.host).state
    script = script_of(state)
    Path("/run/bench.ip").write_text(script.ip)
    Path("/run/bench.nft").write_text(script.nft)
    begin = time.perf_counter()
    subprocess.run(["ip", "-batch", "/run/bench.ip"], check=True)
    middle = time.perf_counter()
    subprocess.run(["nft", "-f", "/run/bench.nft"], check=True)
    end = time.perf_counter()
    found: dict[str, Any] = {"cold": end - begin, "ip": middle - begin, "nft": end - middle}
    if full:
        found["state"] = state_here()
    Path("/run/bench.sysctl").write_text("".join(f"{s.key}={s.value}\n" for s in state.sysctls))
    begin = time.perf_counter()
    subprocess.run(["sysctl", "-q", "-p", "/run/bench.sysctl"], check=True)
    found["sysctls"] = time.perf_counter() - begin
    if full:
        found["left"] = list(Engine(LinuxKernel()).plan(site).lines()[:50])
    return found


class _Timed(LinuxKernel):
    """With seconds of the wall clock that its writes and its looks took."""

    def __init__(self) -> None:
        super().__init__()
        self.writing = self.looking = 0.0

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        begin = time.perf_counter()
        try:
            return super().carry_out(steps)
        finally:
            self.writing += time.perf_counter() - begin

    def look(self, site: str) -> View:
        begin = time.perf_counter()
        try:
            return super().look(site)
        finally:
            self.looking += time.perf_counter() - begin


def _reads(site: Site) -> float:
    """Seconds of what `ip -j` and `nft -j` take to read the same objects."""
    name = table_name(site.site)
    begin = time.perf_counter()
    for argv in (
        ("ip", "-j", "link"),
        ("ip", "-j", "address"),
        ("ip", "-j", "rule"),
        ("nft", "-j", "list", "table", "inet", name),
        ("nft", "-j", "list", "table", "bridge", name),
    ):
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(seconds, of them this process's own on a processor, result)."""
    cpu, begin = time.process_time(), time.perf_counter()
    result = work()
    return time.perf_counter() - begin, time.process_time() - cpu, result
