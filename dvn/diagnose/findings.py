"""What `dvn doctor` finds: one value a check, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One check: how it went, in words, and how to mend it where it did not go well."""

    check: str
    health: Health
    words: str
    fix: str = ""


def ok(check: str, words: str) -> Finding:
    return Finding(check, Health.OK, words)


def warn(check: str, words: str, fix: str) -> Finding:
    return Finding(check, Health.WARN, words, fix)


def fail(check: str, words: str, fix: str) -> Finding:
    return Finding(check, Health.FAIL, words, fix)


def worst(found: Iterable[Finding]) -> Health:
    order = list(Health)
    return max((finding.health for finding in found), key=order.index, default=Health.OK)
