"""What a story looks like while it runs: a live table at a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self


@dataclass(frozen=True, slots=True)
class Scene:
    """One look at the story. jobs: id -> (state, node); leases as the API gives them."""

    title: str
    seconds: float
    jobs: Mapping[str, tuple[str, str]]
    leases: Sequence[Mapping[str, Any]]
    gre_packets: int
    money: str
    local: frozenset[str]  # the farm's own nodes

    def counted(self) -> dict[str, int]:
        """Jobs by what a person asks: waiting, running here or there, ended here or there."""
        counts: Counter[str] = Counter()
        for state, node in self.jobs.values():
            # Some batch systems say nodes with their domain.
            where = "local" if node.partition(".")[0] in self.local else "remote"
            if state in ("pending", "held"):
                counts["waiting"] += 1
            elif state in ("running", "completing"):
                counts[f"running {where}"] += 1
            else:
                counts[f"ended {where}"] += 1
        return dict(counts)

    def lease_states(self) -> dict[str, int]:
        return dict(Counter(str(lease["state"]) for lease in self.leases))


class Display(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def say(self, line: str) -> None: ...
    def show(self, scene: Scene) -> None: ...


def make_display(*, plain: bool | None = None) -> Display:
    """A live display at a terminal, else (or when asked) plain lines."""
    if plain is None:
        plain = not sys.stdout.isatty()
    return PlainDisplay() if plain else LiveDisplay()


class PlainDisplay:
    """One line for each change of a number, with the seconds since the start."""

    def __init__(
        self,
        write: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write or self._stdout
        self._clock = clock
        self._began = clock()
        self._last = ""

    @staticmethod
    def _stdout(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def say(self, line: str) -> None:
        self._write(f"[{self._clock() - self._began:6.1f} s] {line}\n")

    def show(self, scene: Scene) -> None:
        jobs = ", ".join(f"{n} {what}" for what, n in sorted(scene.counted().items()))
        leases = ", ".join(f"{n} {state}" for state, n in scene.lease_states().items())
        line = f"jobs: {jobs or 'none'}; leases: {leases or 'none'}; spent {scene.money}"
        if line != self._last:
            self._last = line
            self.say(line)


class LiveDisplay:
    """Queue, machines and money, redrawn in place with rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._said: list[str] = []
        self._scene: Scene | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, value, trace)

    def say(self, line: str) -> None:
        self._said.append(f"[{time.monotonic() - self._began:6.1f} s] {line}")
        self._draw()

    def show(self, scene: Scene) -> None:
        self._scene = scene
        self._draw()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text("\n".join(self._said[-6:]), style="dim")]
        if self._scene is not None:
            scene = self._scene
            counts = scene.counted()
            total = max(len(scene.jobs), 1)
            bar = Text()
            for what, style in (
                ("ended local", "on blue"), ("ended remote", "on dark_orange"),
                ("running local", "on bright_blue"), ("running remote", "on orange1"),
                ("waiting", "on grey50"),
            ):  # fmt: skip
                bar.append(" " * round(60 * counts.get(what, 0) / total), style=style)
            words = "  ".join(f"{counts[k]} {k}" for k in sorted(counts))
            table = Table("lease", "machine", "state", "address", "tunnel to", expand=True)
            for lease in scene.leases:
                table.add_row(
                    str(lease["id"])[:8], str(lease.get("machine") or "-"), str(lease["state"]),
                    str(lease.get("address") or "-"), str(lease.get("underlay") or "-"),
                )  # fmt: skip
            foot = f"GRE packets at the internet router: {scene.gre_packets}   {scene.money}"
            title = f"{scene.title}  {scene.seconds:.0f} s"
            parts.append(Panel(Group(bar, Text(words), table, Text(foot)), title=title))
        self._live.update(Group(*parts))
