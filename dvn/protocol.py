"""What agent and client say to each other: one JSON object a line, over a unix socket.

Request `{"op": "apply", "site": {...}}`; answer `{"ok": true, ...}` or
`{"ok": false, "error": "...", "kind": "spec" | "kernel" | "request", "problems": [...]}`.
"""

from __future__ import annotations

from typing import Any

from dvn.problems import Problem, SpecError

MAX_LINE = 32 * 1024 * 1024  # bytes; 4,000 networks are 2 MiB


def problems_to_json(error: SpecError) -> list[dict[str, Any]]:
    return [
        {"file": p.file, "line": p.line, "what": p.what, "fix": p.fix, "path": list(p.path)}
        for p in error.problems
    ]


def problems_from_json(data: object) -> SpecError:
    problems = []
    for item in data if isinstance(data, list) else ():
        problems.append(
            Problem(
                file=str(item["file"]),
                line=int(item["line"]),
                what=str(item["what"]),
                fix=str(item["fix"]),
                path=tuple(step if isinstance(step, int) else str(step) for step in item["path"]),
            )
        )
    return SpecError(problems)
