"""`./run demo`: a flash of jobs overflows a real Slurm farm into the lab EC2, and comes home.

The same jobs then run once more on the farm alone, so that what bursting won is measured.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from lab.farm import FinishedJob
from lab.host import LabError
from lab.scenarios import pictures, report, site, work
from lab.scenarios.display import Display, Scene, make_display
from lab.scenarios.farms import KINDS, SLURM, Kind, Scale
from lab.scenarios.story import Story, worker_of

LOCAL = frozenset(site.WORKERS)
LOOK_EVERY = 1.5  # s between two looks at the daemon


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    signal.signal(signal.SIGTERM, _as_interrupt)
    with make_display(plain=options.plain or None) as display:
        try:
            done = play(
                display,
                scale=_scale(options),
                core_share=options.core_share,
                kind=KINDS[options.lrms],
            )
        except LabError as error:
            display.say(f"the story broke off: {error}")
            return 1
        except KeyboardInterrupt:
            display.say("interrupted; everything was taken down")
            return 130
    sys.stdout.write("\n" + report.text(done))
    _write(options, done)
    return 0 if done.ok else 1


def _as_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="write timeline.svg and topology.svg there"
    )
    parser.add_argument(
        "--lrms",
        choices=sorted(KINDS),
        default=SLURM.name,
        help="the batch system: Slurm of this Debian, or another, real one (default slurm)",
    )
    parser.add_argument("--jobs", type=int, help="how many (default 24; 12 of another --lrms)")
    parser.add_argument(
        "--size", type=int, help="numbers each job looks at (default 40000; 300000, 800000)"
    )
    parser.add_argument("--machines", type=int, help="at most so many borrowed (default 4; 2)")
    parser.add_argument(
        "--core-share",
        type=float,
        default=0.25,
        help="the part of a real core that each lab core gets (default 0.25)",
    )
    parser.add_argument("--plain", action="store_true", help="no live display")
    parser.add_argument(
        "--compare",
        action=argparse.BooleanOptionalAction,
        help="run the jobs again without bursting (default: with slurm)",
    )
    return parser.parse_args(argv)


def _scale(options: argparse.Namespace) -> Scale:
    """The batch system's own, but for what was asked for."""
    names = (each.name for each in fields(Scale))
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    return replace(KINDS[options.lrms].scale, **asked)


def play(
    display: Display,
    *,
    kind: Kind = SLURM,
    scale: Scale | None = None,
    core_share: float = 0.25,
) -> report.Report:
    """The whole story, from an empty lab to the report. LabError when a step did not happen."""
    scale = scale or kind.scale
    jobs = scale.jobs
    tasks = work.flash(jobs, size=scale.size)
    right = work.expected(tasks)
    policy = None if kind is SLURM else site.PATIENT
    with Story(
        core_share=core_share,
        max_machines=scale.machines,
        kind=kind,
        policy=policy,
        tell=display.say,
    ) as story:
        display.say("dvn apply: the tenant's network")
        story.dvn("apply", site.SITE_FILE)
        display.say("dvn gateway run")
        with _phase(story, "daemon up"):
            story.start_daemon()
        display.say(f"alice submits {jobs} jobs to {kind.name}")
        with _phase(story, "burst"):
            ids = story.submit(tasks)
            _watch(story, display, ids, timeout=300 + 30 * jobs)
        rows = _rows(story, ids, right, story.finished())
        display.say("the queue is empty: idle machines are drained, removed, returned")
        with _phase(story, "return"):
            story.wait_returned(400)
        leases = story.leases()
        _last_words(story, display, leases)
        traffic = story.traffic()
        display.say("dvn destroy: nothing may be left")
        story.kill_daemon(signal.SIGTERM)
        story.dvn("destroy", site.SITE_FILE)
        left = story.leftovers(leases)
        local_only = None
        if scale.compare:
            display.say("the same jobs once more, on the farm alone")
            with _phase(story, "local only"):
                again = story.submit(tasks)
                _watch(story, display, again, timeout=120 + 60 * jobs)
            local_only = _makespan(_rows(story, again, right, story.finished()))
        display.say("taking the lab down")
    return report.Report(
        jobs=tuple(rows),
        leases=tuple(_lease_row(lease) for lease in leases),
        gre=report.Traffic(traffic["gre"].packets, traffic["gre"].bytes),
        other_traffic={n: t for n, t in traffic.items() if n != "gre" and t.packets},
        makespan_s=report.Makespan(_makespan(rows), local_only),
        leftovers=left,
        cost=sum((Decimal(str(lease["cost"])) for lease in leases), Decimal(0)),
        currency="USD",
        phases_s={name: round(seconds, 1) for name, seconds in story.phases.items()},
    )


def _last_words(
    story: Story, display: Display, leases: Sequence[Mapping[str, Any]], lines: int = 12
) -> None:
    """The end of the console of each machine that failed: why, as far as it knew."""
    for lease in leases:
        if lease["failure"] and lease["machine"]:
            display.say(f"the console of {lease['machine']}, which failed:")
            for line in story.cloud.console(lease["machine"]).splitlines()[-lines:]:
                display.say(f"  {line}")


class _phase:  # noqa: N801 - reads as a statement
    """Times a block into story.phases."""

    def __init__(self, story: Story, name: str) -> None:
        self._story, self._name = story, name

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._story.phases[self._name] = time.monotonic() - self._began


def _watch(story: Story, display: Display, ids: Sequence[str], timeout: float) -> None:
    """Show the story until all jobs have ended."""
    began = time.monotonic()
    looks = itertools.count()
    gre = 0

    def look() -> bool:
        nonlocal gre
        if next(looks) % 4 == 0:  # asking the router costs a process
            gre = story.traffic()["gre"].packets
        ended = story.finished()
        queued = {job["id"]: job for job in story.api("/v1/jobs") or ()}
        jobs: dict[str, tuple[str, str]] = {}
        for job in ids:
            if job in ended:
                jobs[job] = ("done", ended[job].nodes)
            elif job in queued:
                jobs[job] = (queued[job]["state"], next(iter(queued[job]["nodes"]), ""))
            else:
                jobs[job] = ("pending", "")
        leases = story.leases()
        spent = sum((Decimal(str(lease["cost"])) for lease in leases), Decimal(0))
        display.show(
            Scene(
                title="burst" if leases else "queue",
                seconds=time.monotonic() - began,
                jobs=jobs,
                leases=leases,
                gre_packets=gre,
                money=f"{spent:.4f} USD",
                local=LOCAL,
            )
        )
        return all(job in ended for job in ids)

    story.head.wait_for(look, timeout, what="the end of all jobs", interval=LOOK_EVERY)


def _rows(
    story: Story, ids: Sequence[str], right: dict[int, int], ended: dict[str, FinishedJob]
) -> list[report.JobRow]:
    rows = []
    for job in ids:
        record, task = ended[job], story.tasks[job]
        ok, problem = work.judge(task, story.result(job), right[task.index])
        if ok and (runs := story.runs(job)) != 1:
            ok, problem = False, f"it ran {runs} times"
        rows.append(
            report.JobRow(
                id=job,
                submitted=record.submitted,
                started=record.started,
                ended=record.ended,
                node=record.nodes,
                where="local" if worker_of(record.nodes) else "remote",
                state=record.state,
                result_ok=ok,
                problem=problem,
            )
        )
    return rows


def _makespan(rows: Sequence[report.JobRow]) -> float:
    ends = [row.ended for row in rows if row.ended]
    return (max(ends) - min(row.submitted for row in rows)).total_seconds()


def _lease_row(lease: dict[str, Any]) -> report.LeaseRow:
    def moment(name: str) -> datetime | None:
        text = lease.get(name)
        return datetime.fromisoformat(text) if text else None

    failure = lease.get("failure")
    return report.LeaseRow(
        id=lease["id"],
        provider=lease["provider"],
        machine=lease["machine"],
        node=lease["node"],
        state=lease["state"],
        requested=moment("requested"),
        booted=moment("booted"),
        tunnelled=moment("tunnelled"),
        joined=moment("joined"),
        left=moment("left"),
        terminated=moment("ended"),
        cost=Decimal(str(lease["cost"])),
        failure=failure["message"] if isinstance(failure, dict) else (failure or ""),
    )


def _write(options: argparse.Namespace, done: report.Report) -> None:
    if options.report:
        options.report.write_text(done.to_json())
        sys.stdout.write(f"report     {options.report}\n")
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        machines = [(lease.machine, lease.node) for lease in done.leases if lease.machine]
        (options.plots / "timeline.svg").write_text(pictures.timeline(done))
        (options.plots / "topology.svg").write_text(site.picture(machines))
        sys.stdout.write(f"pictures   {options.plots}/timeline.svg, topology.svg\n")


if __name__ == "__main__":
    sys.exit(main())
