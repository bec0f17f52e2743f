"""The security group's rule for protocol 47 is missing: the tunnel stays down, nobody loses."""

from __future__ import annotations

from typing import Any

import pytest

from lab.scenarios import site, work
from lab.scenarios.story import Story, worker_of

pytestmark = [pytest.mark.whole, pytest.mark.xdist_group("whole"), pytest.mark.timeout(600)]

K = 2  # failures_to_pause of the tests' policy
RULE = {"IpProtocol": "47", "IpRanges": [{"CidrIp": f"{site.GATEWAY}/32"}]}


def test_without_the_rule_the_lease_fails_by_tunnel_and_with_it_the_jobs_run_remote(
    story: Story,
) -> None:
    ec2 = story.cloud.client()
    group = story.place.security_group
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[RULE])
    ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[RULE])
    before = {lease["id"] for lease in story.leases()}
    try:
        story.start_daemon()
        before |= {lease["id"] for lease in story.leases()}
        ids = story.submit(work.flash(16, size=50_000))

        def failed() -> list[dict[str, Any]]:
            new = [lease for lease in story.leases() if lease["id"] not in before]
            return [lease for lease in new if lease["state"] == "failed"]

        story.gw1.wait_for(lambda: len(failed()) >= K, 240, what=f"{K} failed leases", interval=1.0)
        assert {lease["failure"]["kind"] for lease in failed()} == {"tunnel"}
        story.gw1.wait_for(lambda: not story.cloud.leftovers(), 90, what="the instances returned")

        # The pool pauses, and says why; so does a job that had hoped for it.
        pool = story.ask("burst", "explain", "cms-aws")
        assert "paus" in str(pool).lower()
        waiting = [j for j in story.api("/v1/jobs") if j["id"] in ids and j["state"] == "pending"]
        if waiting:
            answer = str(story.ask("burst", "explain", waiting[-1]["id"])).lower()
            assert "tunnel" in answer
        lease = str(story.ask("burst", "explain", failed()[0]["id"][:8])).lower()
        assert "tunnel" in lease
        assert "47" in lease, "the answer names what to look at: protocol 47"

        # Nobody lost anything: the jobs run on the farm, each once.
        ended = story.farm.wait_finished(ids, 300)
        assert {job.state for job in ended} == {"COMPLETED"}
        assert all(worker_of(job.nodes) for job in ended)
        assert len([lease for lease in story.leases() if lease["id"] not in before]) == K
    finally:
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[RULE])
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[RULE])

    # Positive control: the same story with the rule in place.
    story.dvn("burst", "resume")
    again = story.submit(work.flash(16, size=100_000))
    ended = story.farm.wait_finished(again, 300)
    assert any(not worker_of(job.nodes) for job in ended)
    story.wait_returned(240)
