"""Writing: steps, many of them in one message."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from dvn.kernel import conntrack, fou, makers, procsys, rtnl
from dvn.kernel import netlink as nl
from dvn.kernel.batch import Batch, words
from dvn.kernel.driver import KernelError, StepError
from dvn.kernel.nftcommands import AddTable, DelTable, FlushChain, LoadTable
from dvn.kernel.opened import Opened
from dvn.kernel.state import Gretap, Link
from dvn.kernel.steps import (
    AddAddress,
    AddLink,
    CutConnections,
    DelAddress,
    DelLink,
    DelThing,
    Enslave,
    NftChange,
    PutThing,
    RaiseLink,
    SetLink,
    SetSysctl,
    Step,
    Writes,
)
from dvn.kernel.things import IndexOf

_MANY = 500  # steps of a plan that is worth a thread


class Writing(Opened):
    """What is written."""

    def perform(self, step: Step) -> Writes:
        return self.carry_out([step])

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        with Batch(self._socket) as batch:
            writes = self._carry_out(steps, batch)
            return writes + batch.writes

    def _carry_out(self, steps: Sequence[Step], batch: Batch) -> Writes:
        writes = Writes()
        group: list[PutThing | DelThing] = []
        beside: Future[Writes] | None = None
        for step in steps:
            # Links are made down: while they are, thousands of elements may still be on their way
            # into the filters. Everything else waits for those.
            if beside and not isinstance(step, AddLink):
                writes += beside.result()
                beside = None
            if isinstance(step, PutThing | DelThing) and makers.grouped(step.thing):
                batch.send()
                group.append(step)
                continue
            if group:
                writes += makers.change_many(group)
                group = []
            if isinstance(step, NftChange) and len(steps) > _MANY:
                batch.send()
                beside = batch.beside(partial(self._by_itself, step))
            else:
                writes += self._put_to(batch, step)
        if beside:
            writes += beside.result()
        batch.send()
        return writes + makers.change_many(group)

    def _put_to(self, batch: Batch, step: Step) -> Writes:
        """A step is collected to be sent, or done; what was written if it was."""
        if isinstance(step, DelLink):
            batch.add_removal(step)
            return Writes()
        if isinstance(step, SetSysctl) and batch.add_sysctl(step):
            return Writes()
        try:
            requests = self._requests(step, batch.index_of)
        except OSError as error:
            raise StepError(words(error), step) from error
        if requests is not None:
            batch.add(step, requests)
            return Writes()
        batch.send_before(step)
        return self._by_itself(step)

    def _by_itself(self, step: Step) -> Writes:
        """A step that is not route netlink messages. Raises StepError."""
        try:
            return self._perform(step)
        except OSError as error:
            raise StepError(words(error), step) from error
        except KernelError as error:
            raise StepError(str(error), step) from error

    def _perform(self, step: Step) -> Writes:
        match step:
            case NftChange():
                transactions = self._nft.run(step.commands)
                self._evidence.wrote(transactions, self._nft.generation())
                self._forget(step)
                return Writes(nft=len(step.commands))
            case SetSysctl(key, value):
                procsys.write(f"/proc/sys/{key}", value)
                return Writes(sysctl=1)
            case CutConnections(flows):
                return Writes(netlink=conntrack.flush(self._conntrack, flows))
            case PutThing(thing, before):
                return Writes(netlink=makers.driver_of(thing).put(self._socket, thing, before))
            case DelThing(thing):
                return Writes(netlink=makers.driver_of(thing).remove(self._socket, thing))
            case _:
                raise TypeError(f"no way to do {step!r}")

    def _forget(self, step: NftChange) -> None:
        """What was just written is the truth: compare later looks with the next one."""
        for command in step.commands:
            match command:
                case FlushChain(table, chain, _why):
                    self._nft.forget(*table, chain)
                case DelTable(table) | AddTable(table):
                    self._nft.forget(*table)
                case LoadTable(listed):
                    self._nft.forget(listed.family, listed.name)

    def _requests(self, step: Step, index_of: IndexOf) -> list[nl.Request] | None:
        """The route netlink messages of a step; None if it is done by other means."""
        match step:
            case AddLink(link) | SetLink(link, _) if _in_udp(link):
                fou.load(six=link.params.kind.startswith("ip6"))
        match step:
            case AddLink(link):
                return rtnl.create(link, index_of)
            case SetLink(link, changes):
                return rtnl.change(link, changes, index_of)
            case RaiseLink(name):
                return [rtnl.up(name)]
            case Enslave(name, master):
                return [rtnl.enslave(name, index_of(master) if master else 0)]
            case AddAddress(link_name, address):
                return [rtnl.add_address(index_of(link_name), address)]
            case PutThing(thing, before):
                packed = makers.packed(thing)
                return packed.requests(thing, before, index_of) if packed else None
            case DelAddress() | DelThing():
                return self._removal(step, index_of)
            case _:
                return None

    def _removal(self, step: DelAddress | DelThing, index_of: IndexOf) -> list[nl.Request] | None:
        try:
            match step:
                case DelAddress(link_name, address):
                    return [rtnl.del_address(index_of(link_name), address)]
                case DelThing(thing):
                    packed = makers.packed(thing)
                    return packed.removal(thing, index_of) if packed else None
        except nl.NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            return []  # it went with its link


def _in_udp(link: Link) -> bool:
    return isinstance(link.params, Gretap) and link.params.fou is not None
