"""The documentation as data: its code blocks, its commands, its links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ("docs/reference/commands.md", "docs/reference/site-file.md")
PROGRAMS = ("dvn", "./run")

# What stands in the documentation for something of the reader's own.
JOB, LEASE = "4711", "1a2b3c4d"

READS = frozenset(
    {
        ("validate",),
        ("plan",),
        ("show",),
        ("history",),
        ("explain",),
        ("addresses",),
        ("doctor",),
        ("graph",),
        ("capture",),
        ("gateway", "status"),
        ("burst", "status"),
        ("burst", "leases"),
        ("burst", "jobs"),
        ("burst", "explain"),
        ("burst", "plan"),
        ("burst", "cost"),
        ("burst", "usage"),
        ("burst", "history"),
        ("burst", "top"),
        ("lab", "attack"),
        ("hosts", "list"),
        ("agent", "status"),
    }
)
CHANGES = frozenset(
    {
        ("apply",),
        ("tunnel", "probe"),
        ("try",),
        ("confirm",),
        ("rollback",),
        ("destroy",),
        ("gateway", "run"),
        ("burst", "drain"),
        ("burst", "flash"),
        ("burst", "resume"),
        ("burst", "mixed"),
        ("burst", "simulate"),  # it can write pictures, and takes too long for a story
        ("hosts", "invite"),
        ("agent", "run"),
    }
)

_FENCE = re.compile(r"^\s*```(\w*)")
_INLINE = re.compile(r"`(dvn [^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Line:
    """One line of a code block; `language` is the fence's, empty for an indented block."""

    page: str
    number: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A `dvn` command of the documentation; `words` are those after `dvn`."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: dvn {shlex.join(self.words)}"

    @property
    def reads_only(self) -> bool:
        """Whether it changes nothing: neither the kernel, nor leases, nor this terminal."""
        return any(self.words[: len(path)] == path for path in READS)

    def arguments(self, *, job: str, lease: str, site: str) -> list[str]:
        """The words after `dvn`, with the reader's job, lease and site file in their places."""
        own = {JOB: job, LEASE: lease}
        return [site if word.endswith(".yaml") else own.get(word, word) for word in self.words]


def pages() -> list[Path]:
    """Every page, README and CHANGELOG too."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_lines(page: Path) -> Iterator[Line]:
    """The lines of fenced and of indented code blocks."""
    language: str | None = None
    indented, blank = False, True
    for number, text in enumerate(page.read_text().splitlines(), start=1):
        fence = _FENCE.match(text)
        if fence is not None:
            language = fence[1] if language is None else None
        elif language is not None:
            yield Line(name_of(page), number, language, text)
        else:
            indented = text.startswith("    ") and (indented or blank)
            blank = not text.strip()
            if indented:
                yield Line(name_of(page), number, "", text[4:])


def shell_words(text: str) -> list[str]:
    """The words of a command line, without a prompt, `sudo` and a comment."""
    words = shlex.split(text.strip().removeprefix("$ "), comments=True)
    return words[1:] if words[:1] == ["sudo"] else words


def shell_lines() -> Iterator[tuple[Line, list[str]]]:
    """Every command line: those in `sh` blocks, and lines of indented ones that are ours."""
    for page in pages():
        if name_of(page) in GENERATED:
            continue
        for line in code_lines(page):
            if line.language not in ("sh", "") or not line.text.strip():
                continue
            if line.language == "" and line.text.split()[0] not in ("sudo", *PROGRAMS):
                continue
            words = shell_words(line.text)
            if words:
                yield line, words


def commands() -> list[Command]:
    """Every `dvn` command in a code block, also those through `./run dvn`."""
    found = []
    for line, words in shell_lines():
        if words[:2] == ["./run", "dvn"]:
            words = words[1:]
        if words[0] == "dvn":
            found.append(Command(line.page, line.number, tuple(words[1:])))
    return found


def inline_commands() -> list[Command]:
    """Every `dvn ...` in running text; arguments may be left out there."""
    found = []
    for page in pages():
        for number, text in enumerate(page.read_text().splitlines(), start=1):
            for code in _INLINE.findall(text):
                found.append(Command(name_of(page), number, tuple(code.split()[1:])))
    return found


def marked_script(page: Path, mark: str) -> str:
    """The lines of the `sh` blocks below `<!-- test: MARK -->`, up to the next heading."""
    below = page.read_text().partition(f"<!-- test: {mark} -->")[2]
    section = re.split(r"^#", below, maxsplit=1, flags=re.MULTILINE)[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )


def links(page: Path) -> Iterator[tuple[str, str]]:
    """(path, anchor) of every link that stays in the checkout."""
    for target in _LINK.findall(page.read_text()):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found = set()
    for text in page.read_text().splitlines():
        if text.startswith("#"):
            title = text.lstrip("#").strip().lower()
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found
