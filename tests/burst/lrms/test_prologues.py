"""A sick machine gives its job back: what each prologue ends with, by its batch system's rules."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

WHERE = Path(__file__).parents[3] / "packaging/prologue"

# name: (arguments, environment, status when the machine is sick)
PROLOGUES = {
    "slurm-prolog": ((), {"SLURM_JOB_USER": "root"}, 1),
    "gridengine-prolog": ((), {"SGE_O_LOGNAME": "root"}, 99),
    "openpbs-prologue": (("3.head", "root", "root"), {}, 2),
    "torque-prologue": (("3.head", "root", "root"), {}, 2),
    "lsf-pre-exec": ((), {"LSB_EXEC_USER": "root"}, 1),
}


def run(name: str, conf: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(WHERE / name), *arguments],
        env={
            "PATH": os.environ["PATH"],
            "DVN_NODE_CHECK_CONF": str(conf),
            "DVN_PROLOGUE_DIR": str(WHERE),
            **env,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", PROLOGUES)
def test_a_fit_machine_starts_the_job(name: str, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text(f"# all is well\n\nmount /proc\nwrite {tmp_path}\n")
    arguments, env, _ = PROLOGUES[name]
    done = run(name, conf, *arguments, **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conf"]


@pytest.mark.parametrize("name", PROLOGUES)
def test_a_sick_machine_gives_the_job_back(name: str, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text("mount /no/such/place\n")
    arguments, env, status = PROLOGUES[name]
    done = run(name, conf, *arguments, **env)
    assert done.returncode == status
    assert "/no/such/place is not mounted" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("write /proc", "takes no file"),
        ("reach 127.0.0.1 9", "127.0.0.1 port 9 does not answer"),
        ("munt /home", "munt is not known"),
    ],
)
def test_each_check_names_what_is_wrong(line: str, said: str, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text(f"{line}\n")
    done = run("node-check", conf)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_user_that_is_not_known_here_is_named(tmp_path: Path) -> None:
    done = run("node-check", tmp_path / "none", "no-such-user")
    assert (done.returncode, "user no-such-user is not known" in done.stderr) == (1, True)


def test_condor_is_told_by_an_attribute(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text('mount /no/"such\n')
    sick = run("htcondor-health", conf)
    assert sick.returncode == 0
    assert sick.stdout.splitlines() == [
        "BurstHealthy = False",
        'BurstHealth = "dvn node-check: /no/such is not mounted"',
        "-",
    ]
    conf.write_text("mount /proc\n")
    assert run("htcondor-health", conf).stdout.splitlines()[0] == "BurstHealthy = True"
