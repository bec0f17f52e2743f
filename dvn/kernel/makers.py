"""Which driver makes which thing."""

from __future__ import annotations

from collections.abc import Sequence

from dvn.kernel.batch import words
from dvn.kernel.driver import StepError
from dvn.kernel.fou import FouDriver
from dvn.kernel.ipsec import IpsecDriver
from dvn.kernel.steps import DelThing, PutThing, Writes
from dvn.kernel.things import GroupDriver, PackedDriver, Thing, ThingDriver
from dvn.kernel.wireguard import WireguardDriver
from dvn.nat.driver import RoutingDriver
from dvn.rates.driver import RatesDriver
from dvn.services.driver import ServicesDriver

PACKED: tuple[PackedDriver, ...] = (RatesDriver(), RoutingDriver())
GROUPED: tuple[GroupDriver, ...] = (ServicesDriver(),)
DRIVERS: tuple[ThingDriver, ...] = (WireguardDriver(), FouDriver(), IpsecDriver())


def grouped(thing: Thing) -> GroupDriver | None:
    return next((driver for driver in GROUPED if thing.kind in driver.kinds), None)


def packed(thing: Thing) -> PackedDriver | None:
    return next((driver for driver in PACKED if thing.kind in driver.kinds), None)


def driver_of(thing: Thing) -> ThingDriver:
    return next(driver for driver in DRIVERS if thing.kind in driver.kinds)


def change_many(steps: Sequence[PutThing | DelThing]) -> Writes:
    """Steps that follow each other, of drivers that do many at once."""
    writes = 0
    for driver in GROUPED:
        mine = [step for step in steps if step.thing.kind in driver.kinds]
        put = [step.thing for step in mine if isinstance(step, PutThing)]
        gone = [step.thing for step in mine if isinstance(step, DelThing)]
        try:
            writes += driver.change(put, gone) if mine else 0
        except OSError as error:
            raise StepError(words(error), mine[0]) from error
    return Writes(netlink=writes)
