"""What the documentation says is so: commands, links, examples, generated pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages
from tests.docs.pages import CHANGES, READS, ROOT, Command

EAGER = {"-h", "--help", "--version", "--install-completion", "--show-completion"}


def commands() -> list[Command]:
    """Each `dvn` command of the documentation once, whatever its site file: for who runs them."""
    found: dict[tuple[str, ...], Command] = {}
    for command in pages.commands():
        words = command.arguments(job=pages.JOB, lease=pages.LEASE, site="site.yaml")
        found.setdefault(tuple(words), command)
    return list(found.values())


@pytest.fixture(scope="module")
def root() -> Any:
    """The command `dvn`, as the command line library sees it."""
    from gateway.cli.main import whole

    return whole()


def descend(root: Any, words: tuple[str, ...]) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """The command that the words lead to, the words that led there, and the rest."""
    command, path = root, words[:0]
    while words and words[0] in getattr(command, "commands", {}):
        command, path, words = command.commands[words[0]], (*path, words[0]), words[1:]
    return command, path, words


def wrong_with(root: Any, command: Command) -> str | None:
    """Why the command line would refuse the command; None if it would not."""
    leaf, path, rest = descend(root, command.words)
    if EAGER & set(rest):
        known = {name for parameter in leaf.params for name in parameter.opts} | {"--help", "-h"}
        return None if set(rest) <= known else f"unknown: {set(rest) - known}"
    if getattr(leaf, "commands", None):
        return f"`dvn {' '.join(path)}` is no whole command"
    try:
        leaf.make_context(" ".join(path), list(rest))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the reader would get
        return f"{type(error).__name__}: {error}"
    return None


def test_there_are_commands_and_every_one_is_right(root: Any) -> None:
    found = pages.commands()
    assert len(found) > 20
    wrong = {str(command): why for command in found if (why := wrong_with(root, command))}
    assert wrong == {}


def test_commands_in_running_text_exist(root: Any) -> None:
    wrong = []
    for command in pages.inline_commands():
        leaf, _path, rest = descend(root, command.words)
        options = {name for parameter in leaf.params for name in parameter.opts} | EAGER
        words = [word for word in rest if word.isalpha() and word.islower()]
        if getattr(leaf, "commands", None) and words:
            wrong.append(str(command))
        wrong += [f"{command}: {w}" for w in rest if w.startswith("-") and w not in options]
    assert wrong == []


@pytest.mark.parametrize(
    "words",
    [("nosuch",), ("burst", "explain"), ("apply", "--nosuch", "site.yaml"), ("burst",)],
    ids=" ".join,
)
def test_the_test_itself_finds_wrong_commands(root: Any, words: tuple[str, ...]) -> None:
    assert wrong_with(root, Command("page.md", 1, words)) is not None


def test_every_command_is_known_to_read_or_to_change() -> None:
    from docs.generate import leaves

    assert {path for path, _ in leaves()} == READS | CHANGES
    assert not READS & CHANGES


def test_who_runs_them_gets_each_once() -> None:
    texts = [" ".join(c.arguments(job="1", lease="ab", site="s")) for c in commands()]
    assert len(set(texts)) == len(texts)
    assert {"validate s", "apply s", "burst explain 1", "burst explain ab"} <= set(texts)


def test_a_reader_puts_in_his_own_names() -> None:
    command = Command("page.md", 1, ("burst", "explain", pages.JOB, "-o", "json"))
    assert command.reads_only
    assert command.arguments(job="12", lease="ab", site="/s.yaml")[2] == "12"
    assert not Command("page.md", 1, ("apply", "site.yaml")).reads_only


def test_every_command_line_is_of_a_program_that_is_tested() -> None:
    tested = {"dvn", "./run", "python3"}
    by_hand = pages.marked_script(ROOT / "docs/tutorial/first-burst.md", "by-hand")
    other = [
        f"{line.page}:{line.number}: {line.text}"
        for line, words in pages.shell_lines()
        if words[0] not in tested and line.text not in by_hand
    ]
    assert other == []


def test_run_knows_its_commands() -> None:
    shown = subprocess.run(
        [str(ROOT / "run"), "--help"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    known = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    used = [(line, words) for line, words in pages.shell_lines() if words[0] == "./run"]
    assert used
    wrong = [line for line, words in used if words[1] not in known | {"--help"}]
    assert wrong == []


def test_the_demo_knows_its_options() -> None:
    argv = [sys.executable, "-m", "lab.scenarios.demo", "--help"]
    shown = subprocess.run(
        argv, check=True, capture_output=True, text=True, timeout=60, cwd=ROOT
    ).stdout
    for line, words in pages.shell_lines():
        if words[:2] == ["./run", "demo"]:
            for word in words[2:]:
                assert not word.startswith("--") or re.search(rf"{word}\b", shown), line


def test_links_lead_somewhere() -> None:
    wrong = []
    for page in pages.pages():
        for path, anchor in pages.links(page):
            target = (page.parent / path) if path else page
            if not target.exists():
                wrong.append(f"{pages.name_of(page)}: {path}")
            elif anchor and anchor not in pages.anchors(target):
                wrong.append(f"{pages.name_of(page)}: {path}#{anchor}")
    assert wrong == []


def test_every_page_can_be_found_from_the_start_page() -> None:
    start = ROOT / "docs/README.md"
    linked = {(start.parent / path).resolve() for path, _ in pages.links(start) if path}
    missing = [p for p in (ROOT / "docs").rglob("*.md") if p != start and p not in linked]
    assert missing == []


def test_generated_pages_are_up_to_date() -> None:
    from docs import generate

    stale = generate.stale()
    assert not stale, f"docs/reference: {stale} are not what the code says; run ./run docs"


def test_stale_pages_are_noticed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from docs import generate

    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    (tmp_path / "commands.md").write_text("old")
    assert generate.main(["--check"]) == 1
    assert (tmp_path / "commands.md").read_text() == "old"
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    assert "commands.md: stale" in capsys.readouterr().out
