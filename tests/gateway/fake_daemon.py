"""The real daemon, process and all, in a made-up world: `python -m tests.gateway.fake_daemon
SITEFILE WORLD`. Only what is outside of the daemon is replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from burst.model import Lease, Machine, MachineState
from gateway import logs, service, sitefile
from gateway.parts import Joining, Parts
from gateway.sitefile import SiteFile
from gateway.store import Store
from tests.gateway.world import FakeAgent, FakeLrms, FakeProvider, World, user_data

SITE = """\
site: cnaf
host: gw1
underlay: {{interface: wan0, address: 198.51.100.1}}
tenants:
  cms:
    networks:
      farm: {{prefix: 10.9.0.0/24, access: open}}
gateway:
  state: sqlite:///{directory}/gateway.sqlite
  socket: {directory}/gateway.sock
  agent_socket: {directory}/agent.sock
  interval: 100ms
  answer_timeout: 5s
burst:
  lrms: {{type: slurm, munge_key: /etc/munge/munge.key, slurm_conf: /etc/slurm/slurm.conf}}
  providers:
    aws:
      type: ec2
      region: eu-south-1
      image: ami-1
      subnet: subnet-1
      security_groups: [sg-1]
  pools:
    cms-aws:
      tenant: cms
      network: farm
      provider: aws
      partition: burst-cms
      from: [batch]
      types: [c5.large]
      max_machines: 4
      addresses: 10.9.0.101-10.9.0.110
  budgets: {{cms: {{limit: 5.00, period: day}}}}
  policy:
    min_job_age: 100ms
    expected_start_cost: 1s
    margin: 100ms
    idle_release: 500ms
    request_timeout: 5s
    boot_timeout: 10s
    tunnel_timeout: 10s
    join_timeout: 10s
    lost_timeout: 5s
    backoff_first: 200ms
    backoff_limit: 1s
    failures_to_pause: 4
    pause: 5s
    orphan_age: 3s
    return_time: 5s
    reserve_hours: 0.1
"""


def write_site(directory: Path) -> SiteFile:
    path = directory / "site.yaml"
    path.write_text(SITE.format(directory=directory))
    return sitefile.load(path)


class Enrolling(FakeProvider):
    """Its machines enrol as soon as they run: what the enrolment server would write is written."""

    def __init__(self, world: World, name: str, stores: list[Store]) -> None:
        super().__init__(world, name)
        self._stores = stores

    def machines(self) -> Sequence[Machine]:
        listed = super().machines()
        for store in self._stores:
            for machine in listed:
                if machine.state is MachineState.RUNNING:
                    store.joins.enrolled(machine.lease_id, datetime.now(UTC))
        return listed


def fake_parts(world: World) -> Parts:
    stores: list[Store] = []  # the daemon's, once it has one

    def joining(_file: SiteFile, store: Store, _clock: Callable[[], datetime]) -> Joining:
        stores.append(store)

        def minted(lease: Lease) -> str:
            return user_data(lease)

        return Joining(minted, None)

    return Parts(
        agent=lambda _file: FakeAgent(world),
        lrms=lambda _config: FakeLrms(world),
        provider=lambda _file, name: Enrolling(world, name, stores),
        joining=joining,
    )


def main() -> int:
    logs.configure()
    file = sitefile.load(Path(sys.argv[1]))
    world = World(Path(sys.argv[2]))
    return service.run(file, agent=False, parts=lambda: fake_parts(world))


if __name__ == "__main__":
    sys.exit(main())
