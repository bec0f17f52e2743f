"""What an engine asks of a kernel: look, read sysctls, list tables, do one step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from dvn.kernel.state import KernelState, NftTable, Sysctl, View
from dvn.kernel.steps import Step, Writes


class KernelError(RuntimeError):
    """The kernel, or nft, refused something; the text says what and why."""


class StepError(KernelError):
    """A step of several was refused."""

    def __init__(self, message: str, step: Step) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True)
class LinkCounters:
    """A link of ours and what passed through it."""

    name: str
    alias: str
    up: bool
    local: str
    remote: str
    key: int
    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True)
class RuleCounter:
    """What a rule of ours has dropped."""

    table: str
    chain: str
    comment: str
    packets: int
    bytes: int


class Kernel(Protocol):
    def exclusive(self) -> AbstractContextManager[None]:
        """While it is held nobody else who asks for it changes this kernel. Raises KernelError if
        another holds it for too long."""

    def look(self, site: str) -> View:
        """The host, and what is there of `site` (sysctls apart). Raises KernelError."""

    def rely(self) -> None:
        """What the last look saw is what `undisturbed` is about from now on. Later looks, such as
        for somebody who only asks, are not."""

    def undisturbed(self) -> bool:
        """Whether nobody but this object has changed what is relied on, as far as the kernel
        announces changes (sysctls it does not). False also where it cannot be told."""

    def glance(self, names: Collection[str]) -> KernelState:
        """Some links as they are now: of ours with their addresses, of others whose port they are.
        What it reads counts as seen from then on."""

    def sites(self) -> tuple[str, ...]:
        """Names of the sites that have objects here."""

    def sysctls(self, keys: Iterable[str]) -> tuple[Sysctl, ...]:
        """The values of the keys that exist."""

    def listings(self, tables: Iterable[NftTable]) -> tuple[NftTable, ...]:
        """The same tables, each with nft's own text of it, so that it can be put back."""

    def perform(self, step: Step) -> Writes:
        """Do one step, all of it or nothing, and count the writes. Raises KernelError."""

    def carry_out(self, steps: Sequence[Step]) -> Writes:
        """Do the steps in order, many at a time where the kernel takes them so.

        Raises StepError for the first that was refused; some of those behind it may have been
        done all the same."""

    def tunnels(self) -> tuple[LinkCounters, ...]:
        """Our tunnels of all sites, with their counters."""

    def passed(self) -> Mapping[str, tuple[int, int, int, int]]:
        """Of each link: packets received and sent, bytes received and sent."""

    def dropped(self, tables: Iterable[NftTable]) -> tuple[RuleCounter, ...]:
        """Of each rule of these tables that counts what it drops."""
