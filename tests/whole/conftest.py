"""One lab for all the end-to-end stories: building it costs more than any of them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from lab.scenarios import site
from lab.scenarios.story import Story

TESTS_POLICY = {
    **site.LAB_POLICY,
    "tunnel_timeout": "40s",  # a missing rule should not take the tests' time
    "failures_to_pause": 2,
    "pause": "30m",
}


@pytest.fixture(scope="session")
def lab_story() -> Iterator[Story]:
    """Site, farm and cloud; the tenant's network is applied, no daemon runs."""
    with Story(policy=TESTS_POLICY, max_machines=2, core_share=0.3, warm_start=True) as story:
        story.dvn("apply", site.SITE_FILE)
        yield story


@pytest.fixture
def story(lab_story: Story, request: pytest.FixtureRequest) -> Iterator[Story]:
    """The lab with no daemon, no lease and no fault; a failed test shows the daemon's log."""
    failed_before = request.session.testsfailed
    yield lab_story
    lab_story.cloud.faults.clear()
    if request.session.testsfailed > failed_before or not quiet(lab_story):
        sys.stderr.write(lab_story.daemon_log()[-12_000:])
    lab_story.kill_daemon()


def quiet(story: Story) -> bool:
    return not story.cloud.leftovers()


def stop_politely(story: Story) -> None:
    story.kill_daemon(signal.SIGTERM)
