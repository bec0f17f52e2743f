"""The API as FastAPI sees it. Imported by the API's thread only: this takes seconds when cold."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse

from gateway.api import models as m
from gateway.api.times import Refused
from gateway.api.view import NotFound, View
from gateway.version import version

Reason = Annotated[str, Query(min_length=1, max_length=200)]
OPERATOR = "an operator asked"


def make_app(view: View) -> FastAPI:
    """Every path is below /v1; what is not found is 404 with a sentence for people."""
    app = FastAPI(title="dvn gateway", version=version(), docs_url=None, redoc_url=None)

    @app.exception_handler(NotFound)
    async def not_found(_request: Request, error: NotFound) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=404)

    @app.exception_handler(Refused)
    async def refused(_request: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.get("/v1/status")
    def status() -> m.Status:
        return view.status()

    @app.get("/v1/leases")
    def leases(ended: bool = False) -> tuple[m.Lease, ...]:
        return view.leases(ended=ended)

    @app.get("/v1/jobs")
    def jobs() -> tuple[m.Job, ...]:
        return view.jobs()

    @app.get("/v1/pools")
    def pools() -> tuple[m.Pool, ...]:
        return view.pools()

    @app.get("/v1/budgets")
    def budgets() -> tuple[m.Budget, ...]:
        return view.budgets()

    @app.get("/v1/hosts")
    def hosts() -> tuple[m.Host, ...]:
        return view.hosts()

    @app.post("/v1/hosts/{name}/invite")
    def invite(name: str) -> m.Invitation:
        return view.invite(name)

    @app.get("/v1/events")
    def events(
        lease: str | None = None,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> tuple[m.Event, ...]:
        return view.events(lease=lease, after=after, limit=limit)

    @app.get("/v1/plan")
    def plan() -> m.PlanNow:
        return view.plan()

    @app.get("/v1/explain/{kind}/{name}")
    def explain(kind: str, name: str) -> m.Explanation:
        return view.explain(kind, name)

    @app.post("/v1/leases/{name}/drain")
    def drain(name: str, reason: Reason = OPERATOR) -> m.Drained:
        return view.drain(name, reason)

    @app.post("/v1/drain")
    def drain_all(reason: Reason = OPERATOR) -> m.Drained:
        return view.drain_all(reason)

    @app.post("/v1/resume")
    def resume() -> m.Drained:
        return view.resume()

    @app.get("/v1/mixed/{name}")
    def mixed(name: str) -> m.Mixed:
        return view.mixed(name, None)

    @app.post("/v1/mixed/{name}")
    def turn_mixed(name: str, on: bool) -> m.Mixed:
        return view.mixed(name, on)

    @app.get("/v1/cost")
    def cost(
        by: str = "tenant", since: str = "", before: str = "", tenant: str = ""
    ) -> m.CostReport:
        return view.bills.cost(by, since, before, tenant)

    @app.get("/v1/usage")
    def usage(since: str = "", before: str = "", tenant: str = "") -> tuple[m.UsageRow, ...]:
        return view.bills.usage(since, before, tenant)

    @app.get("/v1/usage/{form}")
    def usage_text(form: str, since: str = "", before: str = "", tenant: str = "") -> m.UsageText:
        return view.bills.usage_text(form, since, before, tenant)

    @app.get("/v1/history")
    def history(
        since: str = "",
        tenant: str = "",
        limit: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    ) -> tuple[m.Past, ...]:
        return view.bills.history(since, tenant, limit)

    @app.get("/v1/flashes")
    def flashes(ended: bool = False) -> tuple[m.Flash, ...]:
        return view.flashes.every(ended=ended)

    @app.get("/v1/flashes/{name}")
    def flash(name: str) -> m.Flash:
        return view.flashes.one(name)

    @app.post("/v1/flashes")
    def ask_flash(
        tenant: str,
        cores: Annotated[int, Query(ge=1, le=1_000_000)],
        length: str,
        provider: str = "",
        max_cost: str = "",
        commit: bool = False,
    ) -> m.FlashAsked:
        return view.flashes.ask(
            tenant=tenant,
            cores=cores,
            length=length,
            provider=provider,
            max_cost=max_cost,
            commit=commit,
        )

    @app.post("/v1/flashes/{name}/cancel")
    def cancel_flash(name: str) -> m.Flash:
        return view.flashes.cancel(name)

    return app
