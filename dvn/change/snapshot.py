"""A KernelState as JSON and back: what a change is undone to, by another process if need be.

Any frozen dataclass of this package may be in it, so that a new kind of kernel object needs nothing
here. Lists come back as tuples, for states hold no lists.
"""

from __future__ import annotations

import dataclasses
import importlib
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any, TypeAlias, cast

from dvn.change.files import ChangeError
from dvn.kernel.state import KernelState

Json: TypeAlias = Any

_CLASS, _SET, _ADDRESS = "class", "set", "address"
_ADDRESSES = {
    kind.__name__: kind
    for kind in (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
}
_ROOM = "dvn."


def to_json(state: KernelState) -> Json:
    return _encode(state)


def from_json(value: Json) -> KernelState:
    """Raises ChangeError for what is no snapshot, or one of another version of this software."""
    try:
        state = _decode(value)
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise ChangeError(f"the snapshot cannot be read: {error}") from error
    if not isinstance(state, KernelState):
        raise ChangeError("the snapshot holds no kernel state")
    return state


def _encode(value: Any) -> Json:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, frozenset):
        return {_SET: [_encode(item) for item in sorted(value, key=repr)]}
    if type(value).__name__ in _ADDRESSES and type(value) in _ADDRESSES.values():
        return {_ADDRESS: [type(value).__name__, str(value)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {
            field.name: _encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return {_CLASS: f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    raise TypeError(f"a snapshot cannot hold {type(value).__name__}")


def _decode(value: Json) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if _SET in value:
        return frozenset(_decode(item) for item in value[_SET])
    if _ADDRESS in value:
        name, text = value[_ADDRESS]
        return _ADDRESSES[name](text)
    kind = _class_of(value[_CLASS])
    return kind(**{name: _decode(item) for name, item in value["fields"].items()})


def _class_of(name: str) -> type[Any]:
    """A dataclass of this package by its name, and nothing else."""
    module, _, qualified = name.partition(":")
    if not module.startswith(_ROOM) or "." in qualified:
        raise ValueError(f"{name} is none of ours")
    kind = getattr(importlib.import_module(module), qualified)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise ValueError(f"{name} is no value")
    return cast("type[Any]", kind)
