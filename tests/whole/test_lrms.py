"""The demo's story with each real batch system: through the gateway daemon, the lab EC2 and GRE
tunnels. What it ends with is what the issue of the batch systems asks for."""

from __future__ import annotations

import pytest

from lab.scenarios import demo
from lab.scenarios.display import make_display
from lab.scenarios.farms import KINDS, SLURM

pytestmark = [
    pytest.mark.whole,
    pytest.mark.long,
    pytest.mark.xdist_group("whole"),
    pytest.mark.timeout(2400),
]


@pytest.mark.parametrize("name", sorted(set(KINDS) - {SLURM.name}))
def test_the_same_queued_jobs_run_remote_and_nothing_is_left(name: str) -> None:
    kind = KINDS[name]
    with make_display(plain=True) as display:
        told = demo.play(display, kind=kind)

    assert told.complaints == ()
    ids = {job.id for job in told.jobs}  # as the submission printed them
    assert len(ids) == kind.scale.jobs
    assert [job.id for job in told.jobs if not job.result_ok] == []
    remote = [job for job in told.jobs if job.where == "remote"]
    assert {job.node for job in remote} <= {lease.node for lease in told.leases}
    assert told.gre.packets > 0
    assert told.leftovers.total == 0
