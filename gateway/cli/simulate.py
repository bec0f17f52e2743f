"""`dvn burst simulate`: what a policy would have cost and saved on a recorded queue."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.output import Format, Output, as_json, fail, line, table

if TYPE_CHECKING:
    from burst.simulate.metrics import Outcome
    from burst.simulate.model import ProviderModel
    from burst.simulate.swf import Trace

_COMPARED = ("never", "one-per-job", "utilisation", "ours")


def simulate(
    trace: Annotated[
        Path,
        typer.Argument(metavar="TRACE", help="A queue in SWF, `.gz` or not.", show_default=False),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="NAME[,NUMBER=VALUE...]",
            help="ours, never, one-per-job, utilisation or cobald-linear, with its numbers "
            "(`ours,min_value=1,cap=20`). May be repeated; a comparison unless given.",
        ),
    ] = None,
    providers: Annotated[
        Path | None,
        typer.Option(
            "--providers",
            metavar="FILE",
            help="Providers as YAML; a per-second cloud unless given.",
        ),
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Local cores; as in the trace unless given.")
    ] = None,
    load: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Make the jobs arrive so fast that they would fill this share of the local cores.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="So many jobs: the first of the trace, or it is repeated."),
    ] = None,
    limits: Annotated[
        float,
        typer.Option(
            min=1.0, help="Jobs without a time limit get one of up to so many times what they take."
        ),
    ] = 5.0,
    interval: Annotated[
        float, typer.Option(min=1.0, help="Seconds between two looks of a policy, at least.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(help="Of boot times, failures and made-up limits.")] = 1,
    bound: Annotated[
        bool,
        typer.Option("--bound", help="Say what a clairvoyant could do for each cost; needs numpy."),
    ] = False,
    plots: Annotated[
        Path | None, typer.Option("--plots", metavar="DIR", help="Draw demand and supply there.")
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Try policies on a recorded queue, in virtual time.

    `ours` is the decision the daemon makes, with the same code. Times are in seconds, money in the
    currency of the prices.
    """
    from burst.simulate.baselines import PolicyMissing
    from burst.simulate.bound import BoundMissing
    from burst.simulate.catalogue import UnknownPolicy, policy_named
    from burst.simulate.engine import Run
    from burst.simulate.model import ON_DEMAND, ModelError, read_providers
    from burst.simulate.plot import PlotMissing, draw
    from burst.simulate.swf import TraceError, at_load, read, repeated, with_limits

    try:
        queue = read(trace, cores)
        if jobs is not None:
            queue = repeated(queue, jobs)
        if load is not None:
            queue = at_load(queue, load)
        queue = with_limits(queue, seed, limits)
        lending = read_providers(providers) if providers else {"cloud": ON_DEMAND}
        base = _base(lending)
        runs = [
            Run(queue, policy_named(name, base), lending, interval=interval, seed=seed, cores=cores)
            for name in policy or _COMPARED
        ]
        outcomes = [run.outcome() for run in runs]
        if plots:
            draw(runs, plots)
        bounds = [_bound(queue, outcome.cost, lending) if bound else None for outcome in outcomes]
    except (
        TraceError,
        ModelError,
        UnknownPolicy,
        PolicyMissing,
        BoundMissing,
        PlotMissing,
    ) as error:
        raise fail(str(error), output) from None
    _show(queue, outcomes, bounds, output)


def register(app: typer.Typer) -> None:
    app.command()(simulate)


def _base(lending: dict[str, ProviderModel]) -> Any:
    """The default policy, with the start cost that a site is told to measure."""
    from burst.model import Policy

    boots = [sum(model.boot_s) / 2 for model in lending.values()]
    return Policy(expected_start_cost=timedelta(seconds=max(boots)))


def _bound(queue: Trace, cost: float, lending: dict[str, ProviderModel]) -> float:
    from burst.simulate.bound import lower_bound

    kinds = [kind for model in lending.values() for kind in model.machines.values()]
    core_hour = min(float(kind.price) / kind.cores for kind in kinds)
    return lower_bound(queue, cost, core_hour)


def _show(
    queue: Trace, outcomes: list[Outcome], bounds: list[float | None], output: Format
) -> None:
    rows = [
        outcome.row() | ({"bound_bsld": bound} if bound is not None else {})
        for outcome, bound in zip(outcomes, bounds, strict=True)
    ]
    if output is Format.JSON:
        about = {"trace": queue.name, "cores": queue.cores, "load": queue.load}
        as_json({**about, "jobs": len(queue.jobs), "outcomes": rows})
        return
    line(f"{queue.name}: {len(queue.jobs)} jobs, {queue.cores} local cores, load {queue.load:.2f}")
    columns = ["policy", "slowdown", "mean wait", "95% wait", "cost", "machines", "machine-hours"]
    columns += ["moved", "short of", "too many", *(["bound"] if any(bounds) else [])]
    table(
        "Policies",
        columns,
        [
            (
                outcome.policy,
                f"{outcome.bsld:.2f}",
                f"{outcome.mean_wait:.0f}",
                f"{outcome.p95_wait:.0f}",
                f"{outcome.cost:.2f}",
                outcome.machines,
                f"{outcome.machine_hours:.1f}",
                outcome.borrowed_jobs,
                f"{outcome.elasticity.time_under:.0%}",
                f"{outcome.elasticity.time_over:.0%}",
                *([f"{bound:.2f}"] if bound is not None else []),
            )
            for outcome, bound in zip(outcomes, bounds, strict=True)
        ],
    )
