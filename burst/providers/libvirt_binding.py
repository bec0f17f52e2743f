"""libvirt's Python binding, the environment's own or Debian's.

Debian's python3-libvirt is made for the system's Python, and a virtual environment of that Python
does not see it. dvn/hosts/binding.py does the same for the agent: neither room
knows the other.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from typing import Any

DEBIAN = Path("/usr/lib/python3/dist-packages")
_SYSTEM = "/usr"  # sys.base_prefix of a virtual environment of the system's Python


def binding(place: Path = DEBIAN) -> Any:
    """The module `libvirt`. Raises ImportError when neither is there."""
    try:
        import libvirt
    except ImportError:
        if sys.base_prefix != _SYSTEM:
            raise
        return _from(place)
    return libvirt


def _from(place: Path) -> Any:
    """By these two names only: what else is there belongs to another environment."""
    for name in ("libvirtmod", "libvirt"):
        found = importlib.machinery.PathFinder.find_spec(name, [str(place)])
        if found is None or found.loader is None:
            raise ImportError(f"no {name} in {place}")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)
    return sys.modules["libvirt"]
