"""What happens when a host is powered off while somebody starts something on it."""

from __future__ import annotations

import threading
import time

import pytest

from lab.hosts import HostDownError, Lab

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

ROUNDS = 12


def test_a_host_killed_while_commands_start_is_gone_at_once() -> None:
    with Lab() as lab:
        for number in range(ROUNDS):
            host = lab.host(f"h{number}")
            refused = threading.Event()

            def start_many() -> None:
                try:
                    while True:
                        host.spawn("sleep", "60")  # noqa: B023 - joined below
                except HostDownError:
                    refused.set()  # noqa: B023

            thread = threading.Thread(target=start_many)
            thread.start()
            threading.Event().wait(0.02 * number)  # another moment in each round
            host.kill()
            began = time.monotonic()
            lab.remove(host)
            thread.join(30)
            assert refused.is_set(), "who starts something on a host that is off is told"
            assert time.monotonic() - began < 20, "the host was held by a child nobody reaped"
