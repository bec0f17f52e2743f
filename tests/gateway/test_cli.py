"""The command line: help, completion, JSON, and what it says when there is no daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.sitefile import SiteFile
from tests.gateway.fake_daemon import write_site
from tests.gateway.test_daemon import running, wait_for
from tests.gateway.world import World

ROOT = Path(__file__).parents[2]
# Not pydantic: typer itself loads it when it reads the parameters of a command.
HEAVY = (
    "yaml",
    "boto3",
    "sqlalchemy",
    "alembic",
    "fastapi",
    "uvicorn",
    "cryptography",
    "burst",
    "dvn",
)
SHELLS = ("bash", "zsh", "fish")

# The whole of what a user can type: a change here is a change of the interface.
COMMANDS = {
    (): {
        "validate",
        "plan",
        "apply",
        "try",
        "confirm",
        "history",
        "rollback",
        "show",
        "addresses",
        "explain",
        "doctor",
        "graph",
        "capture",
        "destroy",
        "tunnel",
        "gateway",
        "burst",
        "hosts",
        "agent",
    },
    ("hosts",): {"list", "invite"},
    ("agent",): {"run", "status"},
    ("tunnel",): {"probe"},
    ("gateway",): {"run", "status"},
    ("burst",): {
        "simulate",
        "status",
        "leases",
        "jobs",
        "explain",
        "drain",
        "resume",
        "plan",
        "cost",
        "usage",
        "history",
        "flash",
        "top",
        "mixed",
    },
}
WITHOUT_JSON = {("gateway", "run"), ("agent", "run"), ("capture",)}


def tree(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from tree(child, (*path, name))


ROOT_COMMAND = typer.main.get_command(app)
EVERY = list(tree(ROOT_COMMAND))
LEAVES = [path for path, command in EVERY if not getattr(command, "commands", None)]


def test_the_commands_are_these() -> None:
    found = {path: set(c.commands) for path, c in EVERY if getattr(c, "commands", None)}
    assert found == COMMANDS


@pytest.mark.parametrize("path", [path for path, _ in EVERY], ids=" ".join)
def test_help_of_every_command_reads_well(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="dvn", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert f"Usage: dvn {' '.join(path)}".strip() in result.output
    command = dict(EVERY)[path]
    assert command.help
    assert command.help.strip().split("\n")[0].rstrip().endswith((".", ","))
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{path} {parameter.name} has no help"
    short = CliRunner().invoke(app, [*path, "-h"], prog_name="dvn", env={"COLUMNS": "80"})
    assert short.output == result.output


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_speaks_json(path: tuple[str, ...]) -> None:
    options = {name for p in dict(EVERY)[path].params for name in p.opts}
    assert ("-o" in options) == (path not in WITHOUT_JSON)


@pytest.mark.parametrize("arguments", [["--help"], ["burst", "leases", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom gateway.cli.main import app\n"
        f"try:\n    app({arguments!r}, prog_name='dvn')\nexcept SystemExit:\n    pass\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_a_script(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway"],
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"_DVN_COMPLETE": f"source_{shell}", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "_DVN_COMPLETE" in done.stdout
    assert "dvn" in done.stdout


def test_completion_knows_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway"],
        check=False,
        timeout=60,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "_DVN_COMPLETE": "complete_bash",
            "COMP_WORDS": "dvn burst ",
            "COMP_CWORD": "2",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert set(done.stdout.split()) >= COMMANDS["burst",]


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("dvn ")


ASKING = [
    ["gateway", "status"],
    ["burst", "status"],
    ["burst", "leases"],
    ["burst", "leases", "--all"],
    ["burst", "jobs"],
    ["burst", "jobs", "--all"],
    ["burst", "plan"],
    ["burst", "explain", "100"],
    ["burst", "explain", "cms-aws"],
    ["burst", "cost", "--by", "job"],
    ["burst", "usage"],
    ["burst", "history"],
    ["burst", "history", "--events"],
    ["burst", "flash"],
    ["burst", "flash", "--cores", "4", "--for", "1h", "--tenant", "cms", "--quote"],
    ["burst", "top"],
    ["burst", "drain", "--all"],
    ["burst", "resume"],
    ["burst", "mixed", "farm-hv"],
    ["burst", "mixed", "farm-hv", "off"],
]


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_without_a_daemon_there_is_one_clear_message(arguments: list[str], tmp_path: Path) -> None:
    socket = str(tmp_path / "gateway.sock")
    result = CliRunner().invoke(app, [*arguments, "--socket", socket])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"dvn: no daemon answers on {socket}: start it with `dvn gateway run SITEFILE`, or give "
        "its socket with --socket or DVN_SOCKET\n"
    )


def assert_refused(stdout: str, stderr: str) -> None:
    """Programs read the same message as people."""
    answer = json.loads(stdout)
    assert answer["ok"] is False
    assert stderr == f"dvn: {answer['error']}\n"


@pytest.mark.parametrize("arguments", ASKING, ids=" ".join)
def test_a_failure_is_json_too(arguments: list[str], tmp_path: Path) -> None:
    socket = str(tmp_path / "gateway.sock")
    result = CliRunner().invoke(app, [*arguments, "--socket", socket, "-o", "json"])
    assert result.exit_code == 1
    assert_refused(result.stdout, result.stderr)
    result = CliRunner().invoke(app, ["burst", "drain", "-o", "json"])
    assert result.exit_code == 2
    assert_refused(result.stdout, result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [["burst", "drain"], ["burst", "drain", "x", "--all"], ["burst", "nosuch"], ["nosuch"]],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteFile]:
    """A daemon in the middle of a burst."""
    directory = tmp_path_factory.mktemp("cli")
    world = World(directory / "world.json")
    world.begin(local_nodes=2, jobs=12, seconds=600)
    site = write_site(directory)
    with running(site, world) as made:
        wait_for("a joined machine", lambda: made.view.status().leases.get("joined"))
        yield site


@pytest.mark.parametrize("arguments", ASKING[:-2], ids=" ".join)
def test_json_is_json_and_text_is_text(arguments: list[str], daemon: SiteFile) -> None:
    where = ["--socket", daemon.gateway.socket]
    result = CliRunner().invoke(app, [*arguments, *where, "-o", "json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) is not None
    text = CliRunner().invoke(app, [*arguments, *where])
    assert text.exit_code == 0, text.output
    assert text.stdout.strip()
    assert "\x1b" not in text.stdout, "no colours into a pipe"


def test_what_the_tables_say(daemon: SiteFile) -> None:
    where = ["--socket", daemon.gateway.socket]
    leases = json.loads(CliRunner().invoke(app, ["burst", "leases", *where, "-o", "json"]).stdout)
    shown = CliRunner().invoke(app, ["burst", "leases", *where]).stdout
    for lease in leases:
        assert lease["id"][:8] in shown
        told = CliRunner().invoke(app, ["burst", "explain", lease["node"], *where])
        assert told.stdout.startswith(f"Lease {lease['id']}")
    assert "cms-aws" in CliRunner().invoke(app, ["burst", "status", *where]).stdout
    status = CliRunner().invoke(app, ["gateway", "status", *where]).stdout
    assert "lrms" in status
    assert "answers" in status


def test_an_unknown_subject_is_said_so(daemon: SiteFile) -> None:
    where = ["--socket", daemon.gateway.socket]
    result = CliRunner().invoke(app, ["burst", "explain", "nosuch", *where])
    assert result.exit_code == 1
    assert "no job 'nosuch'" in result.stderr
    assert "no pool 'nosuch'" in result.stderr
    assert "no lease 'nosuch'" in result.stderr
    result = CliRunner().invoke(app, ["burst", "drain", "nosuch", *where, "-o", "json"])
    assert result.exit_code == 1
    assert "no lease 'nosuch'" in result.stderr
    assert_refused(result.stdout, result.stderr)


def test_a_client_that_comes_early_waits(tmp_path: Path) -> None:
    """The socket is there before the API's libraries are loaded."""
    world = World(tmp_path / "world.json")
    world.begin(local_nodes=1, jobs=0, seconds=1)
    site = write_site(tmp_path)
    answers: list[int] = []

    def ask() -> None:
        result = CliRunner().invoke(app, ["burst", "jobs", "--socket", site.gateway.socket])
        answers.append(result.exit_code)

    with running(site, world):
        wait_for("the socket", Path(site.gateway.socket).exists)
        client = threading.Thread(target=ask)
        client.start()
        client.join(30)
    assert answers == [0]
