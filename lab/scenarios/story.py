"""The lab of the burst story, up and running: site, farm, cloud and the daemon under test.

    with Story() as story:
        ids = story.submit(work.flash(24, size=...))
        story.wait_jobs(ids, 300)

It is the demo's stage and the end-to-end tests': everything a site has, nothing faked but the
scale. The daemon runs as it would at a site, started from the command line on host gw1.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import net, warm
from lab.cloud import LabCloud
from lab.farm import FinishedJob, SlurmFarm
from lab.host import Host, LabError
from lab.hosts import Lab
from lab.process import CommandError, told
from lab.scenarios import site, work
from lab.scenarios.farms import SLURM, Kind, ids_of
from lab.scenarios.report import Leftovers, Traffic

CHECKOUT = Path(__file__).resolve().parents[2]
DVN = (sys.executable, "-m", "gateway.cli.main")
MODULES = ("nfsd", "nfs", "nfsv4", "ip_gre", "8021q", "nft_nat", "nft_ct", "nft_masq")
DAEMON_LOG = "/var/log/dvn-gateway.log"
WARM_SOCKET = "/run/warm.sock"


class Story:
    """A context manager; entered, all but the daemon runs, and the cloud account is prepared.

    core_share: the part of a real core that every core of the lab gets, on the farm and in the
    cloud alike. tell: called with a line of progress. warm_start: programs of ours start with
    their libraries loaded (lab/warm.py). kind: the batch system.
    """

    def __init__(
        self,
        *,
        core_share: float = 0.25,
        policy: Mapping[str, object] | None = None,
        max_machines: int = 4,
        budget: str = "5.00",
        period: str = "day",
        prices: Mapping[str, str] | None = None,
        gre_allowed: bool = True,
        warm_start: bool = False,
        kind: Kind = SLURM,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.phases: dict[str, float] = {}
        self._core_share = core_share
        self._policy = {**site.LAB_POLICY, **(policy or {})}
        self._max_machines = max_machines
        self._budget = budget
        self._period = period
        self._prices = prices or {"c5.large": "0.1010"}
        self._gre_allowed = gre_allowed
        self._warm_start = warm_start
        self.kind = kind
        self._tell = tell
        self._stack = ExitStack()
        self._daemon: warm.Process | None = None
        self.tasks: dict[str, work.Task] = {}  # by job id
        self.directories = 0

    # The stage

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.kill_daemon()
        finally:
            self._stack.close()

    def _build(self) -> None:
        began = time.monotonic()
        # By an unlimited process: inside a host the loading would count as the host's own work.
        modules = subprocess.Popen(("modprobe", "-a", *MODULES), stderr=subprocess.DEVNULL)
        self._stack.callback(modules.wait)
        root = None
        if self.kind.tree is not None:
            root = self.kind.tree.build(self._tell)
        self._tell("building hosts, links and the internet router")
        self.lab = self._stack.enter_context(Lab(core_share=self._core_share))
        self.hosts = net.build(self.lab, site.topology(root))
        self.gw1, self.head, self.internet = (
            self.hosts[name] for name in ("gw1", "head", "internet")
        )
        self.gw1.run("ip", "link", "set", "lan0", "up")
        if self._warm_start:
            self.gw1.spawn(
                sys.executable, "-m", "lab.warm", WARM_SOCKET,
                env=self._environment(), log=self._log_file(),
            )  # fmt: skip
        modules.wait()  # what is built in, or missing, shows where it is used
        self._tell(f"starting {self.kind.name} and NFS on the farm, and the EC2 API in the cloud")
        with ThreadPoolExecutor(1) as side:  # both wait a lot for their own programs to start
            farm = side.submit(self._start_farm)
            self.cloud = self._stack.enter_context(LabCloud(self.lab, self.internet, root=root))
            self.place = self._rent_account()
            farm.result()
        user = self.kind.batch.daemon_user  # whom the farm may have made
        key, secret = next(iter(self.cloud.credentials.items()))
        self.gw1.write(
            site.CREDENTIALS,
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n",
            mode=0o400,
            owner=user,
        )
        if isinstance(self.farm, SlurmFarm):
            self.gw1.write(site.MUNGE_KEY, self.farm.munge_key, mode=0o400, owner=user)
        self.gw1.script(f"install -d -o {user} -m 0700 /var/lib/dvn")
        self.write_site_file()
        if self._warm_start:
            warm.wait_ready(self._on_gw1(WARM_SOCKET), 300)
        self.phases["lab up"] = time.monotonic() - began

    def _start_farm(self) -> None:
        self.farm = self._stack.enter_context(self.kind.farm(self.hosts))

    def _rent_account(self) -> site.CloudPlace:
        """What a site administrator does once by hand: a VPC, a subnet, a security group."""
        account = self.cloud.bootstrap(gateway=f"{site.GATEWAY}/32", gre=self._gre_allowed)
        return site.CloudPlace(
            endpoint=self.cloud.endpoint,
            region=self.cloud.region,
            image=account.image,
            subnet=account.subnet,
            security_group=account.security_group,
            prices=self._prices,
        )

    def write_site_file(self, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "max_machines": self._max_machines,
            "policy": self._policy,
            "budget": self._budget,
            "period": self._period,
            "batch": self.kind.batch,
            # The others' daemons and tools take their time on an emulated processor.
            "watchdog": "3m" if self.kind is SLURM else "10m",
            **changes,
        }
        self.gw1.write(site.SITE_FILE, site.site_file(self.place, **settings))

    # The product, by its command line

    def dvn(
        self, *arguments: str, check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Run the `dvn` command on the gateway host, as root."""
        if not self._warm_start:
            return self.gw1.run(
                *DVN, *arguments, check=check, timeout=timeout, env=self._environment()
            )
        done = warm.run(
            self._on_gw1(WARM_SOCKET), arguments, env=self._environment(), timeout=timeout
        )
        if check and done.returncode != 0:
            ended = f"ended with {done.returncode}{told(done.stdout, done.stderr)}"
            raise CommandError(f"dvn {' '.join(arguments)}: {ended}", done)
        return done

    def ask(self, *arguments: str) -> Any:
        """The JSON answer of a `dvn` command."""
        return json.loads(self.dvn(*arguments, "-o", "json").stdout)

    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(CHECKOUT), "TZ": "UTC"}

    def start_daemon(self, *, wait: bool = True) -> None:
        """`dvn gateway run`; with wait, until its API answers."""
        if self._daemon is not None and self._daemon.poll() is None:
            raise LabError("the daemon runs already")
        arguments = ("gateway", "run", site.SITE_FILE)
        if self._warm_start:
            with self._log_file().open("ab") as log:
                self._daemon = warm.start(
                    self._on_gw1(WARM_SOCKET), arguments, env=self._environment(), output=log
                )
        else:
            self._daemon = self.gw1.spawn(
                *DVN, *arguments, env=self._environment(), log=self._log_file()
            )
        if wait:
            self.gw1.wait_for(
                lambda: self.status() is not None, 300, what="the daemon's API", interval=0.5
            )

    def _log_file(self) -> Path:
        return Path(self._on_gw1(DAEMON_LOG))

    def _on_gw1(self, path: str) -> str:
        """A path of that host, as we see it."""
        return f"/proc/{self.gw1.pid}/root{path}"

    def daemon_log(self) -> str:
        with suppress(OSError):
            return self._log_file().read_text(errors="replace")
        return ""

    @property
    def daemon(self) -> warm.Process:
        if self._daemon is None:
            raise LabError("the daemon was never started")
        return self._daemon

    def kill_daemon(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send the signal and wait until the process is gone; no daemon, nothing to do."""
        if self._daemon is not None:
            if self._daemon.poll() is None:
                self._daemon.send_signal(how)
            try:
                self._daemon.wait(30)
            except subprocess.TimeoutExpired:
                self._daemon.send_signal(signal.SIGKILL)
                self._daemon.wait(30)
            self._daemon = None

    def api(self, path: str) -> Any:
        """GET from the daemon's socket; None while it does not answer."""
        from lab.scenarios.unixhttp import get

        return get(f"/proc/{self.gw1.pid}/root/run/dvn/gateway.sock", path)

    def status(self) -> Any:
        return self.api("/v1/status")

    def leases(self) -> list[dict[str, Any]]:
        """Every lease the store knows, ended ones too; empty while the daemon does not answer."""
        answer = self.api("/v1/leases?ended=true")
        return list(answer or ())

    # Jobs

    def submit(
        self, tasks: Sequence[work.Task], user: str = "alice", *, minutes: int = 10
    ) -> list[str]:
        """Submit one batch job for each task as an ordinary user; the ids it was told."""
        self.directories += 1
        home, directory = f"/home/{user}", f"{work.RESULTS}-{self.directories}"
        self.head.script('mkdir -p "$1"', f"{home}/{directory}", user=user)
        for task in tasks:
            text = work.script(
                task, directory=directory, minutes=minutes, dialect=self.kind.dialect
            )
            self.head.write(f"{home}/{directory}/{task.index:03d}.sh", text, owner=user)
        said = self.head.script(
            f'cd "$1"; for job in *.sh; do {self.kind.submit}; done',
            f"{home}/{directory}",
            home,
            user=user,
            timeout=60 + 30 * len(tasks),
        ).stdout
        ids = ids_of(said)
        if len(ids) != len(tasks):
            raise LabError(f"{len(tasks)} jobs submitted, but told {said!r}")
        self.tasks.update(zip(ids, sorted(tasks, key=lambda task: task.index), strict=True))
        return ids

    def result(self, job: str, directory: int | None = None, user: str = "alice") -> str | None:
        """The text of a job's result file as the head sees it, or None."""
        task = self.tasks[job]
        number = directory or self.directories
        try:
            return self.head.read(
                f"/home/{user}/{work.RESULTS}-{number}/count-{task.index:03d}.txt"
            )
        except LabError:
            return None

    def runs(self, job: str, directory: int | None = None, user: str = "alice") -> int:
        """How often the job's program ran to its end."""
        task = self.tasks[job]
        number = directory or self.directories
        try:
            log = self.head.read(f"/home/{user}/{work.RESULTS}-{number}/runs-{task.index:03d}.log")
        except LabError:
            return 0
        return len(log.splitlines())

    def finished(self) -> dict[str, FinishedJob]:
        """The last record of every ended job, by id."""
        return {job.id: job for job in self.farm.finished()}

    # What is left

    def wait_returned(self, timeout: float) -> None:
        """Wait until no lease lives and no instance is left."""

        def empty() -> bool:
            ended = {"gone", "failed"}
            leases = self.leases()
            return (
                self.status() is not None
                and all(lease["state"] in ended for lease in leases)
                and not self.cloud.leftovers()
            )

        self.gw1.wait_for(
            empty, timeout, what="every machine returned and every lease ended", interval=1.0
        )

    def leftovers(self, leases: Sequence[Mapping[str, Any]] | None = None) -> Leftovers:
        """Counted where each thing would be: EC2, the batch system, the kernel of gw1, the store.

        leases: the API's last answer, when the daemon does not run any more.
        """
        leases = self.leases() if leases is None else leases
        links = json.loads(self.gw1.run("ip", "-j", "link").stdout)
        tables = json.loads(self.gw1.run("nft", "-j", "list", "tables").stdout)["nftables"]
        living = [lease for lease in leases if lease["state"] not in ("gone", "failed")]
        return Leftovers(
            instances=len(self.cloud.leftovers()),
            nodes=len(self.farm.known_nodes() - set(site.WORKERS)),
            links=sum(str(link.get("ifalias", "")).startswith("dvn:") for link in links),
            nft_tables=sum("table" in entry for entry in tables),
            leases=len(living),
        )

    def tunnel_links(self) -> list[str]:
        """The GRE devices on gw1 that carry our stamp."""
        links = json.loads(self.gw1.run("ip", "-j", "link", "show", "type", "gretap").stdout)
        return [link["ifname"] for link in links if str(link.get("ifalias", "")).startswith("dvn:")]

    def traffic(self) -> dict[str, Traffic]:
        """What the internet router has forwarded so far, by protocol."""
        return {
            name: Traffic(seen.packets, seen.bytes)
            for name, seen in net.counters(self.internet).items()
        }


def worker_of(node: str) -> bool:
    """Whether a node of the LRMS is one of the farm's own."""
    return node in site.WORKERS


__all__ = ["Host", "Story", "worker_of"]
