"""A topology as SVG: one row a network, its ports to the left, its tunnels to the right.

Plain shapes and text, no script, no font of its own: any browser, printer or rsvg shows it. Health
is told by colour and by a word, the transport by the line and by a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from dvn.diagnose.topology import Attachment, Group, Segment, State, Topology, TunnelEnd

# Okabe and Ito's palette: told apart by colour-blind readers, too.
COLOURS = {
    State.PLANNED: "#8a8f98",
    State.UP: "#009e73",
    State.DEGRADED: "#e69f00",
    State.DOWN: "#d55e00",
}
_INK, _FAINT, _PAPER, _BOX, _TENANT = "#1d2530", "#5b6573", "#ffffff", "#f4f6f9", "#fbfcfe"
_CIPHER = frozenset({"wireguard", "ipsec"})
_FONT = "font-family=\"'DejaVu Sans', Verdana, 'Segoe UI', sans-serif\""
_LEFT, _MIDDLE, _RIGHT = 190, 280, 290  # widths of the columns
_GAP, _MARGIN, _ROW, _BOX_HEIGHT, _HEAD = 90, 24, 56, 46, 34
_NETWORK_HEIGHT = 84


@dataclass(frozen=True)
class _At:
    """Where the columns begin."""

    left: int = _MARGIN * 2
    middle: int = _MARGIN * 2 + _LEFT + _GAP
    right: int = _MARGIN * 2 + _LEFT + _GAP + _MIDDLE + _GAP
    width: int = _MARGIN * 4 + _LEFT + _MIDDLE + _RIGHT + 2 * _GAP


def svg(topology: Topology) -> str:
    """The whole picture."""
    at = _At()
    parts: list[str] = []
    y = 96
    for group in topology.groups:
        drawn, height = _group(group, at, y)
        parts += drawn
        y += height + 18
    if not topology.groups:
        parts.append(_text(at.left, y + 20, "no tenants", _FAINT, 13))
        y += 40
    height = y + 56
    head = [*_header(topology, at), *parts, *_legend(topology, at, y + 14)]
    body = "\n".join(head)
    title = escape(f"Site {topology.site}: tenants, networks, tunnels")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {at.width} {height}" '
        f'width="{at.width}" height="{height}" {_FONT} role="img">\n'
        f"<title>{title}</title>\n"
        f'<rect width="{at.width}" height="{height}" fill="{_PAPER}"/>\n{body}\n</svg>\n'
    )


def _header(topology: Topology, at: _At) -> Iterator[str]:
    yield _text(_MARGIN, 40, f"Site {topology.site}", _INK, 22, bold=True)
    host = f"gateway {topology.host}" if topology.host else "gateway"
    under = f"underlay {topology.underlay}" if topology.underlay else "no underlay"
    looked = "as seen in the kernel" if topology.looked else "as the file says"
    yield _text(_MARGIN, 64, f"{host} · {under} · {looked}", _FAINT, 13)
    for x, words in (
        (at.left, "ports and uplinks"),
        (at.middle, "networks (bridges)"),
        (at.right, "tunnels"),
    ):
        yield _text(x, 86, words.upper(), _FAINT, 10)


def _group(group: Group, at: _At, y: int) -> tuple[list[str], int]:
    """A tenant and its networks; and how high that is."""
    parts: list[str] = []
    inner = y + _HEAD
    for segment in group.segments:
        rows = max(len(segment.attachments), len(segment.tunnels), 1)
        height = max(rows * _ROW, _NETWORK_HEIGHT + 12)
        parts += _segment(segment, at, inner, height)
        inner += height + 8
    if not group.segments:
        parts.append(_text(at.middle, inner + 16, "no networks", _FAINT, 12))
        inner += 30
    height = inner - y + 4
    frame = _rect(_MARGIN, y, at.width - 2 * _MARGIN, height, _TENANT, "#c9d0da", radius=12)
    label = _text(_MARGIN + 16, y + 24, f"tenant {group.name}", _INK, 14, bold=True)
    return [frame, label, *parts], height


def _segment(segment: Segment, at: _At, y: int, height: int) -> Iterator[str]:
    top = y + (height - _NETWORK_HEIGHT) // 2
    middle = top + _NETWORK_HEIGHT // 2
    for index, attachment in enumerate(segment.attachments):
        row = _row(y, height, len(segment.attachments), index)
        yield _curve(at.left + _LEFT, row, at.middle, middle, COLOURS[attachment.seen.state], "")
        yield from _attachment(attachment, at.left, row)
    for index, tunnel in enumerate(segment.tunnels):
        row = _row(y, height, len(segment.tunnels), index)
        dash = "" if tunnel.transport in _CIPHER else "7 4"
        colour = COLOURS[tunnel.seen.state]
        yield _curve(at.middle + _MIDDLE, middle, at.right, row, colour, dash, 3)
        yield from _tunnel(tunnel, at.right, row)
    colour = COLOURS[segment.seen.state]
    words = _said(segment.seen.state, segment.seen.words)
    tip = escape(f"network {segment.name}, bridge {segment.bridge}: {words}")
    yield f"<g><title>{tip}</title>"
    yield _rect(at.middle, top, _MIDDLE, _NETWORK_HEIGHT, _BOX, colour, radius=8, line=2)
    yield _rect(at.middle, top, 6, _NETWORK_HEIGHT, colour, colour, radius=3)
    yield _text(at.middle + 16, top + 22, _cut(segment.name, 20), _INK, 15, bold=True)
    yield _badge(at.middle + _MIDDLE - 12, top + 10, segment.access)
    yield _text(at.middle + 16, top + 41, _cut("  ".join(segment.prefixes), 40), _INK, 11)
    nat = "outside as " + ", ".join(segment.nat) if segment.nat else "no NAT"
    yield _text(at.middle + 16, top + 57, _cut(nat, 40), _FAINT, 11)
    yield _text(at.middle + 16, top + 73, _cut(f"{segment.bridge} · {words}", 40), _FAINT, 11)
    yield "</g>"


def _attachment(attachment: Attachment, x: int, row: int) -> Iterator[str]:
    colour = COLOURS[attachment.seen.state]
    words = _said(attachment.seen.state, attachment.seen.words)
    top = row - _BOX_HEIGHT // 2
    kind = "uplink" if attachment.is_uplink else "port"
    yield f"<g><title>{escape(f'{kind} {attachment.name}: {words}')}</title>"
    radius = 4 if attachment.is_uplink else 18
    yield _rect(x, top, _LEFT, _BOX_HEIGHT, _PAPER, colour, radius=radius, line=2)
    yield _text(x + 14, top + 19, _cut(f"{kind} {attachment.name}", 25), _INK, 12, bold=True)
    yield _text(x + 14, top + 35, _cut(attachment.detail, 28), _FAINT, 10)
    yield _mark(x + _LEFT - 14, row, colour)
    yield "</g>"


def _tunnel(tunnel: TunnelEnd, x: int, row: int) -> Iterator[str]:
    colour = COLOURS[tunnel.seen.state]
    words = _said(tunnel.seen.state, tunnel.seen.words)
    top = row - _BOX_HEIGHT // 2
    whose = "lease" if tunnel.leased else "tunnel"
    name = f"{whose} {tunnel.name} → {tunnel.remote}"
    yield f"<g><title>{escape(f'{whose} {tunnel.name} to {tunnel.remote}: {words}')}</title>"
    yield _rect(x, top, _RIGHT, _BOX_HEIGHT, _PAPER, colour, radius=8, line=2)
    yield _text(x + 14, top + 19, _cut(name, 36), _INK, 12, bold=True)
    detail = f"{tunnel.transport} · {words}"
    yield _text(x + 14, top + 35, _cut(detail, 45), _FAINT, 10)
    yield _mark(x + _RIGHT - 14, row, colour)
    yield "</g>"


def _legend(topology: Topology, at: _At, y: int) -> Iterator[str]:
    x = _MARGIN
    shown = [s for s in State if s in topology.states()] or [State.PLANNED]
    for state in shown:
        yield _mark(x + 6, y + 12, COLOURS[state])
        count = topology.states().get(state, 0)
        yield _text(x + 18, y + 16, f"{state.value} ({count})", _INK, 11)
        x += 110
    for dash, words in (("", "encrypted"), ("7 4", "not encrypted")):
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        yield (
            f'<line x1="{x}" y1="{y + 12}" x2="{x + 34}" y2="{y + 12}" stroke="{_FAINT}" '
            f'stroke-width="3"{dashes}/>'
        )
        yield _text(x + 42, y + 16, f"tunnel, {words}", _INK, 11)
        x += 180


def _said(state: State, words: str) -> str:
    return f"{state.value}: {words}" if words else state.value


def _row(y: int, height: int, count: int, index: int) -> int:
    """The middle of one of `count` boxes beside each other's heads, centred in the height."""
    return y + height // 2 + int((index - (count - 1) / 2) * _ROW)


def _rect(
    x: int, y: int, width: int, height: int, fill: str, stroke: str, *, radius: int, line: int = 1
) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="{line}"/>'
    )


def _curve(x1: int, y1: int, x2: int, y2: int, colour: str, dash: str, width: int = 2) -> str:
    bend = (x2 - x1) // 2
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}" fill="none" '
        f'stroke="{colour}" stroke-width="{width}"{dashes}/>'
    )


def _mark(x: int, y: int, colour: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>'


def _badge(right: int, y: int, words: str) -> str:
    width = len(words) * 7 + 14
    colour = "#0072b2" if words == "open" else _FAINT
    return (
        f'<rect x="{right - width}" y="{y}" width="{width}" height="17" rx="8" fill="none" '
        f'stroke="{colour}"/>' + _text(right - width + 8, y + 12, words, colour, 10)
    )


def _text(x: int, y: int, words: str, colour: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f"<text x={quoteattr(str(x))} y={quoteattr(str(y))} fill={quoteattr(colour)} "
        f'font-size="{size}"{weight}>{escape(words)}</text>'
    )


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"
