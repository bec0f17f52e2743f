"""Which addresses a network has outside, and what may come in from there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dvn.forms import Model, fault
from dvn.values import AddressField, in_range, one_or_more

PortNumber = Annotated[int, AfterValidator(in_range("port", 1, 65535))]


class Forward(Model):
    """A port of an outside address that leads to one machine of the network."""

    protocol: Literal["tcp", "udp"] = Field(examples=["tcp"])
    """`tcp` or `udp`."""
    outside: AddressField = Field(examples=["198.51.100.10"])
    """The address that the internet connects to."""
    port: PortNumber = Field(examples=[443])
    """The port that the internet connects to."""
    to: AddressField = Field(examples=["10.9.0.10"])
    """The machine's address in the network."""
    to_port: PortNumber | None = None
    """The machine's port; the same as `port` unless given."""

    @property
    def inner_port(self) -> int:
        return self.to_port or self.port


class Nat(Model):
    """Addresses the network's machines have outside, and the ways in from there."""

    snat: Annotated[tuple[AddressField, ...], BeforeValidator(one_or_more)] = ()
    """The outer source address of the network's packets to the internet; one for each family."""
    masquerade: bool = False
    """Use the address of the interface they leave by, whatever it is, instead of `snat`."""
    one_to_one: dict[AddressField, AddressField] = Field(default_factory=dict)
    """Machines with an outside address of their own: the machine's address, then the outside one.
    Everything that the internet sends there arrives."""
    forward: tuple[Forward, ...] = ()
    """Single ports that lead in."""

    @model_validator(mode="before")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value:
            raise fault("`nat` is empty", "write `snat: ADDRESS` or `masquerade: true` below it")
        return value

    def translates(self, version: int) -> bool:
        """Whether the whole network shares an outside address of this family."""
        return self.masquerade or any(address.version == version for address in self.snat)

    def leaves(self, version: int) -> bool:
        """Whether any machine's packets of this family get an outside address."""
        return self.translates(version) or any(a.version == version for a in self.one_to_one)

    def enters(self, version: int) -> bool:
        """Whether anything of this family may be started from outside."""
        return any(a.version == version for a in self.one_to_one) or any(
            forward.to.version == version for forward in self.forward
        )
