"""The hypervisor: every instance is a lab host that boots, runs its user data, and can be shut down
from inside."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lab.cloud.faults import Faults
from lab.cloud.machines import Launch
from lab.cloud.vpc import Fabric
from lab.host import PRIVATE, Host, LabError
from lab.hosts import Lab

POWER_BUTTON = "/run/lab-power"  # what stands in for ACPI: a line in it is the end
LOG = "/var/log/cloud-init-output.log"
_STAND_INS = "/usr/local/sbin"  # first in PATH, and a private overlay in an instance

_SHUTDOWN = f"""#!/bin/sh
# Stands in for systemd's shutdown, poweroff and halt: powers this instance off. Times are ignored.
case "$0 $*" in
  *shutdown\\ *-c*|*-r*) echo "$0: the lab's instances cannot do this" >&2; exit 1 ;;
esac
sync
echo off > {POWER_BUTTON}
"""

# What cloud-init does with user data that begins with #!; other user data is only stored.
_CLOUD_INIT = """#!/bin/sh
exec >>LOG 2>&1 </dev/null
imds=http://169.254.169.254/latest
token=$(curl -sSf --retry 5 --retry-connrefused -m 10 -X PUT \
    -H 'X-aws-ec2-metadata-token-ttl-seconds: 300' $imds/api/token) || exit 1
mkdir -p /var/lib/cloud/instance
cd /var/lib/cloud/instance
script=/var/lib/cloud/instance/user-data.txt
status=$(curl -sS -m 30 -H "X-aws-ec2-metadata-token: $token" -o $script -w '%{http_code}' \
    $imds/user-data)
[ "$status" = 200 ] || { rm -f $script; echo 'cloud-init: no user data'; exit 0; }
chmod 700 $script
FAULT
case $(head -c 2 $script) in
  '#!') cd /; $script; status=$? ;;
  *) echo 'cloud-init: user data is no script'; status=0 ;;
esac
echo $status > /var/lib/cloud/instance/status
echo "cloud-init: user data ended with $status"
exit $status
"""
_FAILING = """echo 'user data: line 1: fault switched on in the lab' >&2
echo 1 > /var/lib/cloud/instance/status
echo 'cloud-init: user data ended with 1'
exit 1"""


def cloud_init(*, fails: bool) -> str:
    """The script that an instance runs at its first boot."""
    return _CLOUD_INIT.replace("LOG", LOG).replace("FAULT\n", f"{_FAILING}\n" if fails else "")


class InstanceHost:
    """One powered-on instance. `host` is None until the machine was made."""

    def __init__(self, launch: Launch) -> None:
        self.id = launch.id
        self.launch = launch
        self.address = launch.nic.addresses[0]
        self.host: Host | None = None
        self.error = ""  # why it did not boot
        self._wish = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    def wish_off(self) -> None:
        """Ask the thread that looks after it to power it off."""
        with self._lock:
            if self._wish >= 0:
                os.eventfd_write(self._wish, 1)

    def console(self) -> str:
        """What cloud-init and the user data wrote; empty when nothing did, or the host is off."""
        try:
            return "" if self.host is None else self.host.read(LOG)
        except LabError:
            return ""

    def wait_for_end(self, host: Host | None) -> bool:
        """Wait until somebody wants it off; True when that was the guest."""
        with _Watched(host) as fds:
            poll = select.poll()
            for fd in (*fds, self._wish):
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            return self._wish not in ready

    def close(self) -> None:
        with self._lock:
            os.close(self._wish)
            self._wish = -1


class _Watched:
    """The descriptors that become readable when a guest ends: its power button, its pid 1."""

    def __init__(self, host: Host | None) -> None:
        self._host = host
        self._fds: list[int] = []

    def __enter__(self) -> tuple[int, ...]:
        if self._host is not None:
            self._fds.append(os.pidfd_open(self._host.pid))
            self._fds.append(self._host.inside(_open_button))
        return tuple(self._fds)

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)


def _make_button() -> None:
    with suppress(FileExistsError):
        os.mkfifo(POWER_BUTTON, 0o600)


def _open_button() -> int:
    return os.open(POWER_BUTTON, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Hypervisor:
    """See `lab.cloud.machines.Machines`. A thread looks after each instance."""

    def __init__(self, lab: Lab, fabric: Fabric, faults: Faults, root: Path | None = None) -> None:
        self._lab = lab
        self._root = root
        self._fabric = fabric
        self._faults = faults
        self.instances: dict[str, InstanceHost] = {}
        self._consoles: dict[str, str] = {}  # of those that ended
        self._threads: list[threading.Thread] = []
        self.on: Callable[[str], None] = lambda _: None
        self.gone: Callable[[str, bool], None] = lambda _i, _g: None

    def power_on(self, launch: Launch) -> None:
        instance = InstanceHost(launch)
        self.instances[launch.id] = instance
        thread = threading.Thread(
            target=self._live, args=(instance,), name=f"instance-{launch.id}", daemon=True
        )
        thread.start()
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]

    def power_off(self, instance_id: str) -> None:
        self.instances[instance_id].wish_off()

    def console(self, instance_id: str) -> str:
        """What the instance wrote to its console so far, or by its end."""
        instance = self.instances.get(instance_id)
        return self._consoles.get(instance_id, "") if instance is None else instance.console()

    def close(self, timeout: float = 60) -> None:
        """Power everything off, and wait until each end was told: `gone` syncs the network."""
        for instance in tuple(self.instances.values()):
            instance.wish_off()
        for thread in self._threads:
            thread.join(timeout)

    def _live(self, instance: InstanceHost) -> None:
        by_guest = False
        try:
            if not self._faults.boot_never:
                self._boot(instance)
                self.on(instance.id)
                self._first_boot(instance)
            by_guest = instance.wait_for_end(instance.host)
        except (LabError, OSError) as error:
            instance.error = str(error)
            by_guest = instance.host is not None and not instance.host.alive
        finally:
            self._consoles[instance.id] = instance.error or instance.console()
            if instance.host is not None:
                with suppress(LabError):
                    self._lab.remove(instance.host)
            self.instances.pop(instance.id, None)
            instance.close()
            self.gone(instance.id, by_guest)

    def _boot(self, instance: InstanceHost) -> None:
        launch = instance.launch
        name = f"ip-{instance.address.replace('.', '-')}"
        if name in self._lab.hosts:  # another VPC may have the same address
            name = f"{name}-{launch.id[2:10]}"
        host = self._lab.host(
            name,
            cores=launch.type.vcpus,
            memory_mb=launch.type.memory_mb,
            private=(*PRIVATE, _STAND_INS),
            root=self._root,
        )
        instance.host = host
        host.inside(_make_button)
        for program in ("shutdown", "poweroff", "halt"):
            host.write(f"{_STAND_INS}/{program}", _SHUTDOWN, 0o755)
        host.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
        self._fabric.plug(launch, host)

    def _first_boot(self, instance: InstanceHost) -> None:
        if self._faults.guest_hangs or not instance.launch.first_boot:
            return
        host = instance.host
        if host is not None:
            script = cloud_init(fails=self._faults.user_data_fails)
            host.write("/usr/local/sbin/cloud-init", script, 0o700)
            host.spawn("/usr/local/sbin/cloud-init")
