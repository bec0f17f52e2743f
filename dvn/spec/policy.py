"""What may pass between networks of one tenant."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from dvn.forms import Model
from dvn.values import Name, Service


class Policy(Model):
    """Connections that machines of one network may start to those of another one."""

    model_config = ConfigDict(serialize_by_alias=True)

    from_: Name = Field(alias="from", examples=["farm"])
    """The network whose machines may start connections; answers pass by themselves."""
    to: Name = Field(examples=["store"])
    """The network they may reach."""
    services: tuple[Service, ...] = ()
    """Which services there, such as `tcp/22`; everything unless given."""
