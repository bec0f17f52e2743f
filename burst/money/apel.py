"""Messages as APEL's SSM sends them: "APEL-individual-job-message: v0.3".

Fields and their order: github.com/apel/apel, apel/db/records/job.py. A record is lines of `Key:
value`, ended by `%%`; a message has at most 1,000 records, as APEL's own clients send them.
`CpuDuration` is mandatory there. We do not see the processor time a job used, only the cores it
held: what is written is the held time, which is never less.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from burst.money.records import JobRecord

HEADER = "APEL-individual-job-message: v0.3"
RECORDS_A_MESSAGE = 1000


def messages(records: Sequence[JobRecord], submit_host: str) -> Iterator[str]:
    """The records as messages; none if there are none."""
    for start in range(0, len(records), RECORDS_A_MESSAGE):
        part = records[start : start + RECORDS_A_MESSAGE]
        yield "\n".join([HEADER, *(_record(record, submit_host) for record in part)]) + "\n"


def _record(record: JobRecord, submit_host: str) -> str:
    fields = {
        "Site": record.site,
        "SubmitHost": submit_host,
        "MachineName": submit_host,
        "Queue": record.pool,
        "LocalJobId": record.job,
        "LocalUserId": record.user,
        "VO": record.tenant,
        "WallDuration": record.wall_seconds,
        "CpuDuration": record.held_seconds,
        "Processors": record.processors,
        "NodeCount": len(record.nodes),
        "StartTime": round(record.started.timestamp()),
        "EndTime": round(record.ended.timestamp()),
        "InfrastructureDescription": f"DVN-{record.provider}",
        "InfrastructureType": "local",
    }
    lines = [f"{key}: {_one_line(str(value))}" for key, value in fields.items() if value != ""]
    return "\n".join([*lines, "%%"])


def _one_line(text: str) -> str:
    """A value is one line, and none may look like the end of a record."""
    return re.sub("%+", "%", " ".join(text.split()))
