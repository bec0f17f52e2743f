"""Between a `Lease` and its row: lossless both ways.

The lease is kept as a document, so that a field added to `burst.model.Lease` with a default needs
no migration: rows written before simply lack it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from burst.model import Lease

_DOCUMENT = TypeAdapter(Lease)


def row_of(lease: Lease) -> dict[str, Any]:
    return {
        "id": lease.id,
        "tenant": lease.tenant,
        "account": lease.account,
        "state": lease.state.value,
        "wanted": lease.wanted,
        "ended": lease.ended,
        "reserved": lease.reserved,
        "drain_requested": lease.drain_requested,
        "batch": lease.batch,
        "place": lease.batch_index,
        "body": _DOCUMENT.dump_json(lease).decode(),
    }


def lease_of(row: Mapping[str, Any]) -> Lease:
    return replace(_DOCUMENT.validate_json(row["body"]), drain_requested=row["drain_requested"])
