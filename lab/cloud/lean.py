"""Load moto's EC2 without what the lab has no use for.

moto reads at import the catalogue of every instance type in every region, a hundred files and a
million objects: half a second on a common machine, most of a minute in an emulated one. And three
parts of one process read botocore's 4 MB description of EC2, each for itself. So, while moto loads,
its resource reader is replaced by one that reads our region and our types only, botocore's reader
by one that remembers, and the garbage collector, which walks all those objects again and again,
is off.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

_OFFERINGS = "instance_type_offerings"
_TYPES = "ec2/resources/instance_types.json"


@contextmanager
def lean_loading(region: str, types: Collection[str], memory: dict[str, Any]) -> Iterator[None]:
    """Within it, import moto.ec2 for one region and these instance types."""
    from moto.utilities import utils

    read, was_enabled = utils.load_resource, gc.isenabled()

    def load_resource(resource: str) -> Any:
        if _OFFERINGS in resource:
            if region not in resource:
                return []
            return [offer for offer in read(resource) if offer["InstanceType"] in types]
        if resource == _TYPES:
            return _pick(_decompressed(resource), types)
        return read(resource)

    gc.disable()
    utils.load_resource = load_resource
    try:
        with remembered_models(memory):
            yield
    finally:
        utils.load_resource = read
        gc.freeze()  # what was loaded stays: no collection need look at it again
        if was_enabled:
            gc.enable()


@contextmanager
def remembered_models(known: dict[str, Any]) -> Iterator[None]:
    """Within it, botocore reads each description once, and none that is in `known` already.

    Not for two threads at once.
    """
    from botocore.loaders import JSONFileLoader

    reader: Any = JSONFileLoader
    read: Callable[[Any, str], Any] = reader.load_file

    def load_file(self: Any, file_path: str) -> Any:
        if file_path not in known:
            content = read(self, file_path)
            if content is None:
                return None
            known[file_path] = content
        return known[file_path]

    reader.load_file = load_file
    try:
        yield
    finally:
        reader.load_file = read


def _decompressed(resource: str) -> str:
    import gzip

    from moto.utilities.utils import load_resource_as_bytes

    return gzip.decompress(load_resource_as_bytes(f"{resource}.gz")).decode()


def _pick(text: str, keys: Collection[str]) -> dict[str, Any]:
    """Some members of a JSON object, without parsing the others."""
    decoder = json.JSONDecoder()
    found = {}
    for key in keys:
        at = text.find(f'"{key}":')
        if at < 0:
            continue
        at += len(key) + 3
        while text[at].isspace():
            at += 1
        found[key], _ = decoder.raw_decode(text, at)
    return found
