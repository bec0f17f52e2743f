"""`dvn agent run`: a hypervisor's agent, put together.

The same engine, keeper and socket as the gateway host's agent (dvn/agent.py), and beside them who
follows the gateway. When it ends, however it ends, the kernel stays as it is: traffic goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dvn.agent import Agent, log_to_stderr, serve, stopped_by_signals
from dvn.change.changes import Changes
from dvn.change.files import state_directory
from dvn.change.memory import SwitchMemory
from dvn.engine import Engine
from dvn.hosts.config import AgentConfig
from dvn.hosts.follow import Follower
from dvn.hosts.gateway import HttpsGateway
from dvn.hosts.kept import KeptPart
from dvn.hosts.virtual import Libvirt, Machines
from dvn.protocol import problems_from_json
from dvn.spec import Site

log = logging.getLogger(__name__)

_FINISH_S = 15.0


class AgentRefusesError(RuntimeError):
    """The agent of this host could not do it; its words are for people."""


class OwnAgent:
    """The agent in this process, as who follows the gateway needs it."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def apply(self, part: Site) -> tuple[str, ...]:
        answer = self._ask({"op": "apply", "site": part.model_dump(mode="json")})
        return tuple(answer["applied"]["notes"])

    def destroy(self, site: str) -> None:
        self._ask({"op": "destroy", "site": site})

    def _ask(self, request: dict[str, object]) -> dict[str, dict[str, tuple[str, ...]]]:
        answer = self._agent.answer(json.dumps(request).encode())
        if answer.get("ok"):
            return answer
        if answer.get("kind") == "spec":
            raise problems_from_json(answer.get("problems"))
        raise AgentRefusesError(str(answer.get("error")))


def run(config: AgentConfig) -> None:
    """Until SIGTERM or SIGINT. Raises OSError if the socket cannot be made, NoLibvirtError,
    ChangeError if its directory is not ours."""
    log_to_stderr()
    stop, _stopper = stopped_by_signals()
    engine = Engine(lenient=True, memory=SwitchMemory())
    log.info("event=started host=%s gateway=%s", config.host, config.gateway)
    serve(
        Path(config.socket),
        engine,
        stop=stop,
        changes=Changes(engine, state_directory()),
        beside=lambda agent: following(config, agent),
    )


def following(config: AgentConfig, agent: Agent) -> AbstractContextManager[Follower]:
    """Who follows the gateway, with the machines of this host, while the context lasts."""
    libvirt = Libvirt(config.libvirt) if config.libvirt else None

    def machines() -> Machines | None:
        return libvirt.seen if libvirt else Machines()

    follower = Follower(
        host=config.host,
        gateway=HttpsGateway(config.gateway, config.pin, config.token),
        machines=machines,
        network=OwnAgent(agent),
        kept=KeptPart(Path(config.directory)),
        now=lambda: datetime.now(UTC),
        interval=config.interval,
    )

    @contextmanager
    def started() -> Iterator[Follower]:
        if libvirt:
            libvirt.start(follower.wake)
        follower.start()
        try:
            yield follower
        finally:
            if libvirt:
                libvirt.stop()
            follower.stop(_FINISH_S)

    return started()
