"""Kernels that fail once: at one of the calls an engine makes, before it has an effect or after."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dvn.engine import ApplyError, Engine
from dvn.kernel import netlink as nl
from dvn.kernel.driver import KernelError, StepError
from dvn.kernel.fake import FakeKernel
from dvn.kernel.nft import Nft
from dvn.kernel.nftcommands import NftCommand
from dvn.kernel.state import NftTable
from dvn.kernel.steps import Step, Writes
from dvn.spec import Site

MOST_PASSES = 3


@dataclass(frozen=True)
class Kind:
    """`effect`: what was asked for was done all the same, as when only the answer is lost."""

    name: str
    errno: int
    effect: bool


KINDS = (
    Kind("dump interrupted", errno.EINTR, False),
    Kind("answers lost", errno.ENOBUFS, True),
    Kind("exists", errno.EEXIST, False),
    Kind("no device", errno.ENODEV, False),
    Kind("no answer, not done", errno.ETIMEDOUT, False),
    Kind("no answer, done", errno.ETIMEDOUT, True),
    Kind("not permitted", errno.EPERM, False),
)


class Fault:
    """Counts calls, and fails the one numbered `at` (from 0), once."""

    def __init__(self, at: int | None, kind: Kind) -> None:
        self.at, self.kind = at, kind
        self.calls = 0
        self.consumed = False

    def call(self, what: str, act: Callable[[], Any], refusal: Callable[[str], Exception]) -> Any:
        number = self.calls
        self.calls += 1
        if number != self.at:
            return act()
        self.consumed = True
        if self.kind.effect:
            act()
        raise refusal(f"{what}: {self.kind.name} ({os.strerror(self.kind.errno)})")


class FaultyFake:
    """A fake kernel whose every call may fail; a plan is carried out step by step.

    `behind`: where a step fails, those behind it in the same datagram are done all the same, as
    the kernel does.
    """

    def __init__(self, inner: FakeKernel, fault: Fault, *, behind: bool = False) -> None:
        self._inner, self._fault, self._behind = inner, fault, behind

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name.startswith("_") or not callable(method) or name in ("undisturbed", "rely"):
            return method
        return lambda *args, **more: self._fault.call(
            name, lambda: method(*args, **more), KernelError
        )

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        writes = Writes()
        for number, step in enumerate(steps):
            try:
                act = partial(self._inner.perform, step)
                writes += self._fault.call(str(step), act, KernelError)
            except KernelError as error:
                if self._behind:
                    for later in steps[number + 1 :]:
                        try:
                            self._inner.perform(later)
                        except KernelError:
                            continue  # it needed the one that failed
                raise StepError(str(error), step) from error
        return writes


class FaultySocket(nl.Socket):
    """A route netlink socket of which one request, question or dump fails."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def send_steps(self, steps: Iterable[Sequence[nl.Request]]) -> None:
        for number, requests in enumerate(list(steps)):
            refusal = partial(self._refusal, number=number)
            self.fault.call("send", partial(super().send_steps, [requests]), refusal)

    def dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        act = partial(super().dump, kind, body, what)
        found: list[bytes] = self.fault.call(what, act, self._refusal)
        return found

    def ask_each(self, kind: int, bodies: Sequence[bytes], what: str) -> list[bytes | None]:
        act = partial(super().ask_each, kind, bodies, what)
        found: list[bytes | None] = self.fault.call(what, act, self._refusal)
        return found

    def _refusal(self, text: str, number: int = 0) -> nl.NetlinkError:
        error = nl.NetlinkError(self.fault.kind.errno, text)
        error.step = number
        return error


class FaultyNft(Nft):
    """nftables of which one transaction, or one reading, fails."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def run(self, commands: Sequence[NftCommand]) -> int:
        found: int = self.fault.call("nft", partial(super().run, commands), KernelError)
        return found

    def table_names(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = self.fault.call(
            "list tables", super().table_names, partial(OSError, self.fault.kind.errno)
        )
        return found

    def table(self, family: str, name: str) -> NftTable | None:
        act = partial(super().table, family, name)
        found: NftTable | None = self.fault.call(f"list {name}", act, KernelError)
        return found

    def generation(self) -> int:
        refusal = partial(OSError, self.fault.kind.errno)
        found: int = self.fault.call("generation", super().generation, refusal)
        return found

    def listing(self, family: str, name: str) -> str:
        act = partial(super().listing, family, name)
        found: str = self.fault.call("listing", act, KernelError)
        return found


def passes_until(engine: Engine, site: Site) -> int:
    """How often `site` has to be applied until it is. AssertionError beyond MOST_PASSES."""
    said = []
    for number in range(1, MOST_PASSES + 1):
        try:
            engine.apply(site)
        except (ApplyError, KernelError) as error:
            said.append(str(error))
        else:
            return number
    raise AssertionError(f"not after {MOST_PASSES} passes: {said}")


def points(calls: int, stride: int) -> Iterator[int]:
    """The numbers of the calls to fail: every `stride`-th, and the last."""
    yield from range(0, calls, stride)
    if (calls - 1) % stride:
        yield calls - 1
