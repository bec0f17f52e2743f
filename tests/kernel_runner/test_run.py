"""The entry script: its words, its exit statuses, and the parts of it that touch the system."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from lab.process import wait_for

CHECKOUT = Path(__file__).resolve().parents[2]
RUN = CHECKOUT / "run"


@pytest.fixture(autouse=True)
def as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CI asks of the run that these tests are part of is not meant for the runs they start."""
    monkeypatch.delenv("DVN_TEST_WORKERS", raising=False)


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RUN, *argv], capture_output=True, text=True, timeout=60, check=False)


def _with_functions(text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs shell text that has the script's functions."""
    return subprocess.run(
        ["bash", "-c", f'source "{RUN}"; {text}'],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=dict(os.environ) | env,
        stdin=subprocess.DEVNULL,
    )


def test_help_names_every_command() -> None:
    for argv in (["--help"], ["-h"], []):
        done = _run(*argv)
        assert done.returncode == 0
        for command in ("demo", "test", "bench", "docs", "lab", "dvn", "install"):
            assert f"\n  {command} " in done.stdout
        assert all(len(line) <= 120 for line in done.stdout.splitlines())


def test_an_unknown_command_is_refused() -> None:
    done = _run("tset")
    assert done.returncode == 2
    assert "run: no such command: tset" in done.stderr


def test_no_index_or_mirror_is_named() -> None:
    """Whence packages come is the machine's business: apt's sources, pip's configuration."""
    words = RUN.read_text() + (CHECKOUT / "constraints.txt").read_text()
    assert "://" not in words
    assert "--index-url" not in words


def test_every_constraint_is_one_version() -> None:
    for line in (CHECKOUT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or line.count("==") == 1, line


def test_missing_packages_are_found() -> None:
    done = _with_functions(
        "wanted() { printf '%s\\n' dpkg no-such-package-here bash; }; missing_packages x"
    )
    assert done.stdout.split() == ["no-such-package-here"]


def test_lists_have_no_comments_left() -> None:
    done = _with_functions("wanted apt.txt; wanted apt-vm.txt")
    assert "slurmd" in done.stdout.split()
    assert "qemu-system-x86" in done.stdout.split()
    assert "#" not in done.stdout
    assert all(len(line.split()) == 1 for line in done.stdout.splitlines())


def test_an_ordinary_user_is_told_what_is_missing() -> None:
    done = _with_functions("id() { echo 1000; }; apt_install tini munge")
    assert done.returncode == 2
    assert "these packages are missing: tini munge" in done.stderr
    assert "sudo ./run" in done.stderr


def test_daemons_are_forbidden_only_while_it_runs(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    text = 'forbid_daemons; "$policy" || echo "$?"; allow_daemons'
    done = _with_functions(f"policy={policy}; {text}")
    assert done.stdout == "101\n"
    assert not policy.exists()


def test_a_forgotten_policy_undoes_itself(tmp_path: Path) -> None:
    """As after kill -9: the process it names is gone."""
    policy = tmp_path / "policy-rc.d"
    _with_functions(f"policy={policy}; forbid_daemons")
    assert policy.exists()
    assert subprocess.run([policy], check=False, timeout=10).returncode == 0
    assert not policy.exists()


def test_the_administrators_policy_is_left_alone(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 104\n")
    _with_functions(f"policy={policy}; forbid_daemons; allow_daemons")
    assert policy.read_text() == "#!/bin/sh\nexit 104\n"


@pytest.mark.parametrize(
    "words", [["--report", "r.json", "--plots=p"], ["--report=r.json", "--plots", "p"]]
)
def test_the_demos_files_are_absolute_and_come_back(tmp_path: Path, words: list[str]) -> None:
    shim = tmp_path / "python"
    shim.write_text('#!/bin/sh\necho "$@"\n')
    shim.chmod(0o755)
    done = _with_functions(f"python={shim}; cd {tmp_path}; demo {' '.join(words)} --jobs 30")
    report, plots = tmp_path / "r.json", tmp_path / "p"
    assert done.stdout.split() == [
        *("-m", "lab.kernel", "--output", str(report), "--output", str(plots), "--", str(shim)),
        *("-m", "lab.scenarios.demo", "--report", str(report), "--plots", str(plots)),
        *("--jobs", "30"),
    ]


def test_the_demo_of_another_batch_system_makes_its_tree_first(tmp_path: Path) -> None:
    shim = tmp_path / "python"
    shim.write_text('#!/bin/sh\ncase "$2" in compileall) exit 0;; esac\necho "$@"\n')
    shim.chmod(0o755)
    stubs = f'python={shim}; prepare() {{ echo "trees: $*"; }}'
    for words in ("--lrms htcondor --jobs 3", "--lrms=htcondor --jobs 3"):
        made, ran = _with_functions(f"{stubs}; demo {words}").stdout.splitlines()
        assert made == "trees: htcondor"
        assert ran.endswith("-m lab.scenarios.demo --lrms htcondor --jobs 3")
    (ran,) = _with_functions(f"{stubs}; demo --lrms slurm").stdout.splitlines()
    assert ran.endswith("--lrms slurm"), "the machine's own"


def _shim(tmp_path: Path, fails: str) -> Path:
    """A python that logs its arguments and fails where `fails` is one of them."""
    shim = tmp_path / "python"
    shim.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/log\ncase "$*" in {fails}) exit 1;; esac\nexit 0\n'
    )
    shim.chmod(0o755)
    return shim


@pytest.mark.parametrize(
    ("fails", "status"),
    [
        ("nothing", 0),
        ("*'-m ruff'*", 1),
        ("*'-m mypy'*", 1),
        ("*'not kernel and not whole'*", 1),
        ("*lab.kernel*", 1),
    ],
)
def test_any_failing_part_fails_the_test_run(tmp_path: Path, fails: str, status: int) -> None:
    done = _with_functions(f"python={_shim(tmp_path, fails)}; test_all")
    assert done.returncode == status, done.stderr
    log = (tmp_path / "log").read_text()
    assert "-m pytest -n " in log
    for part in ("kernel and not whole", "whole"):  # a lane runs also when another failed
        words = rf"lab\.kernel --cpus 2 --timeout 1800 -- \S+ inside {part} "
        assert re.search(words, log), log


@pytest.mark.parametrize(
    ("statuses", "status", "tries"),
    [((125, 0), 0, 2), ((125, 1), 1, 2), ((125, 125), 1, 2), ((124,), 1, 1), ((1,), 1, 1)],
)
def test_a_lane_whose_machine_was_lost_runs_once_more(
    tmp_path: Path, statuses: tuple[int, ...], status: int, tries: int
) -> None:
    shim = tmp_path / "python"
    count = tmp_path / "count"
    shim.write_text(
        f'#!/bin/sh\ncase "$*" in *lab.kernel*"not whole"*) echo >> {count};; *) exit 0;; esac\n'
        f"set -- {' '.join(map(str, statuses))}\n"
        f'shift $(($(wc -l < {count}) - 1))\nexit "$1"\n'
    )
    shim.chmod(0o755)
    done = _with_functions(f"python={shim}; test_all")
    assert done.returncode == status, done.stderr
    assert count.read_text().count("\n") == tries
    assert ("was lost" in done.stdout + done.stderr) == (tries == 2)


def test_one_after_another_where_that_is_asked_for(tmp_path: Path) -> None:
    shim = tmp_path / "python"
    log = tmp_path / "log"
    shim.write_text(
        f'#!/bin/sh\necho "+ $@" >> {log}\n/bin/sleep 0.05\necho "- $@" >> {log}\nexit 0\n'
    )
    shim.chmod(0o755)
    done = _with_functions(f"DVN_TEST_WORKERS=1; python={shim}; test_all")
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    assert [line[0] for line in lines] == ["+", "-"] * (len(lines) // 2)
    assert any("-m pytest -n auto" in line for line in lines)
    assert not any("--cpus" in line for line in lines)


def test_an_interrupted_run_leaves_no_lane_behind(tmp_path: Path) -> None:
    shim = tmp_path / "python"
    shim.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec /bin/sleep 1000\n")
    shim.chmod(0o755)
    started = subprocess.Popen(
        ["bash", "-c", f"source {RUN}; python={shim}; compile_ours() {{ :; }}; test_all"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def pids() -> list[int]:
        written = tmp_path / "pids"
        return [int(pid) for pid in written.read_text().split()] if written.exists() else []

    wait_for(lambda: len(pids()) == 3, 20, what="all three lanes at work")
    started.terminate()
    assert started.wait(20) == 143
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids()), 20, what="their end")


def _long(tmp_path: Path, words: str, *, root: bool = True, lacks: bool = True) -> list[str]:
    """What a run with --long starts, on a machine whose kernel lacks something or not."""
    stubs = (
        f"python={_shim(tmp_path, 'nothing')}; compile_ours() {{ :; }}; "
        f"install_for_long() {{ echo installed >> {tmp_path}/log; }}; "
        f"kernel_tool() {{ {'false' if lacks else 'true'}; }}; "
        f"id() {{ echo {0 if root else 1000}; }}"
    )
    done = _with_functions(f"{stubs}; test_all --long {words}")
    assert done.returncode == 0, done.stderr
    first, *lines = (tmp_path / "log").read_text().splitlines()
    assert first == "installed"
    return lines


def test_long_and_marks_reach_all_parts(tmp_path: Path) -> None:
    log = _long(tmp_path, "-m 'whole or x' -k some")
    (pure,) = [line for line in log if "-m pytest -n " in line]
    assert "-m not kernel and not whole and not native  and (whole or x) --long -k some" in pure
    inside = [line for line in log if "lab.kernel" in line]
    assert [line.count("--long -k some") for line in inside] == [1, 1, 1]
    assert not any("not long" in line or "ruff" in line for line in log)


def test_the_long_stories_have_the_machine_for_themselves(tmp_path: Path) -> None:
    log = _long(tmp_path, "")
    (story,) = [line for line in log if " inside whole " in line]
    assert log.index(story) == len(log) - 1, "after all else"
    assert "--cpus" not in story


@pytest.mark.parametrize(("lacks", "where"), [(True, "--uml"), (False, "--here")])
def test_what_computes_much_runs_at_this_machines_speed(
    tmp_path: Path, lacks: bool, where: str
) -> None:
    (line,) = [line for line in _long(tmp_path, "", lacks=lacks) if " inside native " in line]
    assert line.startswith(f"-m lab.kernel {where} -- ")


def test_without_root_there_is_no_lane_for_it(tmp_path: Path) -> None:
    log = _long(tmp_path, "", root=False)
    assert any(" inside kernel " in line for line in log)
    assert not any("native " in line.partition(" inside ")[2] for line in log)


def test_the_kernel_part_reads_only_the_files_it_needs(tmp_path: Path) -> None:
    shim = tmp_path / "python"
    shim.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/log\ncase "$*" in\n'
        '*"collect-only"*"-m whole"*) exit 5;;\n'
        "*collect-only*) echo tests/a/test_x.py: 3; echo tests/test_y.py: 1;;\nesac\n"
    )
    shim.chmod(0o755)
    assert _with_functions(f"python={shim}; test_all").returncode == 0
    (inside,) = [line for line in (tmp_path / "log").read_text().splitlines() if " inside " in line]
    assert "tests/a/test_x.py tests/test_y.py" in inside
    assert inside.count(" inside ") == 1  # no file has a story


def test_a_choice_of_nothing_fails(tmp_path: Path) -> None:
    shim = tmp_path / "python"
    shim.write_text("#!/bin/sh\nexit 5\n")  # pytest's status when nothing was collected
    shim.chmod(0o755)
    done = _with_functions(f"python={shim}; test_all -k misspelt")
    assert done.returncode == 1
    assert "no test was chosen" in done.stderr
