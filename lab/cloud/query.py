"""EC2's query protocol: numbered parameters in, XML out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from lab.cloud import errors


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(action: str, content: str) -> Answer:
    """The success of an action whose result element holds `content`."""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<{action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"<requestId>{uuid4()}</requestId>{content}</{action}Response>"
    )
    return Answer(200, text.encode(), {"Content-Type": "text/xml;charset=UTF-8"})


def listed(params: Mapping[str, str], name: str) -> list[str]:
    """The values of name.1, name.2, ... without repetition."""
    numbered = {
        int(key.rpartition(".")[2]): value
        for key, value in params.items()
        if key.startswith(f"{name}.") and key.rpartition(".")[2].isdigit()
    }
    return list(dict.fromkeys(numbered[n] for n in sorted(numbered)))


def true(text: str | None) -> bool:
    return (text or "").lower() == "true"


def counts(params: Mapping[str, str]) -> tuple[int, int]:
    """MinCount and MaxCount of RunInstances. Raises `ApiError`."""
    try:
        least, most = int(params["MinCount"]), int(params["MaxCount"])
    except (KeyError, ValueError) as error:
        raise errors.invalid(
            "MinCount and MaxCount are needed and must be numbers", "MissingParameter"
        ) from error
    if not 1 <= least <= most:
        raise errors.invalid(
            f"MinCount {least} and MaxCount {most}: both must be at least 1, and MaxCount not "
            "below MinCount"
        )
    return least, most


def with_ports(params: Mapping[str, str]) -> dict[str, str]:
    """Check the rules in a security group request. Raises `ApiError`.

    AWS takes rules of protocol 47, ICMP and the like without ports; moto insists on some. What EC2
    would refuse and moto would not is refused here, before it gets to the packet filter.
    """
    changed = dict(params)
    if not params.get("Action", "").endswith(("SecurityGroupIngress", "SecurityGroupEgress")):
        return changed
    for key, value in params.items():
        if not key.endswith("IpProtocol"):
            continue
        prefix = key.removesuffix("IpProtocol")
        protocol = _PROTOCOLS.get(value.lower(), value)
        if protocol != "-1":
            low, high = _ports(protocol, params, prefix)
            changed |= {f"{prefix}FromPort": str(low), f"{prefix}ToPort": str(high)}
    return changed


_PROTOCOLS = {"6": "tcp", "17": "udp", "1": "icmp", "all": "-1"}


def _ports(protocol: str, params: Mapping[str, str], prefix: str) -> tuple[int, int]:
    texts = (params.get(f"{prefix}FromPort", ""), params.get(f"{prefix}ToPort", ""))
    try:
        low, high = (int(text or "-1") for text in texts)
    except ValueError as error:
        raise errors.invalid(f"Invalid value '{texts}' for portRange.") from error
    if protocol in ("tcp", "udp"):
        if not all(texts):
            raise errors.invalid(
                "Invalid value 'Must specify both from and to ports with TCP/UDP.' for portRange."
            )
        if (low, high) != (-1, -1) and not 0 <= low <= high <= 65535:
            raise errors.invalid(f"TCP/UDP port range {low}-{high} is not within 0-65535")
    elif protocol == "icmp":
        if not (-1 <= low <= 255 and -1 <= high <= 255):
            raise errors.invalid(f"ICMP type {low} or code {high} is out of range")
    elif not (protocol.isdigit() and int(protocol) <= 255):
        raise errors.invalid(
            f"Invalid value '{protocol}' for IP protocol. Unknown protocol. "
            "Use tcp, udp, icmp, a number from 0 to 255, or -1 for all."
        )
    return low, high
