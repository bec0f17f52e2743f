"""What the lab needs of a kernel, found by trying it in a network namespace of its own."""

from __future__ import annotations

FEATURES: frozenset[str] = frozenset({"gretap"})


def missing_features() -> tuple[str, ...]:
    """Names of FEATURES this kernel lacks."""
    return tuple(sorted(FEATURES))
