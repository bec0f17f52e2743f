"""Usage records of the Open Grid Forum, format 2.0 (GFD-R-P.204, January 2013), as XML.

Each job is a `UsageRecord` of an identity block, a subject block, a job block and a compute block.
`CpuDuration` is left out: we know what a job held, not what it used. A job whose end nobody saw is
told as completed. The types of values are those of the working group's schema of the elements that
2.0 keeps (`ur_v1.xsd`): a host name that is no domain name (RFC 1034) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from xml.etree import ElementTree as ET

from burst.money.records import JobRecord, instant

NAMESPACE = "http://schema.ogf.org/urf/2013/04/urf"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_NAME = 255
_FORBIDDEN = (*(code for code in range(32) if code not in (9, 10, 13)), 0xFFFE, 0xFFFF)
_CONTROL = dict.fromkeys(_FORBIDDEN)  # no such characters in a document: XML 1.0, section 2.2


def document(records: Sequence[JobRecord], submit_host: str, now: datetime) -> str:
    """All records in one `UsageRecords` document; `now` is their time of creation."""
    ET.register_namespace("urf", NAMESPACE)
    root = ET.Element(_name("UsageRecords"))
    for record in records:
        _record(ET.SubElement(root, _name("UsageRecord")), record, submit_host, now)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _record(parent: ET.Element, record: JobRecord, submit_host: str, now: datetime) -> None:
    began = instant(record.started)
    identity = ET.SubElement(parent, _name("RecordIdentityBlock"))
    _add(identity, "RecordId", f"{record.site}/{record.tenant}/{record.job}/{began}")
    _add(identity, "CreateTime", instant(now))

    subject = ET.SubElement(parent, _name("SubjectIdentityBlock"))
    _add(subject, "LocalUserId", record.user)
    _add(subject, "LocalGroupId", record.account)
    _add(subject, "GlobalGroupId", record.tenant)
    _add(subject, "Site", record.site)
    _add(subject, "Infrastructure", f"DVN-{record.provider}", type="local")

    job = ET.SubElement(parent, _name("JobUsageBlock"))
    _add(job, "LocalJobId", record.job)
    _add(job, "JobName", record.name)
    _add(job, "Queue", record.pool)
    _add(job, "SubmitHost", _domain(submit_host))
    _add(job, "Status", record.outcome or "completed")

    compute = ET.SubElement(parent, _name("ComputeUsageBlock"))
    _add(compute, "WallDuration", f"PT{record.wall_seconds}S")
    _add(compute, "StartTime", began)
    _add(compute, "EndTime", instant(record.ended))
    for node in filter(_domain, record.nodes):
        host = ET.SubElement(compute, _name("ExecutionHost"))
        _add(host, "Hostname", node)
    _add(compute, "Processors", str(record.processors))
    _add(compute, "NodeCount", str(len(record.nodes)))
    _add(compute, "Charge", str(record.charge), unit=record.unit)


def _domain(name: str) -> str:
    """The name, if it is one that a host may have; else nothing."""
    return name if len(name) <= _LONGEST_NAME and _DOMAIN.fullmatch(name) else ""


def _add(parent: ET.Element, name: str, text: str, **attributes: str) -> None:
    if text:
        element = ET.SubElement(parent, _name(name))
        element.text = text.translate(_CONTROL)
        for key, value in attributes.items():
            element.set(_name(key), value)


def _name(local: str) -> str:
    return f"{{{NAMESPACE}}}{local}"
