"""What runs in a borrowed machine: boot, enrolment, tunnel, slurmd, heartbeat and watchdog.

The steps and patience of burst/join/join.sh, against the gateway's real enrolment. User data is
the product's own script; a guest reads its settings and does what the script would do.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from lab.simulated.ec2 import Instance
from lab.simulated.site import HEARTBEAT, SLURMD_TIMEOUT, WATCHDOG

if TYPE_CHECKING:
    from lab.simulated.world import World

_AGAIN = timedelta(seconds=5)
_REACH = timedelta(seconds=90)  # how long the tunnel may take after enrolment


@dataclass(slots=True)
class Flaws:
    """What is wrong with one machine, drawn when it is started."""

    boots: bool
    tunnel: bool
    join: bool
    clock: bool
    hangs: datetime | None
    dies: datetime | None
    cut_off: datetime | None
    taken_back: datetime | None
    partition: tuple[datetime, datetime] | None
    rejoins: bool


def draw(world: World) -> Flaws:
    now, rng, faults = world.now, world.rng, world.faults

    def later(rate: float, least: float = 10, most: float = 900) -> datetime | None:
        return now + timedelta(seconds=rng.uniform(least, most)) if world.chance(rate) else None

    gone = later(faults.partition)
    return Flaws(
        boots=not world.chance(faults.no_boot),
        tunnel=not world.chance(faults.no_tunnel),
        join=not world.chance(faults.no_join),
        clock=not world.chance(faults.wrong_clock),
        hangs=later(faults.hangs),
        dies=later(faults.dies),
        cut_off=later(faults.cut_off),
        taken_back=later(faults.interrupted),
        partition=(gone, gone + timedelta(seconds=rng.uniform(5, 180))) if gone else None,
        rejoins=world.chance(faults.rejoins),
    )


@dataclass(slots=True)
class Guest:
    """One machine from inside."""

    world: World
    instance: Instance
    flaws: Flaws
    settings: dict[str, str] = field(default_factory=dict)
    step: str = "off"  # off, booting, enrolling, reaching, starting, joined, failed, ended
    due: datetime | None = None
    heard: datetime | None = None
    enrolled: datetime | None = None
    beat: datetime | None = None
    session: str = ""
    slurmd: bool = False
    told: bool = False  # of its interruption

    @property
    def node(self) -> str:
        return self.settings.get("NODE", "")

    def alive(self) -> bool:
        now = self.world.now
        if self.step in ("off", "ended") or not self.instance.living(now):
            return False
        return not (self.flaws.hangs is not None and now >= self.flaws.hangs)

    def reaches_gateway(self) -> bool:
        """By the internet, beside the tunnel."""
        cut = self.flaws.cut_off is not None and self.world.now >= self.flaws.cut_off
        return self.alive() and not cut

    def tunnel_works(self) -> bool:
        """Its side of it, and the path between."""
        if not self.reaches_gateway() or not self.flaws.tunnel or self.enrolled is None:
            return False
        away = self.flaws.partition
        return away is None or not away[0] <= self.world.now < away[1]

    def live(self, now: datetime) -> None:
        if not self.instance.living(now):
            if self.step != "ended":
                self.step, self.slurmd = "ended", False
            return
        if self.flaws.dies is not None and now >= self.flaws.dies:
            self.world.ec2.end(self.instance, "Server.InternalError")
            return
        if self.flaws.taken_back is not None and now >= self.flaws.taken_back:
            self.flaws.taken_back = None
            if not self.world.calm:
                self.world.ec2.interrupt(self.instance)
        if self.step == "off":
            if self.flaws.boots and self.instance.state(now) == "running":
                self._go("booting", 5)
            return
        if not self.alive():
            return
        self._watch(now)
        if self.alive() and self.due is not None and now >= self.due:
            self._next(now)

    def _go(self, step: str, seconds: float) -> None:
        self.step = step
        self.due = self.world.now + timedelta(seconds=seconds)

    def _next(self, now: datetime) -> None:
        match self.step:
            case "booting":
                self.settings = settings_of(self.instance.user_data)
                self.heard = now
                self._go("claiming" if self.settings["BATCH"] else "enrolling", 3)
            case "claiming":
                self._claim()
            case "enrolling":
                self._enrol(now)
            case "reaching":
                self._reach(now)
            case "starting":
                self._start()
            case _:
                self.due = None

    def _claim(self) -> None:
        asked = self._proof() | {"token": self.settings["BATCH"], "index": self.instance.index}
        answer = self._ask("POST", "/claim", asked)
        if answer is None or answer[0] == 503:
            self._go("claiming", _AGAIN.total_seconds())
        elif answer[0] == 200:
            said = {name.upper(): str(value) for name, value in answer[1].items()}
            self.settings |= said
            self._go("enrolling", 1)
        else:
            self._power_off(f"the gateway refuses: {answer[1]}")

    def _enrol(self, now: datetime) -> None:
        answer = self._ask("POST", "/enrol", self._proof())
        if answer is None or answer[0] == 503:
            self._go("enrolling", _AGAIN.total_seconds())
        elif answer[0] == 200:
            self.enrolled, self.session = now, answer[1]["session"]
            self.world.tell(f"{self.instance.id}: enrolled as {self.node}")
            if not self.flaws.clock:
                self._fail("clock", "the clock is +400 s off the gateway's")
            else:
                self._go("reaching", 2)
        else:
            self._power_off(f"the gateway refuses: {answer[1]}")

    def _reach(self, now: datetime) -> None:
        if self.world.network.passes(self):
            self._go("starting", self.world.rng.uniform(5, 15))
        elif self.enrolled is not None and now - self.enrolled > _REACH:
            self._fail("reach", "slurmctld does not answer through the tunnel")
        else:
            self._go("reaching", 2)

    def _start(self) -> None:
        if not self.flaws.join:
            self._fail("munged", "munged: status 1")
            return
        self.slurmd = True
        self.register()
        self._ask("POST", "/report", {"stage": "joined", "ok": True, "detail": self.node})
        self._go("joined", 0)

    def register(self) -> None:
        """What slurmd does when it starts, and when slurmctld does not know it any more."""
        if self.world.network.passes(self):
            self.world.register(self)

    def _fail(self, stage: str, detail: str) -> None:
        self.world.tell(f"{self.instance.id}: failed at {stage}")
        self._ask("POST", "/report", {"stage": stage, "ok": False, "detail": detail})
        self._go("failed", 0)

    def _watch(self, now: datetime) -> None:
        if self.heard is None:
            return
        if self.instance.taken_back is not None and not self.told and self.session:
            said = {"ends": self.instance.taken_back.isoformat()}
            answer = self._ask("POST", "/notice", said)
            self.told = answer is not None and answer[0] == 204
        if self.beat is None or now >= self.beat:
            self.beat = now + HEARTBEAT
            answer = self._ask("GET", "/alive", {}) if self.session else None
            if answer is not None and answer[0] == 200:
                self.heard = now
            elif answer is not None and answer[0] == 410:
                self.world.told_to_end(self)
                self._power_off("the gateway says that this lease is over")
                return
        if now - self.heard > WATCHDOG:
            self._power_off("nothing heard from the gateway")

    def _power_off(self, why: str) -> None:
        self.world.tell(f"{self.instance.id}: powers off: {why}")
        self.step, self.slurmd = "ended", False
        self.world.ec2.shut_down(self.instance)

    def _proof(self) -> dict[str, Any]:
        return {"token": self.settings["TOKEN"], "nonce": f"{int(self.instance.id[2:], 16):032x}"}

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        """The gateway's answer; None: there is none."""
        if not self.reaches_gateway():
            return None
        return self.world.ask_gateway(method, path, self.session, body, self.instance.address)


def settings_of(script: str) -> dict[str, str]:
    """The NAME=value lines at the head of the join script."""
    settings = {}
    for line in script.splitlines()[2:]:
        name, equals, value = line.partition("=")
        if not equals:
            break
        settings[name] = "".join(shlex.split(value))
    return settings


REJOIN_WITHIN = SLURMD_TIMEOUT
