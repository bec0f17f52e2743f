"""Pictures of a story as plain SVG: when and where each job ran, and what the lab looks like.

Hand-written SVG because a plotting library costs more to import on a slow machine than the rest
of the report to make.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from xml.sax.saxutils import escape

from lab.scenarios.report import JobRow, LeaseRow, Report

_LOCAL, _REMOTE, _WAIT, _BOOT, _TUNNEL, _JOINED = (
    "#4c78a8", "#f58518", "#d9d9d9", "#e7cfa9", "#c5b0d5", "#dff0d8",
)  # fmt: skip
_ROW, _LEFT, _WIDTH, _TOP = 15, 235, 860, 46


@dataclass(frozen=True, slots=True)
class _Scale:
    start: datetime
    seconds: float

    def x(self, moment: datetime) -> float:
        share = (moment - self.start).total_seconds() / self.seconds
        return _LEFT + min(max(share, 0.0), 1.0) * _WIDTH


def timeline(report: Report) -> str:
    """A row for each job (waiting, running) and each lease (booting, tunnelled, joined)."""
    moments = [m for job in report.jobs for m in (job.submitted, job.started, job.ended) if m]
    moments += [m for lease in report.leases for m in (lease.requested, lease.terminated) if m]
    if not moments:
        return _svg(400, 40, [_text(10, 25, "nothing happened")])
    start = min(moments)
    scale = _Scale(start, max((max(moments) - start).total_seconds(), 1.0))
    rows = len(report.jobs) + len(report.leases) + 1
    height = _TOP + rows * _ROW + 30
    parts = [*_legend(), *_axis(scale, height)]
    y = _TOP
    for job in report.jobs:
        parts.extend(_job_row(job, scale, y))
        y += _ROW
    y += _ROW
    for lease in report.leases:
        parts.extend(_lease_row(lease, scale, y))
        y += _ROW
    return _svg(_LEFT + _WIDTH + 20, height, parts)


def _job_row(job: JobRow, scale: _Scale, y: int) -> list[str]:
    parts = [_text(8, y + 11, f"job {job.id} on {job.node or '?'}")]
    if job.started:
        parts.append(_bar(scale.x(job.submitted), scale.x(job.started), y, _WAIT, "waiting"))
        if job.ended:
            colour = _REMOTE if job.where == "remote" else _LOCAL
            title = f"job {job.id} {job.state} on {job.node}"
            parts.append(_bar(scale.x(job.started), scale.x(job.ended), y, colour, title))
    return parts


def _lease_row(lease: LeaseRow, scale: _Scale, y: int) -> list[str]:
    steps = [
        (lease.requested, _BOOT, "requested, booting"),
        (lease.tunnelled, _TUNNEL, "tunnel up, joining"),
        (lease.joined, _JOINED, "in the batch system"),
        (lease.left, _WAIT, "left, being returned"),
        (lease.terminated, "", ""),
    ]
    seen = [(moment, colour, title) for moment, colour, title in steps if moment is not None]
    parts = [_text(8, y + 11, f"lease {lease.id[:8]} {lease.machine}")]
    for (begin, colour, title), (end, _, _) in itertools.pairwise(seen):
        if colour:
            parts.append(_bar(scale.x(begin), scale.x(end), y, colour, title))
    return parts


def _legend() -> list[str]:
    parts, x = [], 8
    for colour, words in (
        (_WAIT, "waiting"), (_LOCAL, "runs on the farm"), (_REMOTE, "runs on a borrowed machine"),
        (_BOOT, "machine boots"), (_TUNNEL, "tunnel up"), (_JOINED, "machine in the farm"),
    ):  # fmt: skip
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 16, 18, words))
        x += 34 + 6 * len(words)
    return parts


def _axis(scale: _Scale, height: int) -> list[str]:
    step = next((s for s in (5, 10, 20, 30, 60, 120, 300, 600) if scale.seconds / s <= 12), 3600)
    parts = []
    for tick in range(0, int(scale.seconds) + 1, step):
        x = _LEFT + tick / scale.seconds * _WIDTH
        parts.append(f'<path d="M{x:.1f} {_TOP - 6}V{height - 20}" stroke="#eee"/>')
        parts.append(_text(x - 6, height - 6, f"{tick} s"))
    return parts


@dataclass(frozen=True, slots=True)
class Box:
    """A host in the topology picture; x and y count columns and rows of a grid."""

    name: str
    note: str
    x: int
    y: int
    colour: str = "#eef3f8"


@dataclass(frozen=True, slots=True)
class Wire:
    a: str
    b: str
    label: str = ""
    tunnel: bool = False


def topology(boxes: tuple[Box, ...], wires: tuple[Wire, ...]) -> str:
    """Boxes on a grid, links as solid and tunnels as dashed lines."""
    place = {box.name: box for box in boxes}
    if len(place) != len(boxes):
        raise ValueError("two boxes of one name in the topology picture")
    dx, dy, w, h = 240, 92, 180, 50
    parts: list[str] = []
    for wire in wires:
        a, b = place[wire.a], place[wire.b]
        x1, y1 = 20 + a.x * dx + w / 2, 20 + a.y * dy + h / 2
        x2, y2 = 20 + b.x * dx + w / 2, 20 + b.y * dy + h / 2
        style = (
            f'stroke="{_REMOTE}" stroke-width="2.5" stroke-dasharray="7 4"'
            if wire.tunnel
            else 'stroke="#8899aa" stroke-width="1.5"'
        )
        if wire.tunnel:  # bent, so that it is not hidden by the links it runs over
            middle = f"Q{(x1 + x2) / 2:.0f} {max(y1, y2) + 60:.0f} {x2:.0f} {y2:.0f}"
            parts.append(f'<path d="M{x1:.0f} {y1:.0f}{middle}" fill="none" {style}/>')
        else:
            parts.append(f'<path d="M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}" {style}/>')
            parts.append(_text((x1 + x2) / 2 - 3 * len(wire.label), (y1 + y2) / 2 - 4, wire.label))
    for box in boxes:
        x, y = 20 + box.x * dx, 20 + box.y * dy
        parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{box.colour}" '
            'stroke="#667788"/>'
        )
        parts.append(_text(x + 8, y + 20, box.name, bold=True))
        parts.append(_text(x + 8, y + 38, box.note))
    columns = max((box.x for box in boxes), default=0) + 1
    lines = max((box.y for box in boxes), default=0) + 1
    return _svg(columns * dx + 20, lines * dy + 60, parts)


def _bar(x1: float, x2: float, y: int, colour: str, title: str) -> str:
    return (
        f'<rect x="{x1:.1f}" y="{y + 2}" width="{max(x2 - x1, 1):.1f}" height="{_ROW - 4}" '
        f'fill="{colour}"><title>{escape(title)}</title></rect>'
    )


def _text(x: float, y: float, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}"{weight}>{escape(words)}</text>'


def _svg(width: float, height: float, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        'font-family="sans-serif" font-size="11">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
