"""User data from its first line to the node's report, run for real in a sandbox."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from burst.join import apply
from burst.join.bundle import (
    Bundle,
    Command,
    Directory,
    File,
    Group,
    Mount,
    Program,
    Reach,
    User,
    Version,
)
from burst.join.userdata import UserDataError, inner_mac, user_data
from burst.model import LeaseState
from tests.burst.join_sandbox import LEASE, PRIVATE, Sandbox

KEY = b"\x00the munge key of the farm\xff"

pytestmark = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("bash", "curl", "flock")),
    reason="bash, curl and flock are needed",
)


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path)
    yield sandbox
    sandbox.close()


def bundle(*commands: Command) -> Bundle:
    return Bundle(
        node=LEASE.node,
        preflight=(Program("sh", "dash"),),
        users=(User("alice", 1000, 1000, "/home/alice", "/bin/bash"),),
        groups=(Group("alice", 1000),),
        directories=(Directory("/etc/munge", 0o700),),
        files=(
            File("/etc/munge/munge.key", KEY, 0o400),
            File("/etc/hosts", b"10.9.0.10 head\n", merge=True),
        ),
        mounts=(Mount("10.9.0.10:/home", "/home", "nfs4", "vers=4.2"),),
        commands=commands,
        memory_mb=10**9,
    )


class TestJoining:
    def test_a_machine_joins(self, sandbox: Sandbox) -> None:
        sandbox.stand_in("slurmd")
        sandbox.bundle = bundle(Command("slurmd", ("slurmd", "-Z", "Mem={memory_mb}")))

        assert sandbox.run() == 0, sandbox.console

        assert sandbox.tokens.enrolments == [LEASE.id]
        assert sandbox.tokens.reports == [(LEASE.id, "joined", True, LEASE.node)]
        assert sandbox.calls("ip") == [
            "rule add priority 16 to 127.0.0.1 uidrange 1-4294967294 prohibit",
            f"link add name dvn0 type gretap local {PRIVATE} remote 198.51.100.1 key 7 ttl 64",
            f"link set dev dvn0 mtu 1458 address 02:00:0a:09:00:65 alias dvn lease {LEASE.id} up",
            "address replace 10.9.0.101/24 dev dvn0",
        ]
        assert sandbox.calls("mount") == [
            f"-t nfs4 -o vers=4.2 10.9.0.10:/home {sandbox.root}/home"
        ]
        memory = int(sandbox.calls("slurmd")[0].rpartition("=")[2])
        assert 0 < memory < 10**9  # what the machine has, not what was promised

    def test_files_have_their_content_and_mode(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle()
        assert sandbox.run() == 0, sandbox.console

        key = sandbox.root / "etc/munge/munge.key"
        assert key.read_bytes() == KEY
        assert stat.S_IMODE(key.stat().st_mode) == 0o400
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
        assert [path.name for path in key.parent.iterdir()] == ["munge.key"]
        hosts = (sandbox.root / "etc/hosts").read_text()
        assert hosts.startswith("127.0.0.1 localhost\n# dvn begin")
        assert "\n10.9.0.10 head\n# dvn end\n" in hosts

    def test_a_user_of_the_farm_comes_before_the_images_own_of_that_number(
        self, sandbox: Sandbox
    ) -> None:
        sandbox.bundle = bundle()
        assert sandbox.run() == 0, sandbox.console

        assert (sandbox.root / "etc/passwd").read_text().splitlines()[1:] == [
            "alice:x:1000:1000::/home/alice:/bin/bash",
            "admin:x:1000:1000:image's own:/home/admin:/bin/sh",
        ]
        assert (sandbox.root / "etc/group").read_text().splitlines()[1] == "alice:x:1000:"

    def test_running_it_again_changes_nothing(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle()
        assert sandbox.run() == 0, sandbox.console
        etc = (sandbox.root / "etc").rglob("*")
        before = {path: path.read_bytes() for path in etc if path.is_file()}

        sandbox.tokens.states[LEASE.id] = LeaseState.JOINED  # as after a reboot
        assert sandbox.run() == 0, sandbox.console

        assert {path: path.read_bytes() for path in before} == before
        assert len(set(sandbox.tokens.nonces.values())) == 1

    def test_it_arranges_to_run_at_the_next_boot(self, sandbox: Sandbox) -> None:
        per_boot = sandbox.root / "var/lib/cloud/scripts/per-boot"
        per_boot.mkdir(parents=True)
        assert sandbox.run() == 0, sandbox.console

        installed = per_boot / "dvn-join"
        assert installed.read_text() == sandbox.script()
        assert stat.S_IMODE(installed.stat().st_mode) == 0o700

    def test_nothing_secret_is_readable_by_others(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle()
        assert sandbox.run() == 0, sandbox.console

        for directory in ("run/dvn-join", "var/lib/dvn-join"):
            assert stat.S_IMODE((sandbox.root / directory).stat().st_mode) == 0o700
        assert not (sandbox.root / "run/dvn-join/bundle.json").exists()
        assert sandbox.token not in sandbox.console


class TestPatience:
    def test_a_slow_metadata_service_and_a_gateway_that_is_not_ready(
        self, sandbox: Sandbox
    ) -> None:
        sandbox.metadata.silent_for = 3
        sandbox.tokens.states[LEASE.id] = LeaseState.REQUESTED
        process = sandbox.start()
        sandbox.wait_for(lambda: "status 503" in sandbox.console)

        sandbox.tokens.states[LEASE.id] = LeaseState.BOOTING

        assert process.wait(timeout=30) == 0, sandbox.console

    def test_a_service_that_is_late(self, sandbox: Sandbox) -> None:
        again = f"[ -e {sandbox.base}/tried ] || ! touch {sandbox.base}/tried"
        sandbox.bundle = bundle(Command("late", ("sh", "-c", again), attempts=2))

        assert sandbox.run() == 0, sandbox.console

    def test_a_daemon_that_keeps_the_output_open(self, sandbox: Sandbox) -> None:
        daemon = Command("daemon", ("sh", "-c", "/bin/sleep 600 & exit 0"), timedelta(seconds=20))
        sandbox.bundle = bundle(daemon, Command("kill", ("sh", "-c", "true")))

        assert sandbox.run() == 0, sandbox.console


class TestFailures:
    def test_a_command_that_fails_is_reported_with_its_last_words(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle(
            Command("munged", ("sh", "-c", 'echo "Key is \\"insecure\\"" >&2; exit 3')),
            Command("never", ("touch", str(sandbox.base / "never"))),
        )

        assert sandbox.run() == 1

        lease, kind, ok, detail = sandbox.tokens.reports[0]
        assert (lease, kind, ok) == (LEASE.id, "join", False)
        assert detail.startswith("munged: sh -c")
        assert 'status 3\nKey is "insecure"' in detail
        assert not (sandbox.base / "never").exists()

    def test_a_command_that_may_fail(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle(Command("x", ("false",), may_fail=True), Command("y", ("true",)))

        assert sandbox.run() == 0, sandbox.console

    def test_a_command_that_hangs(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle(Command("slurmd", ("/bin/sleep", "600"), timedelta(seconds=0.5)))

        assert sandbox.run() == 1
        assert "slurmd: /bin/sleep 600: no end after 0.5 s" in sandbox.tokens.reports[0][3]

    @pytest.mark.parametrize(
        ("broken", "kind", "says"),
        [
            (
                Bundle("n", preflight=(Program("no-such", "x-1"),)),
                "bootstrap",
                "preflight: the image lacks no-such (package x-1)",
            ),
            (
                Bundle("n", users=(User("root", 4242, 0, "/", "/"),)),
                "join",
                "users: root has number",
            ),
            (
                Bundle("n", files=(File("/etc/x", b"", owner="munge"),)),
                "join",
                "files: there is no user munge on this image",
            ),
            (
                Bundle("n", commands=(Command("a", ("/no/such",)),)),
                "join",
                "a: /no/such: [Errno 2]",
            ),
            (
                Bundle("n", mounts=(Mount("x:/", "/etc/hosts", "nfs4"),)),
                "join",
                "mount: [Errno 17] File exists",
            ),
            (
                Bundle(
                    "n",
                    reach=(Reach("slurmctld", "127.0.0.1", 1),),
                    reach_timeout=timedelta(0),
                ),
                "join",
                "service: slurmctld at 127.0.0.1 port 1",
            ),
        ],
    )
    def test_what_cannot_be_done_is_named(
        self, sandbox: Sandbox, broken: Bundle, kind: str, says: str
    ) -> None:
        sandbox.bundle = broken

        assert sandbox.run() == 1
        _lease, reported, ok, detail = sandbox.tokens.reports[0]
        assert (reported, ok) == (kind, False)
        assert detail.startswith(says)

    def test_a_clock_that_munge_would_not_accept(self, sandbox: Sandbox) -> None:
        sandbox.clock_error = timedelta(hours=-2)

        assert sandbox.run() == 1
        assert sandbox.tokens.reports[0][3].startswith("clock: the clock is +7200 s off")

    def test_missing_programs_are_installed_if_the_site_says_how(self, sandbox: Sandbox) -> None:
        install = f"cp /bin/true {sandbox.path}/slurm-thing"
        sandbox.bundle = Bundle("n", preflight=(Program("slurm-thing", "x"),), install=install)

        assert sandbox.run() == 0, sandbox.console

    def test_a_kernel_without_gre(self, sandbox: Sandbox) -> None:
        sandbox.stand_in("ip", '[ "$1" != link ] || { echo "Unknown \\"device\\" type"; exit 2; }')

        assert sandbox.run() == 1
        report = sandbox.tokens.reports[0]
        assert report[1:3] == ("tunnel", False)
        assert "GRE tunnel 172.31.5.7 to 198.51.100.1: Unknown 'device' type" in report[3]
        assert sandbox.tokens.enrolments == []

    def test_metadata_that_cannot_be_closed_to_users_ends_it(self, sandbox: Sandbox) -> None:
        sandbox.stand_in("ip", '[ "$1" != rule ]')

        assert sandbox.run() == 1
        assert "cannot be kept from" in sandbox.tokens.reports[0][3]

    def test_an_image_without_python(self, sandbox: Sandbox) -> None:
        tools = "bash curl flock cat mkdir rm install date"
        for name in tools.split():
            found = shutil.which(name)
            assert found
            (sandbox.path / name).symlink_to(found)

        assert sandbox.run(path=str(sandbox.path)) == 1
        assert sandbox.tokens.reports == [
            (LEASE.id, "bootstrap", False, "prerequisites: this image lacks: python3")
        ]


class TestPowerOff:
    """Each of these is money: a machine that nobody hears of any more must end by itself."""

    def test_a_refused_machine(self, sandbox: Sandbox) -> None:
        sandbox.tokens.states[LEASE.id] = LeaseState.GONE

        assert sandbox.run() == 1
        assert sandbox.calls("shutdown") == ["-h now"]
        assert "the gateway refuses" in sandbox.console

    def test_somebody_elses_gateway(self, sandbox: Sandbox) -> None:
        sandbox.pin = "sha256//" + "A" * 43 + "="
        sandbox.watchdog = timedelta(seconds=2)

        assert sandbox.run() == 1
        assert "its key is not the pinned one" in sandbox.console
        assert sandbox.tokens.nonces == {}  # it was told nothing
        sandbox.wait_for(lambda: sandbox.calls("shutdown") != [])

    def test_a_lease_that_is_over(self, sandbox: Sandbox) -> None:
        assert sandbox.run() == 0, sandbox.console
        sandbox.wait_for(lambda: len(sandbox.tokens.heartbeats) > 2)
        assert sandbox.calls("shutdown") == []

        sandbox.tokens.states[LEASE.id] = LeaseState.GONE

        sandbox.wait_for(lambda: sandbox.calls("shutdown") != [])

    def test_a_gateway_that_is_gone(self, sandbox: Sandbox) -> None:
        sandbox.watchdog = timedelta(seconds=3)
        assert sandbox.run() == 0, sandbox.console

        sandbox.server.stop()

        sandbox.wait_for(lambda: sandbox.calls("shutdown") != [])
        log = (sandbox.root / "var/log/dvn-join.log").read_text()
        assert "nothing heard from the gateway" in log

    def test_a_join_that_failed_still_watches(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle(Command("slurmd", ("false",)))
        assert sandbox.run() == 1

        sandbox.tokens.states[LEASE.id] = LeaseState.FAILED

        sandbox.wait_for(lambda: sandbox.calls("shutdown") != [])

    def test_one_that_is_slow_to_join_counts_from_its_enrolment(self, sandbox: Sandbox) -> None:
        """Its bundle was the gateway's word, though what it brings may take long to carry out."""
        sandbox.watchdog = timedelta(seconds=6)
        sandbox.stand_in("python3", f'/bin/sleep 4; exec {sys.executable} "$@"')
        sandbox.tokens.states[LEASE.id] = LeaseState.REQUESTED
        begun = time.monotonic()
        machine = sandbox.start()
        sandbox.wait_for(lambda: time.monotonic() - begun > 4)
        assert machine.poll() is None, sandbox.console
        sandbox.tokens.states[LEASE.id] = LeaseState.BOOTING

        assert machine.wait(timeout=30) == 0, sandbox.console
        assert time.monotonic() - begun > 6, "the control: it was slow"
        sandbox.wait_for(lambda: sandbox.tokens.heartbeats != [])
        assert sandbox.calls("shutdown") == []

    def test_two_runs_have_one_watchdog(self, sandbox: Sandbox) -> None:
        assert sandbox.run() == 0, sandbox.console
        assert sandbox.run() == 0, sandbox.console

        def alive() -> list[int]:
            return [p.pid for p in sandbox.processes if _group_lives(p.pid)]

        sandbox.wait_for(lambda: len(alive()) == 1)


class TestText:
    def test_is_the_same_each_time_and_small(self, sandbox: Sandbox) -> None:
        assert sandbox.script() == sandbox.script()
        assert len(sandbox.script().encode()) < 16384

    def test_holds_the_one_time_token_and_no_lasting_secret(self, sandbox: Sandbox) -> None:
        sandbox.bundle = bundle()
        script = sandbox.script()

        assert script.count(sandbox.token) == 1
        assert sandbox.secret.session(LEASE.id) not in script
        assert "munge" not in script
        assert "PRIVATE KEY" not in script

    def test_is_good_shell(self, sandbox: Sandbox) -> None:
        subprocess.run(["bash", "-n"], input=sandbox.script().encode(), check=True, timeout=20)

    @pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
    def test_is_clean_by_shellcheck(self, sandbox: Sandbox) -> None:
        done = subprocess.run(
            ["shellcheck", "--norc", "-"],
            input=sandbox.script().encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.decode() == ""

    @pytest.mark.parametrize(
        ("lease", "gateway", "says"),
        [
            ({"node": "x;reboot"}, {}, "the node's name 'x;reboot'"),
            ({"address": "10.9.0.0/24"}, {}, "the lease's address '10.9.0.0/24': an IPv4"),
            ({"gre_key": 0}, {}, "the GRE key 0: must be between 1 and 4294967295"),
            ({}, {"pin": "sha256//x"}, "the pin 'sha256//x'"),
            ({}, {"enrol_url": "https://x/$(reboot)"}, "the enrolment URL"),
            ({}, {"mtu": 68}, "the tunnel's MTU 68"),
            ({}, {"watchdog": timedelta(0)}, "the watchdog's time in seconds 0"),
        ],
    )
    def test_odd_values_are_refused(
        self, lease: dict[str, object], gateway: dict[str, object], says: str
    ) -> None:
        from burst.join.userdata import JoinGateway

        good = JoinGateway("198.51.100.1", "https://198.51.100.1:8443", "sha256//" + "A" * 43 + "=",
                           24)  # fmt: skip
        with pytest.raises(UserDataError, match="^" + says.replace("$", r"\$").replace("(", r"\(")):
            user_data(replace(LEASE, **lease), replace(good, **gateway), "t" * 64)  # type: ignore[arg-type]

    def test_the_inner_mac_is_fixed_by_the_address(self) -> None:
        assert inner_mac("10.9.0.101") == "02:00:0a:09:00:65"


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class TestNotices:
    """What the provider says of taking the machine back reaches the gateway."""

    def test_an_interruption_and_then_no_more(self, sandbox: Sandbox) -> None:
        sandbox.metadata.items["instance-life-cycle"] = "spot"
        assert sandbox.run() == 0, sandbox.console
        assert sandbox.tokens.notices == []

        action = '{"action": "terminate", "time": "2026-03-01T12:02:00Z"}'
        sandbox.metadata.items["spot/instance-action"] = action

        sandbox.wait_for(lambda: sandbox.tokens.notices != [])
        asked = len(sandbox.tokens.heartbeats)
        sandbox.wait_for(lambda: len(sandbox.tokens.heartbeats) > asked + 3)
        ends = datetime(2026, 3, 1, 12, 2, tzinfo=UTC)
        assert sandbox.tokens.notices == [(LEASE.id, ends)]

    def test_an_interruption_where_the_metadata_service_was_not_ready(
        self, sandbox: Sandbox
    ) -> None:
        """It answers what it knows; of the life cycle that is nothing at first."""
        del sandbox.metadata.items["instance-life-cycle"]
        assert sandbox.run() == 0, sandbox.console

        action = '{"action": "terminate", "time": "2026-03-01T12:02:00Z"}'
        sandbox.metadata.items["spot/instance-action"] = action
        sandbox.metadata.items["instance-life-cycle"] = "spot"

        sandbox.wait_for(lambda: sandbox.tokens.notices != [])

    def test_a_recommendation_and_later_the_interruption(self, sandbox: Sandbox) -> None:
        sandbox.metadata.items["instance-life-cycle"] = "spot"
        sandbox.metadata.items["events/recommendations/rebalance"] = '{"noticeTime": "x"}'
        assert sandbox.run() == 0, sandbox.console
        sandbox.wait_for(lambda: sandbox.tokens.notices == [(LEASE.id, None)])

        action = '{"action":"terminate","time":"2026-03-01T12:02:00Z"}'
        sandbox.metadata.items["spot/instance-action"] = action

        sandbox.wait_for(lambda: len(sandbox.tokens.notices) == 2)
        assert sandbox.tokens.notices[1][1] is not None


class TestPreflight:
    @pytest.mark.parametrize(
        ("said", "stage"),
        [("slurm-wlm 22.05.8", ""), ("slurm 23.02.1", "version"), ("slurm 20.11.9", "version")],
    )
    def test_a_slurmd_the_farm_does_not_take(self, sandbox: Sandbox, said: str, stage: str) -> None:
        wanted = Version("slurmd", ("echo", said), (21, 8), (22, 5), "slurmctld 22.05 takes")
        sandbox.bundle = replace(sandbox.bundle, versions=(wanted,))
        assert (sandbox.run() == 0) is not bool(stage), sandbox.console
        report = sandbox.report()
        assert report["ok"] is not bool(stage)
        if stage:
            assert report["stage"] == stage
            assert "slurmctld 22.05 takes: 21.08 to 22.05" in report["detail"]


def test_a_name_that_is_somebody_else() -> None:
    names = [{"name": "localhost", "address": "192.0.2.9"}]
    with pytest.raises(apply.Failed, match=r"must be 192\.0\.2\.9") as failed:
        apply.names({"names": names})
    assert failed.value.stage == "dns"
    apply.names({"names": [{"name": "localhost", "address": "127.0.0.1"}]})


def test_a_path_that_swallows_large_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = {"mtu": 1458, "reach": [{"address": "10.9.0.1", "port": 1, "name": "x"}]}
    for passes, fails in (((64, 1458), False), ((64,), True), ((), False)):
        monkeypatch.setattr(apply, "echoed", lambda _to, size, passes=passes: size in passes)
        if not fails:
            apply.path_mtu(bundle)
            continue
        with pytest.raises(apply.Failed, match="1458 bytes") as failed:
            apply.path_mtu(bundle)
        assert failed.value.stage == "mtu"


@pytest.mark.skipif(os.geteuid() != 0, reason="raw sockets are for root")
@pytest.mark.parametrize("size", [64, 1457, 1458])
def test_an_echo_comes_back(size: int) -> None:
    assert apply.echoed("127.0.0.1", size)


@pytest.mark.parametrize(
    ("arrived", "now", "refused"),
    [
        (1000.0, 1005.0, False),
        (1000.0, 1300.0, False),  # it took five minutes from the answer to its reading
        (1300.0, 1001.0, False),  # its clock was set meanwhile
        (1300.0, 1305.0, True),
        (700.0, 705.0, True),
    ],
)
def test_a_slow_machine_is_not_one_whose_clock_is_wrong(
    arrived: float, now: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burst.join.apply.time.time", lambda: now)
    with pytest.raises(apply.Failed) if refused else nullcontext():
        apply.clock({"time": 1000.0}, arrived)
