"""A token store in memory, with the rules of `TokenStore` and nothing else."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime

from burst.model import Lease, LeaseState
from gateway.enrolment import Refused


@dataclass
class Tokens:
    states: dict[str, LeaseState] = field(default_factory=dict)  # by lease id
    hashes: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    nonces: dict[str, str] = field(default_factory=dict)
    enrolments: list[str] = field(default_factory=list)
    reports: list[tuple[str, str, bool, str]] = field(default_factory=list)
    batches: dict[tuple[str, int], Lease] = field(default_factory=dict)
    notices: list[tuple[str, datetime | None]] = field(default_factory=list)
    heartbeats: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def mint(self, lease_id: str, token_hash: str, expires: datetime) -> None:
        self.hashes.setdefault(token_hash, (lease_id, expires))

    def redeem(self, token_hash: str, nonce: str, now: datetime, peer: str) -> str | Refused:
        with self.lock:
            if token_hash not in self.hashes:
                return Refused("unknown token")
            lease_id, expires = self.hashes[token_hash]
            bound = self.nonces.get(token_hash)
            if bound not in (None, nonce):
                return Refused("used before")
            if bound is None and now >= expires:
                return Refused("expired")
            match self.states[lease_id]:
                case LeaseState.WANTED | LeaseState.REQUESTED:
                    return Refused("too early", retry=True)
                case LeaseState.BOOTING | LeaseState.TUNNELLED:
                    self.nonces[token_hash] = nonce
                    return lease_id
                case LeaseState.JOINED if bound is not None:
                    return lease_id
                case state:
                    return Refused(f"the lease is {state}")

    def member(self, batch: str, index: int) -> Lease | None:
        return self.batches.get((batch, index))

    def enrolled(self, lease_id: str, now: datetime) -> Refused | None:
        if self.states[lease_id] not in (
            LeaseState.BOOTING, LeaseState.TUNNELLED, LeaseState.JOINED
        ):  # fmt: skip
            return Refused("the lease is being ended")
        self.enrolments.append(lease_id)
        return None

    def report(self, lease_id: str, stage: str, ok: bool, detail: str, now: datetime) -> None:
        self.reports.append((lease_id, stage, ok, detail))

    def noticed(self, lease_id: str, ends: datetime | None, now: datetime) -> None:
        self.notices.append((lease_id, ends))

    def seen(self, lease_id: str, now: datetime) -> bool:
        self.heartbeats.append(lease_id)
        return self.states[lease_id] not in (LeaseState.GONE, LeaseState.FAILED)
