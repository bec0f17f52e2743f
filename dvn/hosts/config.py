"""The file of a hypervisor's agent: which host this is, and who its gateway is.

`dvn hosts invite` on the gateway host writes it. It has a secret and is for root alone.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from dvn import located
from dvn.forms import Model, fault, validate
from dvn.problems import Problem, SpecError
from dvn.values import Name, in_range

DEFAULT = Path("/etc/dvn/agent.yaml")


def _url(value: Any) -> str:
    parts = urlsplit(value) if isinstance(value, str) else None
    try:
        whole = parts is not None and parts.scheme == "https" and parts.hostname and parts.port
    except ValueError:
        whole = None
    if not whole:
        raise fault(f"{value!r} is not the gateway", "write it like https://198.51.100.1:8444")
    return str(value)


def _pin(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"sha256//[A-Za-z0-9+/]{43}=", value):
        raise fault(f"{value!r} is no pin", "use the line that `dvn hosts invite` wrote")
    return value


class AgentConfig(Model):
    """What `dvn agent run` reads."""

    host: Name
    """This host's name under `hosts` of the site file."""
    gateway: Annotated[str, BeforeValidator(_url)] = Field(examples=["https://198.51.100.1:8444"])
    """Where the gateway listens for its hosts."""
    pin: Annotated[str, BeforeValidator(_pin)]
    """The hash of the gateway's public key: nobody else is believed."""
    token: str = Field(repr=False)
    """Shows the gateway which host this is."""
    libvirt: str | None = "qemu:///system"
    """Whose machines become ports, as a libvirt URI; `null` where there is no libvirt."""
    interval: Annotated[int, AfterValidator(in_range("seconds", 1, 3600))] = 5
    """Seconds between two questions whether anything has changed."""
    directory: str = "/var/lib/dvn/agent"
    """Where the last word of the gateway is kept."""
    socket: str = "/run/dvn/agent.sock"
    """Where the agent answers `dvn`'s commands on this host."""


def load(path: Path) -> AgentConfig:
    """Raises SpecError with file and line; also if others than its owner may read the file."""
    config = validate(AgentConfig, located.load(path))
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        what = "others may read this file, and it has a secret"
        raise SpecError([Problem(str(path), 0, what, f"chmod 600 {path}")])
    return config
