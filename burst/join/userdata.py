"""What a borrowed machine runs at its first boot: a shell script, rendered for one lease.

It needs bash, curl, iproute2, util-linux and python3 (3.9), which the cloud images of Debian,
Ubuntu and Amazon Linux have. It holds no lasting secret: user data can be read by anybody who can
ask the metadata service; the one-time token is used up when jobs come.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from burst.model import Lease

SIZE_LIMIT = 16384  # bytes, before base64: EC2 user guide, "Work with instance user data"
DEVICE = "dvn0"
TUNNEL_MTU = 1458  # gretap with a key on a path of 1500
METADATA_URL = "http://169.254.169.254"

_URL = re.compile(r"https?://[0-9A-Za-z.\[\]:-]+")
_PIN = re.compile(r"sha256//[0-9A-Za-z+/]{43}=")
_TOKEN = re.compile(r"[0-9A-Za-z._-]{32,160}")
_NODE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, section 2.1
_LEASE = re.compile(r"[0-9A-Za-z-]{1,64}")


class UserDataError(Exception):
    """A value that may not go into user data: which, and why. The message is for people."""


@dataclass(frozen=True, slots=True)
class JoinGateway:
    """What all machines of one tenant network are told of the gateway."""

    address: str  # its public underlay address: the far end of the tunnel
    enrol_url: str
    pin: str  # curl's --pinnedpubkey
    prefix_length: int  # of the tenant network
    mtu: int = TUNNEL_MTU  # of the tunnel device; the most of an interface that is `attached`
    heartbeat: timedelta = timedelta(seconds=30)
    watchdog: timedelta = timedelta(minutes=15)  # without a word from the gateway: power off
    metadata_url: str = METADATA_URL
    attached: bool = False  # the machine is in the network itself: `address` is the gateway's there
    root: str = ""  # put before every path the machine writes; for tests


def user_data(lease: Lease, gateway: JoinGateway, token: str) -> str:
    """The script for one lease, or for all of its batch: the same text whenever it is asked for.
    `token` is the lease's, or the batch's.

    That matters: EC2 recognises a repeated RunInstances only with identical parameters.
    Raises `UserDataError`.
    """
    settings = {
        **_own(lease, token),
        "GATEWAY": _address("the gateway's address", gateway.address),
        "DEVICE": DEVICE,
        "MTU": str(_between("the tunnel's MTU", 1280, 9216, gateway.mtu)),
        "PREFIX_LENGTH": str(_between("the prefix length", 1, 32, gateway.prefix_length)),
        "ENROL_URL": _matching("the enrolment URL", _URL, gateway.enrol_url),
        "PIN": _matching("the pin", _PIN, gateway.pin),
        "METADATA": _matching("the metadata URL", _URL, gateway.metadata_url),
        "HEARTBEAT": str(_seconds("the heartbeat", gateway.heartbeat)),
        "WATCHDOG": str(_seconds("the watchdog's time", gateway.watchdog)),
        "ATTACHED": "yes" if gateway.attached else "",
        "ROOT": gateway.root,
    }
    head = "#!/bin/bash\n# Makes this machine a node of a batch farm elsewhere, for one lease.\n"
    lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    script = head + lines + "\n" + _body()
    size = len(script.encode())
    if size > SIZE_LIMIT:
        raise UserDataError(f"user data of {size} bytes: EC2 takes {SIZE_LIMIT}")
    return script


def _own(lease: Lease, token: str) -> dict[str, str]:
    """What distinguishes this machine; those of a batch are alike, and ask who they are."""
    if lease.batch:
        token = _matching("the batch's token", _TOKEN, token)
        return dict.fromkeys(("LEASE", "NODE", "KEY", "MAC", "ADDRESS", "TOKEN"), "") | {
            "BATCH": token
        }
    inner = _address("the lease's address", lease.address)
    return {
        "LEASE": _matching("the lease's id", _LEASE, lease.id),
        "NODE": _matching("the node's name", _NODE, lease.node),
        "KEY": str(_between("the GRE key", 1, 2**32 - 1, lease.gre_key)),
        "MAC": inner_mac(inner),
        "ADDRESS": inner,
        "TOKEN": _matching("the token", _TOKEN, token),
        "BATCH": "",
    }


def inner_mac(address: str) -> str:
    """The MAC of the tunnel device of the machine with this inner IPv4 address.

    Fixed by the address: who gets an address again later is not mistaken for its predecessor by
    the neighbours' ARP caches, and the gateway knows the one MAC to let through. The first octet
    says "locally administered, unicast" (IEEE 802-2014, section 8.4).
    """
    return ":".join(f"{octet:02x}" for octet in b"\x02\x00" + ipaddress.IPv4Address(address).packed)


def _body() -> str:
    return Path(__file__).with_name("join.sh").read_text(encoding="utf-8")


def _address(what: str, value: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError as error:
        raise UserDataError(f"{what} {value!r}: an IPv4 address is needed") from error


def _matching(what: str, pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise UserDataError(f"{what} {value!r}: does not have the form {pattern.pattern}")
    return value


def _between(what: str, least: int, most: int, value: int) -> int:
    if not least <= value <= most:
        raise UserDataError(f"{what} {value}: must be between {least} and {most}")
    return value


def _seconds(what: str, value: timedelta) -> int:
    return _between(what + " in seconds", 1, 86400, round(value.total_seconds()))
