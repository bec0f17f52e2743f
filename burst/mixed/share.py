"""What mixed mode needs of a batch system, beside `burst.lrms.base.Lrms`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from burst.mixed.ledger import Cores


class Share(Protocol):
    """One host's node in the batch system. Every method may raise an `LrmsError`."""

    def cores(self) -> Cores:
        """How the node's cores are used now."""

    def held(self) -> Mapping[str, int]:
        """Cores by lease id of all holds of ours on this node."""

    def hold(self, lease_id: str, cores: int) -> None:
        """Keep cores from jobs, for this lease: all of them at once, or none.

        A hold of this lease that is there already is no error. `NoCapacity` when that many are
        not free of jobs.
        """

    def release(self, lease_id: str) -> None:
        """Give the cores back to jobs; a hold that is not there is no error."""
