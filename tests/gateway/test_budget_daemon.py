"""A hard budget and a real daemon that is killed: machines at 0.30 a minute, a budget of 1.00.

A minute is the least that is charged, so every machine that was ever launched is 0.30 of the bill,
a lost and forgotten one, too: of a fourth there can be no talk. The bill is the world's own, the
books are read from the file, whether a daemon lives or not.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest

from gateway import sitefile
from gateway.sitefile import SiteFile
from gateway.store import Store
from tests.gateway.fake_daemon import write_site
from tests.gateway.test_daemon import Process, wait_for
from tests.gateway.world import World

LIMIT = Decimal("1.00")
PRICE = "18.00"  # an hour: 0.30 a minute
CENTS = Decimal("0.000001")  # the books are kept in millionths


def site_of(directory: Path, limit: Decimal) -> SiteFile:
    text = write_site(directory).path.read_text()
    text = text.replace("{limit: 5.00, period: day}", f"{{limit: {limit}, period: ever}}")
    text = text.replace("return_time: 5s", "return_time: 1s")
    text = text.replace("reserve_hours: 0.1", "reserve_hours: 0.0005")
    path = directory / "site.yaml"
    path.write_text(text)
    return sitefile.load(path)


class Auditor:
    """Looks all the time."""

    def __init__(self, world: World, site: SiteFile) -> None:
        self._world, self._url = world, site.gateway.state
        self.looks: list[tuple[Decimal, Decimal]] = []  # the bill; spent and reserved

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()

        def run() -> None:
            with Store.open(self._url) as store:
                while not stop.wait(0.05):
                    self.looks.append(self.look(store))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)

    def look(self, store: Store) -> tuple[Decimal, Decimal]:
        bill = self._world.bill()  # first: what is counted after it can only be more
        leases = store.all_leases()
        counted = sum((le.reserved if le.living else le.cost for le in leases), Decimal(0))
        return bill, counted


def spend(
    directory: Path, limit: Decimal, *, kills: int, until: Decimal, seed: int = 7
) -> tuple[World, Auditor, int]:
    """Kill the daemon again and again over a queue without end; how many kills met a launch.
    Ends a while after the bill has reached `until`."""
    world, site = World(directory / "world.json"), site_of(directory, limit)
    world.begin(local_nodes=1, jobs=400, seconds=0.5, limit=2, price=PRICE)
    Store.open(site.gateway.state).close()
    auditor, chance, met = Auditor(world, site), random.Random(seed), 0

    def launches() -> int:
        with world.state() as s:
            return int(s["launches"])

    def lose_answers(yes: bool) -> None:
        with world.state() as s:
            s["faults"]["lost_answer"] = yes

    with auditor.watching():
        for kill in range(kills):
            before = launches()
            lose_answers(kill % 2 == 0)
            daemon = Process(site, directory / "world.json", directory / "log")
            end = threading.Event()
            for _ in range(200):  # until a launch is under way, or ten seconds
                if end.wait(0.05) or launches() > before:
                    break
            met += launches() > before
            if kill % 2:
                end.wait(chance.uniform(0, 1))
            daemon.kill()
        lose_answers(False)
        daemon = Process(site, directory / "world.json", directory / "log")
        try:
            wait_for("machines", lambda: world.bill() >= until, 60)
            for _ in range(20):  # a daemon with a long queue and no money
                end.wait(0.1)
        finally:
            daemon.end()
    return world, auditor, met


@pytest.mark.long
@pytest.mark.timeout(240)
def test_a_killed_daemon_never_spends_more_than_its_budget(tmp_path: Path) -> None:
    world, auditor, met = spend(tmp_path, LIMIT, kills=5, until=Decimal("0.90"))
    assert max(counted for _, counted in auditor.looks) <= LIMIT
    assert all(bill <= counted + CENTS for bill, counted in auditor.looks)
    assert world.bill() <= LIMIT
    with world.state() as s:
        assert s["launches"] == 3, "three machines are 0.90; a fourth would have been too many"
    assert met >= 2, "the control: kills fell into launches"
    assert len(auditor.looks) > 50


@pytest.mark.long
@pytest.mark.timeout(240)
def test_without_the_budget_it_would_have_spent_more(tmp_path: Path) -> None:
    """The control: the same queue, the same kills, another limit."""
    world, _, _ = spend(tmp_path, Decimal("1.25"), kills=1, until=LIMIT)
    assert world.bill() > LIMIT
