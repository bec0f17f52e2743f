"""Mixed mode is turned on and off while the daemon runs, and stays so over its restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from burst.providers.base import Provider
from dvn import located
from gateway import sitefile
from gateway.loops.lending import LazyProvider
from gateway.mixed import MixedMode
from gateway.parts import real_parts
from gateway.sitefile import SiteFile
from tests.gateway.test_sitefile import RIGHT

HYPERVISOR = """
  providers:
    aws:
      type: ec2
      region: eu-south-1
      image: ami-1
      subnet: subnet-1
      security_groups: [sg-1]
    farm-hv:
      type: libvirt
      uri: qemu:///system
      images: {el9: {volume: el9.qcow2}}
      types: {small: {cores: 1, memory: 2048, image: el9}}
      mixed: {node: wn17}
    other-hv:
      type: libvirt
      uri: qemu+ssh://hv2/system
      images: {el9: {volume: el9.qcow2}}
      types: {small: {cores: 1, memory: 2048, image: el9}}
"""


@pytest.fixture
def file() -> SiteFile:
    before, _, rest = RIGHT.partition("  providers:")
    after = rest[rest.index("  pools:") :]
    text = before.rstrip("\n") + HYPERVISOR + after
    return sitefile.parse(located.loads(text), Path("right.yaml"))


class Notes:
    """The part of the store that is asked."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def notes(self) -> dict[str, str]:
        return self.kept

    def note(self, key: str, value: str) -> None:
        self.kept[key] = value


def providers(file: SiteFile) -> dict[str, Provider]:
    assert file.burst is not None
    return {name: real_parts().provider(file, name) for name in file.burst.providers}


def test_only_hosts_with_mixed_can_be_turned(file: SiteFile) -> None:
    mode = MixedMode(file, Notes())  # type: ignore[arg-type]
    assert mode.names == ("farm-hv",)
    for name in ("aws", "other-hv", "nobody"):
        with pytest.raises(KeyError):
            mode.turn(name, False)


def test_the_switch_reaches_the_provider_and_outlives_the_daemon(file: SiteFile) -> None:
    notes = Notes()
    mode, made = MixedMode(file, notes), providers(file)  # type: ignore[arg-type]
    mode.connect(made)
    host = made["farm-hv"]
    assert isinstance(host, LazyProvider)
    assert host.switch is not None
    assert host.switch(), "on unless it was turned off"
    mode.turn("farm-hv", False)
    assert not host.switch()
    again = providers(file)["farm-hv"]
    assert isinstance(again, LazyProvider)
    assert again.switch is not None
    MixedMode(file, notes).connect({"farm-hv": again})  # type: ignore[arg-type]
    assert not again.switch(), "forgotten over a restart"
    mode.turn("farm-hv", True)
    assert again.switch()
