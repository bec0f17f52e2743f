"""Hypervisors as providers, mixed mode, which jobs run where: parts of a site file's `burst`."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from burst.mixed.directing import Place, Rule
from burst.mixed.weights import Weights
from burst.providers.libvirt_domain import Flavour, Image
from dvn.forms import Model, fault
from dvn.values import Name, in_range
from gateway.batch import Names
from gateway.units import AbsolutePath, Money


def some(value: Any) -> Any:
    """For lists and mappings that may not be empty."""
    if not value:
        raise fault("there is nothing in it", "name at least one")
    return value


def _libvirt_uri(value: str) -> str:
    scheme, _, rest = value.partition("://")
    if not rest or scheme.split("+")[0] != "qemu":
        raise fault(
            f"uri {value!r} is no hypervisor we know",
            "write qemu:///system, or qemu+ssh://USER@HOST/system for another host",
        )
    if rest.partition("?")[0].rstrip("/").rpartition("/")[2] != "system":
        raise fault(
            f"uri {value!r} is not the system's libvirt",
            "end it with /system: a session's machines cannot be put into a network",
        )
    return value


def _unit(value: str) -> str:
    try:
        return Weights(batch_slice=value).batch_slice
    except ValueError as error:
        raise fault(str(error), "name the unit that holds the jobs, see `systemd-cgls`") from None


Weight = Annotated[int, AfterValidator(in_range("weight", 1, 10_000))]
Count = Annotated[int, AfterValidator(in_range("number", 1, 10_000))]


class ImageConfig(Model):
    """What a hypervisor's machines boot from."""

    volume: str
    """A volume of the storage pool; never written to, each machine has an overlay."""
    format: Literal["qcow2", "raw"] = "qcow2"
    """The volume's format."""
    kernel: AbsolutePath | None = None
    """A kernel on the hypervisor that is booted directly; the image's own boot loader unless
    given."""
    initrd: AbsolutePath | None = None
    """Its initramfs."""
    cmdline: str = ""
    """Its command line."""

    def image(self) -> Image:
        return Image(self.volume, self.format, self.kernel or "", self.initrd or "", self.cmdline)


class FlavourConfig(Model):
    """One type of virtual machine."""

    cores: Count
    """Virtual cores; each is a core of the hypervisor."""
    memory: Annotated[int, AfterValidator(in_range("memory", 128, 16_777_216))]
    """MiB."""
    disk: Annotated[int, AfterValidator(in_range("disk", 1, 65_536))] = 10
    """GiB, of which only what is written takes room."""
    image: Name
    """A name under `images`."""
    price: Money = Decimal(0)
    """For an hour; what costs nothing needs no budget."""

    def flavour(self) -> Flavour:
        return Flavour(self.cores, self.memory, self.disk, self.image, self.price)


class MixedConfig(Model):
    """Batch jobs and virtual machines on the same host: no core is given out twice."""

    node: str
    """The batch system's name for this hypervisor."""
    batch_weight: Weight = 100
    """Its jobs' share of processors and disks when both sides want more than there is."""
    machine_weight: Weight = 100
    """The machines' share."""
    batch_slice: Annotated[str, AfterValidator(_unit)] = "system.slice"
    """systemd's unit in which the batch system's daemon and its jobs run."""

    def weights(self) -> Weights:
        return Weights(self.batch_weight, self.machine_weight, self.batch_slice)


class Libvirt(Model):
    """Virtual machines on a hypervisor of the site or of a partner."""

    type: Literal["libvirt"]
    """Which kind of provider."""
    uri: Annotated[str, AfterValidator(_libvirt_uri), Field(examples=["qemu:///system"])]
    """libvirt's connection URI: `qemu:///system`, `qemu+ssh://dvn@hv2.example.org/system`."""
    storage: str = "default"
    """The storage pool of images, overlays and seeds."""
    images: Annotated[dict[Name, ImageConfig], AfterValidator(some)]
    """What machines boot from, by name."""
    types: Annotated[dict[Name, FlavourConfig], AfterValidator(some)]
    """The sizes of machines, by name."""
    cores: Count | None = None
    """The most cores that borrowed machines may have there together; all of them unless given."""
    memory: Annotated[int, AfterValidator(in_range("memory", 128, 16_777_216))] | None = None
    """The same for memory, in MiB."""
    reserve_cores: Annotated[int, AfterValidator(in_range("number", 0, 10_000))] = 0
    """Cores of the hypervisor that no machine gets."""
    reserve_memory: Annotated[int, AfterValidator(in_range("memory", 0, 16_777_216))] = 1024
    """MiB of the hypervisor that no machine gets."""
    virtualization: Literal["kvm", "qemu"] = "kvm"
    """`qemu` emulates, ten times slower: for trying things where there is no KVM."""
    mtu: Annotated[int, AfterValidator(in_range("MTU", 1280, 9216))] = 1500
    """Of the machines' interface."""
    mixed: MixedConfig | None = None
    """The hypervisor is a node of the batch system, too; leave it out if it is not."""


class DirectConfig(Model):
    """Where jobs run that fit; the first that fits a job counts. What is left out fits all."""

    to: Literal["machines", "bare-metal"]
    """`machines`: borrowed ones only; `bare-metal`: never on them."""
    partitions: Names = ()
    """The queues they were submitted to."""
    users: Names = ()
    """Whose they are."""
    groups: Names = ()
    """Unix groups of their users, on this host."""
    accounts: Names = ()
    """Their accounts."""
    features: Names = ()
    """Features they all ask for."""

    def rule(self) -> Rule:
        return Rule(
            Place(self.to),
            self.partitions,
            self.users,
            self.groups,
            self.accounts,
            self.features,
        )
