"""The error of this room: one line for a person, saying what is missing and how to mend it."""

from __future__ import annotations


class KernelError(Exception):
    """A full kernel could not be had (no QEMU, no kernel image, the VM did not come up)."""
