"""What the Slurm bundle holds, from the site's own files."""

from __future__ import annotations

import pwd
from datetime import timedelta
from pathlib import Path

import pytest

from burst.join.bundle import BundleError, File, Mount
from burst.join.slurm import SlurmJoin
from burst.join.userdata import JoinGateway, user_data
from burst.policy.which import usable_memory_mb
from tests.burst.join_sandbox import LEASE

KEY = bytes(range(128))
CONF = r"""
ClusterName=lab
slurmctldhost=head(10.9.0.10)   # the address in the tenant network
SlurmctldPort=6817-6818
SlurmdLogFile=/var/log/slurm/slurmd.%n.log
SlurmdSpoolDir=/var/spool/slurmd/%n
NodeName=wn1 \
   CPUs=1
"""


@pytest.fixture
def join(tmp_path: Path) -> SlurmJoin:
    (tmp_path / "munge.key").write_bytes(KEY)
    (tmp_path / "slurm.conf").write_text(CONF)
    (tmp_path / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
    return SlurmJoin(
        munge_key=tmp_path / "munge.key",
        slurm_conf=tmp_path / "slurm.conf",
        job_users=("nobody",),
        mounts=(Mount.parse("10.9.0.10:/home /home nfs4"), Mount.parse("tmpfs /scratch tmpfs")),
        resolve=lambda _name: "10.9.0.20",
    )


def rewrite(join: SlurmJoin, conf: str) -> None:
    join.slurm_conf.write_text(conf)


class TestSlurmJoin:
    def test_the_files(self, join: SlurmJoin) -> None:
        files = {file.path: file for file in join.bundle(LEASE, ["burst-cms"]).files}

        key = files["/etc/munge/munge.key"]
        assert (key.content, key.mode, key.owner) == (KEY, 0o400, "munge:munge")
        assert files["/etc/slurm/slurm.conf"].content.decode() == CONF
        assert files["/etc/slurm/cgroup.conf"].content == b"IgnoreSystemd=yes\n"
        assert files["/etc/hosts"] == File(
            "/etc/hosts", b"10.9.0.101 cms-aws-5f5f5f5f\n10.9.0.10 head\n", merge=True
        )
        assert len(files) == 4

    def test_slurmd_starts_as_a_dynamic_node(self, join: SlurmJoin) -> None:
        bundle = join.bundle(LEASE, ["burst-cms", "dvn"])

        assert [command.name for command in bundle.commands] == [
            "hostname", "munged", "munge", "cgroup", "slurmd",
        ]  # fmt: skip
        assert bundle.commands[-1].argv == (
            "slurmd", "-Z", "-N", "cms-aws-5f5f5f5f", "--conf",
            "NodeAddr=10.9.0.101 CPUs=2 RealMemory={memory_mb} Feature=burst-cms,dvn",
        )  # fmt: skip
        assert bundle.memory_mb == usable_memory_mb(4096)

    def test_directories_follow_the_configuration(self, join: SlurmJoin) -> None:
        directories = {d.path: (d.mode, d.owner) for d in join.bundle(LEASE, []).directories}

        assert directories["/run/munge"] == (0o755, "munge:munge")
        assert directories["/var/log/slurm"] == (0o755, "root")
        assert directories["/var/spool/slurmd/cms-aws-5f5f5f5f"] == (0o755, "root")

    def test_what_must_answer_before_anything_starts(self, join: SlurmJoin) -> None:
        reach = join.bundle(LEASE, []).reach

        assert [(each.address, each.port) for each in reach] == [
            ("10.9.0.10", 6817),
            ("10.9.0.10", 2049),
        ]

    def test_mounts_work_with_and_without_the_helper(self, join: SlurmJoin) -> None:
        nfs, scratch = join.bundle(LEASE, []).mounts

        assert "hard" in nfs.options.split(",")
        assert nfs.bare_options == nfs.options + ",addr=10.9.0.10,clientaddr=10.9.0.101"
        assert (scratch.options, scratch.bare_options) == ("", "")

    def test_accounts_are_the_gateways_own(self, join: SlurmJoin) -> None:
        bundle = join.bundle(LEASE, [])
        entry = pwd.getpwnam("nobody")

        assert [(user.name, user.uid, user.gid) for user in bundle.users] == [
            ("nobody", entry.pw_uid, entry.pw_gid)
        ]
        assert [group.gid for group in bundle.groups] == [entry.pw_gid]

    def test_a_head_by_name_is_looked_up(self, join: SlurmJoin) -> None:
        rewrite(join, "SlurmctldHost=head\n")

        assert join.bundle(LEASE, []).reach[0].address == "10.9.0.20"

    def test_user_data_knows_nothing_of_all_this(self, join: SlurmJoin) -> None:
        gateway = JoinGateway(
            "198.51.100.1", "https://198.51.100.1:8443", "sha256//" + "A" * 43 + "=", 24,
            watchdog=timedelta(minutes=2),
        )  # fmt: skip
        script = user_data(LEASE, gateway, "t" * 64)

        for secret in (KEY.hex(), "munge", "slurm", "6817"):
            assert secret not in script


class TestWhatIsMissing:
    def test_a_key_that_cannot_be_read(self, join: SlurmJoin) -> None:
        join.munge_key.unlink()

        with pytest.raises(BundleError, match=r"munge\.key: No such file.*burst\.lrms\.munge_key"):
            join.bundle(LEASE, [])

    def test_a_key_that_is_none(self, join: SlurmJoin) -> None:
        join.munge_key.write_bytes(b"short")

        with pytest.raises(BundleError, match=r"5 bytes are no munge key \(32 to 1024\)"):
            join.bundle(LEASE, [])

    def test_a_user_nobody_knows(self, join: SlurmJoin) -> None:
        rewrite(join, CONF + "SlurmUser=no-such-user\n")

        with pytest.raises(BundleError, match=r"user no-such-user .* not known on the gateway"):
            join.bundle(LEASE, [])

    def test_no_head(self, join: SlurmJoin) -> None:
        rewrite(join, "ClusterName=x\n")

        with pytest.raises(BundleError, match="no SlurmctldHost"):
            join.bundle(LEASE, [])

    def test_a_head_without_an_address(self, tmp_path: Path, join: SlurmJoin) -> None:
        def unknown(_name: str) -> str:
            raise OSError("Name or service not known")

        lost = SlurmJoin(join.munge_key, join.slurm_conf, resolve=unknown)
        rewrite(join, "SlurmctldHost=head\n")

        with pytest.raises(BundleError, match=r"write SlurmctldHost=head\(ADDRESS\)"):
            lost.bundle(LEASE, [])

    @pytest.mark.parametrize("text", ["", "x", "a b", "src relative nfs4", "a /b c d e"])
    def test_a_mount_that_is_no_fstab_line(self, text: str) -> None:
        with pytest.raises(BundleError, match="write it as in fstab"):
            Mount.parse(text)
