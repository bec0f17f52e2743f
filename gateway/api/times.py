"""Instants and durations as a person types them, in a query."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic_core import PydanticCustomError

from gateway.units import parse_duration


class Refused(Exception):  # noqa: N818 - an answer, not a malfunction
    """What was asked cannot be meant; the message says what is wrong and how to write it."""


def instant(text: str, now: datetime) -> datetime | None:
    """`2026-03-01`, `2026-03-01T12:00`, or `7d`: so long ago. UTC unless it says otherwise; empty
    is None. Raises `Refused`."""
    if not text:
        return None
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        pass
    else:
        return given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)
    try:
        return now - parse_duration(text)
    except PydanticCustomError:
        raise Refused(
            f"{text!r} is neither a date nor a time ago; write it like 2026-03-01 or 7d"
        ) from None


def duration(text: str) -> timedelta:
    """`2h`, `90m`. Raises `Refused`."""
    try:
        found = parse_duration(text)
    except PydanticCustomError as error:
        said = error.context or {}
        raise Refused(f"{said.get('what')}; {said.get('fix')}") from None
    if found <= timedelta(0):
        raise Refused(f"{text} is no time at all; write it like 2h")
    return found
