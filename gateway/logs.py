"""Logging: one line an event on stderr, `event=...` first, the way journald and grep like it."""

from __future__ import annotations

import logging
import sys
import time


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)  # UTC, like everything here
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def configure(*, verbose: bool = False) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for room in ("burst", "dvn", "gateway"):
        logging.getLogger(room).setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("botocore").setLevel(logging.WARNING)
