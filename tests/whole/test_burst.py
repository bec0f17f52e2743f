"""A burst from beginning to end, and what passed between site and cloud meanwhile."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from pathlib import Path

import pytest

from lab import net
from lab.scenarios import site, work
from lab.scenarios.story import Story, worker_of
from tests.docs.test_docs import commands

pytestmark = [pytest.mark.whole, pytest.mark.xdist_group("whole"), pytest.mark.timeout(600)]

JOBS = 20
API = "203.0.113.250"


def test_the_same_queued_jobs_run_remote_and_only_gre_and_tls_cross_the_internet(
    story: Story, tmp_path: Path
) -> None:
    tasks = work.flash(JOBS, size=60_000)
    right = work.expected(tasks)
    pcap = tmp_path / "internet.pcap"
    with net.capture(story.internet, "site", pcap):
        story.start_daemon()
        ids = story.submit(tasks)
        ended = story.farm.wait_finished(ids, 300)
        user_data = _user_data(story)
        _documented_commands_answer(story, ids)
        story.wait_returned(180)

    assert [job.id for job in ended] == ids, "the ids that sbatch printed"
    assert {job.state for job in ended} == {"COMPLETED"}
    for job in ids:
        task = story.tasks[job]
        good, problem = work.judge(task, story.result(job), right[task.index])
        assert good, problem
    assert {story.runs(job) for job in ids} == {1}, "each job ran exactly once"
    remote = [job for job in ended if not worker_of(job.nodes)]
    assert remote, f"nobody ran remote: {[job.nodes for job in ended]}"
    left = story.leftovers()
    assert (left.instances, left.nodes, left.leases) == (0, 0, 0)

    between = f"not host {API}"  # the cloud's own API is no instance
    assert _count(pcap, f"proto 47 and {between}") > 0
    assert _count(pcap, f"tcp port {site.ENROL_PORT} and {between}") > 0
    strange = f"not proto 47 and not tcp port {site.ENROL_PORT} and not arp and {between}"
    assert _shown(pcap, strange) == ""

    assert user_data, "positive control: the instances had user data"
    munge = story.farm.munge_key
    for text in user_data:
        assert munge not in text
        assert base64.b64encode(munge) not in text
        assert munge.hex().encode() not in text
        secrets = set(re.findall(rb"[0-9a-f]{64}", text))
        assert len(secrets) == 1, "the one-time token, and nothing else that looks like a key"


def _user_data(story: Story) -> list[bytes]:
    client = story.cloud.client()
    found = []
    for lease in story.leases():
        if lease["machine"]:
            answer = client.describe_instance_attribute(
                InstanceId=lease["machine"], Attribute="userData"
            )
            value = answer.get("UserData", {}).get("Value")
            if value:
                found.append(base64.b64decode(value))
    return found


# The others want the site of their page, or somebody who stops them.
ANSWERED = frozenset({"validate", "plan", "show", "gateway", "burst"})


def _documented_commands_answer(story: Story, ids: list[str]) -> None:
    """The `dvn` commands of the documentation that only read, on the gateway, now."""
    lease = story.leases()[0]["id"][:8]
    for command in commands():
        if not command.reads_only or command.words[0] not in ANSWERED:
            continue
        arguments = command.arguments(job=ids[-1], lease=lease, site=site.SITE_FILE)
        done = story.dvn(*arguments)
        if "json" in arguments:
            json.loads(done.stdout)


def _shown(pcap: Path, expression: str) -> str:
    """The packets themselves, for an assertion that says what it met."""
    return subprocess.run(
        ["tcpdump", "-n", "-t", "-r", str(pcap), expression],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip


def _count(pcap: Path, expression: str) -> int:
    """How many packets of the capture fit a pcap-filter(7) expression."""
    done = subprocess.run(
        ["tcpdump", "--count", "-n", "-r", str(pcap), expression],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    counted = re.search(r"(\d+) packets?", done.stdout + done.stderr)
    assert counted, done.stdout + done.stderr
    return int(counted[1])
