"""A topology as text for other programs: Mermaid (for Markdown pages) and Graphviz's dot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from dvn.diagnose.drawing import COLOURS
from dvn.diagnose.topology import Segment, State, Topology, TunnelEnd


def mermaid(topology: Topology) -> str:
    """A flowchart (mermaid.js.org)."""
    lines = ["flowchart LR", *_mermaid(topology)]
    for state in State:
        lines.append(f"  classDef {state.value} stroke:{COLOURS[state]},stroke-width:2px")
    return "\n".join(lines) + "\n"


def _mermaid(topology: Topology) -> Iterator[str]:
    for group in topology.groups:
        yield f'  subgraph {_id(group.name)}["tenant {_plain(group.name)}"]'
        for segment in group.segments:
            name = _id(group.name, segment.name)
            words = "<br/>".join(map(_plain, _words(segment)))
            yield f'    {name}[["{words}"]]:::{segment.seen.state.value}'
            for attachment in segment.attachments:
                end = _id(group.name, segment.name, attachment.name)
                label = f"{_plain(attachment.name)}<br/>{_plain(attachment.detail)}"
                yield f'    {end}("{label}"):::{attachment.seen.state.value}'
                yield f"    {end} --- {name}"
        yield "  end"
        for segment in group.segments:
            for tunnel in segment.tunnels:
                end = _id(group.name, "tunnel", tunnel.name)
                label = f"{_plain(tunnel.name)}<br/>{_plain(tunnel.remote)}"
                yield f'  {end}(["{label}"]):::{tunnel.seen.state.value}'
                yield f'  {_id(group.name, segment.name)} -. "{_told(tunnel)}" .- {end}'


def dot(topology: Topology) -> str:
    """A graph for `dot -Tsvg` (graphviz.org)."""
    lines = ["graph dvn {", "  rankdir=LR; node [shape=box, fontname=Helvetica];"]
    for number, group in enumerate(topology.groups):
        lines += [
            f"  subgraph cluster_{number} {{",
            f"    label={_quoted('tenant ' + group.name)};",
        ]
        for segment in group.segments:
            name = _quoted(f"{group.name}/{segment.name}")
            lines.append(f"    {name} [{_dot(chr(10).join(_words(segment)), segment.seen.state)}];")
            for attachment in segment.attachments:
                end = _quoted(f"{group.name}/{segment.name}:{attachment.name}")
                words = f"{attachment.name}\n{attachment.detail}"
                lines.append(f"    {end} [style=rounded, {_dot(words, attachment.seen.state)}];")
                lines.append(f"    {end} -- {name};")
        lines.append("  }")
        for segment in group.segments:
            for tunnel in segment.tunnels:
                end = _quoted(f"{group.name} tunnel {tunnel.name}")
                words = f"{tunnel.name}\n{tunnel.remote}"
                lines.append(f"  {end} [shape=oval, {_dot(words, tunnel.seen.state)}];")
                name = _quoted(f"{group.name}/{segment.name}")
                lines.append(
                    f"  {name} -- {end} [style=dashed, label={_quoted(_told(tunnel))}, "
                    f'color="{COLOURS[tunnel.seen.state]}"];'
                )
    return "\n".join([*lines, "}"]) + "\n"


def _words(segment: Segment) -> tuple[str, ...]:
    nat = (f"outside as {', '.join(segment.nat)}",) if segment.nat else ()
    return (f"{segment.name} ({segment.access})", *segment.prefixes, *nat)


def _told(tunnel: TunnelEnd) -> str:
    state = f", {tunnel.seen.state.value}" if tunnel.seen.state is not State.PLANNED else ""
    return f"{tunnel.transport}{state}"


def _id(*names: str) -> str:
    return "n_" + "__".join(re.sub(r"\W", "_", name) for name in names)


def _plain(text: str) -> str:
    """Without what Mermaid would take for its own."""
    return re.sub(r'["<>&#;\[\]{}|]', " ", text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _dot(words: str, state: State) -> str:
    return f'label={_quoted(words)}, color="{COLOURS[state]}"'
