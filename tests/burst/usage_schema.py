"""What others demand of usage records, as checkers of our own.

UR: the blocks are those of GFD-R-P.204; the types of values are those that the working group's
published schema gives the elements which 2.0 keeps (`ur_v1.xsd`, namespace urf/2003/09, in
github.com/OpenGridForum/redmine_dmsf_files). No XML schema of 2.0 itself was at hand.

APEL: what its loader checks (github.com/apel/apel: `apel/db/records/job.py`, `record.py`,
`apel/db/loader/record_factory.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree as ET

URF = "http://schema.ogf.org/urf/2013/04/urf"

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
TYPES = {  # XML Schema part 2, as far as such values go
    "string": re.compile(r"[^\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]*"),
    "token": re.compile(r"(\S+( \S+)*)?"),  # 3.3.2: no line breaks, no spaces but single inner ones
    "dateTime": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"),
    "duration": re.compile(r"PT\d+(\.\d+)?S"),
    "positiveInteger": re.compile(r"0*[1-9]\d*"),
    "float": re.compile(r"[+-]?\d+(\.\d+)?(E[+-]?\d+)?"),
    "domainName": re.compile(rf"(?=.{{1,255}}$){_LABEL}(\.{_LABEL})*"),
    "status": re.compile("aborted|completed|failed|held|queued|started|suspended"),
}


@dataclass(frozen=True)
class Element:
    type: str  # of `TYPES`; empty: it has elements of its own
    least: int = 0
    most: int | None = 1
    attributes: tuple[str, ...] = ()


BLOCKS: dict[str, dict[str, Element]] = {
    "RecordIdentityBlock": {"RecordId": Element("token", 1), "CreateTime": Element("dateTime", 1)},
    "SubjectIdentityBlock": {
        "LocalUserId": Element("string"),
        "LocalGroupId": Element("string"),
        "GlobalGroupId": Element("string"),
        "Site": Element("token"),
        "Infrastructure": Element("string", attributes=("type",)),
    },
    "JobUsageBlock": {
        "LocalJobId": Element("string"),
        "JobName": Element("string"),
        "Queue": Element("string"),
        "SubmitHost": Element("domainName"),
        "Status": Element("status", 1),
    },
    "ComputeUsageBlock": {
        "WallDuration": Element("duration", 1),
        "StartTime": Element("dateTime", 1),
        "EndTime": Element("dateTime", 1),
        "ExecutionHost": Element("", most=None),
        "Processors": Element("positiveInteger"),
        "NodeCount": Element("positiveInteger"),
        "Charge": Element("float", attributes=("unit",)),
    },
    "ExecutionHost": {"Hostname": Element("domainName", 1)},
}


def wrong_in_ur(text: str) -> list[str]:
    """What is wrong with a document of usage records."""
    root = ET.fromstring(text)
    wrong = [] if root.tag == _name("UsageRecords") else [f"the root is {root.tag}"]
    names = [record.findtext(f".//{_name('RecordId')}") for record in root]
    if len(set(names)) != len(names):
        wrong.append("two records have one RecordId")
    for record in root:
        blocks = [_local(block) for block in record]
        if blocks != [name for name in BLOCKS if name != "ExecutionHost"]:
            wrong.append(f"blocks {blocks}")
        for block in record:
            wrong += _wrong_in_block(block)
    return wrong


def _wrong_in_block(block: ET.Element) -> list[str]:
    known = BLOCKS[_local(block)]
    wrong = []
    for name, element in known.items():
        count = len(block.findall(_name(name)))
        if count < element.least or (element.most is not None and count > element.most):
            wrong.append(f"{count} of {name}")
    for child in block:
        kind = known.get(_local(child))
        if kind is None:
            wrong.append(f"{_local(child)} in {_local(block)}")
        elif not kind.type:
            wrong += _wrong_in_block(child)
        elif not TYPES[kind.type].fullmatch(child.text or ""):
            wrong.append(f"{_local(child)} {child.text!r} is no {kind.type}")
        if kind and {_bare(key) for key in child.attrib} != set(kind.attributes):
            wrong.append(f"attributes {sorted(child.attrib)} of {_local(child)}")
    return wrong


def _name(local: str) -> str:
    return f"{{{URF}}}{local}"


def _bare(tag: str) -> str:
    return tag.removeprefix(f"{{{URF}}}")


def _local(element: ET.Element) -> str:
    return _bare(element.tag)


# -- APEL -----------------------------------------------------------------------------------------

_HEADER = "APEL-individual-job-message"
_FIELDS = (
    "Site", "SubmitHost", "MachineName", "Queue", "LocalJobId", "LocalUserId", "GlobalUserName",
    "FQAN", "VO", "VOGroup", "VORole", "WallDuration", "CpuDuration", "Processors", "NodeCount",
    "StartTime", "EndTime", "InfrastructureDescription", "InfrastructureType", "MemoryReal",
    "MemoryVirtual", "ServiceLevelType", "ServiceLevel",
)  # fmt: skip
_MANDATORY = {"Site", "LocalJobId", "WallDuration", "CpuDuration", "StartTime", "EndTime"}
_NUMBERS = {"WallDuration", "CpuDuration", "Processors", "NodeCount", "StartTime", "EndTime"}
_NULLS = {"none", "null", ""}


def apel_records(message: str) -> list[dict[str, str]]:
    """As its loader reads a message. Raises `ValueError` where that refuses."""
    header, _, body = message.strip().partition("\n")
    if header.partition(":")[0].strip() != _HEADER:
        raise ValueError(f"message type {header!r}")
    return [_record(part) for part in body.strip().split("%%") if part and not part.isspace()]


def _record(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.strip().splitlines():
        key, colon, value = line.partition(":")
        if not colon or key.strip() not in _FIELDS or key.strip() in found:
            raise ValueError(f"line {line!r}")
        found[key.strip()] = value.strip()
    null = {key for key in _MANDATORY if found.get(key, "").lower() in _NULLS}
    if null:
        raise ValueError(f"mandatory: {', '.join(sorted(null))}")
    numbers = {key: int(found[key]) for key in _NUMBERS & set(found)}
    start, end = (datetime.fromtimestamp(numbers[k], UTC) for k in ("StartTime", "EndTime"))
    if end < start or end > datetime.now(UTC) + timedelta(days=2):
        raise ValueError(f"from {start} to {end}")
    if list(found) != [field for field in _FIELDS if field in found]:
        raise ValueError("the order of the lines")
    return found
