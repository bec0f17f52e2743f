"""What a batch system must offer to be burst from: the whole surface of a new adapter."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from burst.model import Farm, Node


class LrmsError(Exception):
    """The batch system did what was asked for wrongly, or refused it. The message is for people."""


class LrmsUnavailable(LrmsError):  # noqa: N818 - a state of the world, and said so in the field
    """The batch system did not answer in time; nothing is known; ask again later."""


class Lrms(Protocol):
    """Every method may raise `LrmsUnavailable` or `LrmsError`, is safe to repeat, and returns only
    after the batch system confirmed."""

    def snapshot(self) -> Farm:
        """All pending, running and just ended jobs and all nodes, as one consistent reading."""

    def admit(self, node: Node) -> None:
        """Let a node that has registered itself take jobs (undrain it, if it is ours)."""

    def route(self, job_id: str, partition: str) -> None:
        """Make a pending job eligible for `partition` *beside* where it already may start."""

    def unroute(self, job_id: str, partition: str) -> None:
        """Take `partition` from a pending job again; its other partitions stay."""

    def drain(self, node: str, reason: str) -> None:
        """Let the node take no new job; running jobs go on."""

    def remove(self, node: str) -> None:
        """Forget the node. Refused (`LrmsError`) while a job is on it; no error if unknown."""


@runtime_checkable
class Requeues(Protocol):
    """A batch system that takes a running job back into its queue."""

    def requeue(self, job_id: str) -> None:
        """Stop the job and queue it again under the same id; no error if it does not run."""


@runtime_checkable
class Announces(Protocol):
    """A batch system where a node must be declared before its daemon starts there (Grid Engine,
    PBS, Torque). Slurm, HTCondor and LSF learn of a node when it registers."""

    def announce(self, node: str, *, address: str, cores: int, partition: str) -> None:
        """Declare the node; no error if it is declared already. `remove` takes it back."""
