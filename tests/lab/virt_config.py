"""A provider's configuration for another process."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from burst.providers.libvirt_domain import Flavour, Image, LibvirtConfig


def write(config: LibvirtConfig, file: Path) -> None:
    plain = asdict(config)
    for kind in plain["types"].values():
        del kind["price_per_hour"]
    file.write_text(json.dumps(plain))


def read(name: str) -> LibvirtConfig:
    plain = json.loads(Path(name).read_text())
    plain["images"] = {key: Image(**image) for key, image in plain["images"].items()}
    plain["types"] = {key: Flavour(**kind) for key, kind in plain["types"].items()}
    return LibvirtConfig(**plain)
