"""Carries out a bundle on the borrowed machine: accounts, files, mounts, services.

Comes with the bundle: plain Python 3.9 (Amazon Linux 2023), nothing but the standard library. The
result is RUN/report.json for the shell around it: which stage failed, and how. Safe to run again.
`root` is put before every path, for tests.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "# dvn begin: lines of the farm", "# dvn end"
IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2  # linux/in.h; the socket module has no names for them
CLOCK_LIMIT_S = 60  # munge refuses credentials 300 s apart, and clocks drift on


class Failed(Exception):  # noqa: N818 - what the report says
    def __init__(self, stage: str, detail: str) -> None:
        super().__init__(detail)
        self.stage = stage


def main(run: str, root: str, log: str) -> int:
    os.umask(0o022)
    with open(run + "/bundle.json") as file:
        bundle = json.load(file)
    proof = f"Authorization: Bearer {bundle['session']}\n"
    write(Path(run, "authorization"), proof.encode(), 0o600)
    report: dict[str, Any] = {"stage": "joined", "ok": True, "detail": bundle["node"]}
    try:
        clock(bundle, Path(run, "bundle.json").stat().st_mtime)
        preflight(bundle, log)
        versions(bundle)
        with stage("users"):
            accounts(root + "/etc/group", bundle["groups"], group_line)
            accounts(root + "/etc/passwd", bundle["users"], user_line)
        with stage("files"):
            for each in bundle["directories"]:
                directory = Path(root + each["path"])
                directory.mkdir(parents=True, exist_ok=True)
                directory.chmod(each["mode"])
                os.chown(directory, *numbers(root, each["owner"]))
            for each in bundle["files"]:
                put(root, each)
        if not root:
            numbers_agree(bundle)
            names(bundle)
        reach(bundle)
        path_mtu(bundle)
        for each in bundle["mounts"]:
            mount(root, each, log)
        for each in bundle["commands"]:
            command(root, each, bundle, log)
    except Failed as failure:
        report = {"stage": failure.stage, "ok": False, "detail": str(failure)}
    sys.stdout.write(f"dvn-join: {json.dumps(report)}\n")
    write(Path(run, "report.json"), json.dumps(report).encode(), 0o600)
    return 0 if report["ok"] else 1


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, LookupError, ValueError) as error:
        raise Failed(name, str(error)) from error


def clock(bundle: Mapping[str, Any], arrived: float) -> None:
    """A machine that was slow to come as far as this is not one whose clock is wrong, and neither
    is one whose clock was set meanwhile."""
    ahead = min(arrived - bundle["time"], time.time() - bundle["time"], key=abs)
    if abs(ahead) > CLOCK_LIMIT_S:
        raise Failed(
            "clock",
            f"the clock is {ahead:+.0f} s off the gateway's: munge would refuse this node; "
            "the image needs time synchronisation (chrony)",
        )


def preflight(bundle: Mapping[str, Any], log: str) -> None:
    def missing() -> list[Mapping[str, str]]:
        return [each for each in bundle["preflight"] if not shutil.which(each["name"])]

    if missing() and bundle["install"]:
        execute("preflight", ["sh", "-c", bundle["install"]], 900, log)
    lacking = [f"{each['name']} (package {each['package']})" for each in missing()]
    if lacking:
        raise Failed("preflight", "the image lacks " + ", ".join(lacking))


def versions(bundle: Mapping[str, Any]) -> None:
    """A slurmd of the wrong version joins, and then cannot read what slurmctld sends."""
    for each in bundle["versions"]:
        try:
            done = subprocess.run(
                each["argv"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed("version", f"{each['argv'][0]}: {error}") from error
        found = re.search(r"(\d+)\.(\d+)", done.stdout + done.stderr)
        if not found:
            raise Failed("version", f"{' '.join(each['argv'])}: says no version")
        have = [int(found[1]), int(found[2])]
        if not each["least"] <= have <= each["most"]:
            least, most = ("{}.{:02}".format(*each[bound]) for bound in ("least", "most"))
            raise Failed(
                "version",
                f"{each['name']} of this image is {found[0]}; {each['why']}: {least} to {most}",
            )


def numbers_agree(bundle: Mapping[str, Any]) -> None:
    """The image may ask a directory of its own before its files."""
    for each in bundle["users"]:
        try:
            uid = pwd.getpwnam(each["name"]).pw_uid
        except KeyError:
            uid = None
        if uid != each["uid"]:
            raise Failed(
                "users",
                f"user {each['name']} is {uid} to this image's name service (nsswitch.conf), "
                f"but {each['uid']} in the farm",
            )


def names(bundle: Mapping[str, Any]) -> None:
    for each in bundle["names"]:
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(each["name"], None)}
        except OSError as error:
            raise Failed("dns", f"{each['name']} cannot be resolved: {error}") from error
        if each["address"] not in found:
            raise Failed(
                "dns",
                f"{each['name']} is {', '.join(sorted(map(str, found)))} to this image, and must "
                f"be {each['address']}: its resolver does not read /etc/hosts first; see "
                "/etc/nsswitch.conf",
            )


def path_mtu(bundle: Mapping[str, Any]) -> None:
    """Whether packets as large as the tunnel says pass, when small ones do. Who answers no ping
    at all proves nothing."""
    size = bundle["mtu"]
    if not size or not bundle["reach"]:
        return
    address = bundle["reach"][0]["address"]
    try:
        if not echoed(address, 64) or any(echoed(address, size) for _ in range(3)):
            return
    except OSError:
        return  # EMSGSIZE: the path is narrower and says so, which is all that TCP needs
    raise Failed(
        "mtu",
        f"packets of {size} bytes do not pass through the tunnel to {address}, small ones do: "
        "a path below 1500 bytes whose ICMP is dropped (RFC 2923); see the tunnel's mtu",
    )


def echoed(address: str, size: int) -> bool:
    """Whether an ICMP echo request of `size` bytes (with IP header) that may not be fragmented is
    answered (RFC 792). Raises EMSGSIZE if the path is known to be too narrow."""
    token = os.urandom(8)
    data = token + bytes(size - 28 - len(token))
    head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
    whole = head + data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(whole) // 2}H", whole))
    total = (total >> 16) + (total & 0xFFFF)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    packet = head[:2] + struct.pack("!H", checksum) + head[4:] + data
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        raw.sendto(packet, (address, 0))
        limit = time.monotonic() + 2
        while (left := limit - time.monotonic()) > 0:
            raw.settimeout(left)
            try:
                answer = raw.recv(size + 60)
            except TimeoutError:
                return False
            if answer[20] == 0 and token in answer:
                return True
    return False


def user_line(each: Mapping[str, Any], _old: list[str] | None) -> str:
    names = (each["name"], "x", each["uid"], each["gid"], each["full_name"], each["home"])
    return ":".join(str(field) for field in (*names, each["shell"]))


def group_line(each: Mapping[str, Any], old: list[str] | None) -> str:
    members = list(each["members"])
    members += [name for name in (old[3].split(",") if old else []) if name and name not in members]
    return f"{each['name']}:x:{each['gid']}:{','.join(members)}"


def accounts(
    path: str,
    wanted: Sequence[Mapping[str, Any]],
    line: Callable[[Mapping[str, Any], list[str] | None], str],
) -> None:
    """Put accounts into passwd or group, before others of the same number: they win a look-up."""
    with open(path) as file:
        lines = file.read().splitlines()
    for each in wanted:
        number = str(each.get("uid", each["gid"]))
        table = [split(text) for text in lines]
        old = next((fields for fields in table if fields[0] == each["name"]), None)
        if old and old[2] != number:
            raise ValueError(
                f"{each['name']} has number {old[2]} in {path} of this image, "
                f"but {number} in the farm"
            )
        if old:
            lines.remove(":".join(old))
        numbers_left = [fields[2] if len(fields) > 2 else "" for fields in map(split, lines)]
        place = numbers_left.index(number) if number in numbers_left else len(lines)
        lines.insert(place, line(each, old))
    if wanted:
        write(Path(path), ("\n".join(lines) + "\n").encode(), 0o644)


def split(text: str) -> list[str]:
    return text.rstrip("\n").split(":")


def numbers(root: str, owner: str) -> tuple[int, int]:
    """uid and gid of `user` or `user:group`, from the files: the C library may have cached them."""
    user, _, group = owner.partition(":")
    with open(root + "/etc/passwd") as file:
        entry = {f[0]: (int(f[2]), int(f[3])) for f in map(split, file) if len(f) > 3}
    if user not in entry:
        raise LookupError(f"there is no user {user} on this image")
    uid, gid = entry[user]
    if group:
        with open(root + "/etc/group") as file:
            gids = {f[0]: int(f[2]) for f in map(split, file) if len(f) > 2}
        if group not in gids:
            raise LookupError(f"there is no group {group} on this image")
        gid = gids[group]
    return uid, gid


def put(root: str, each: Mapping[str, Any]) -> None:
    path, content = Path(root + each["path"]), base64.b64decode(each["content_b64"])
    if each["merge"]:
        old = ""
        if path.exists():
            old = path.read_text()
        before, found, rest = old.partition(BEGIN + "\n")
        after = rest.partition(END + "\n")[2] if found else ""
        kept = before + after
        if kept and not kept.endswith("\n"):
            kept += "\n"
        content = (kept + BEGIN + "\n").encode() + content + (END + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, content, each["mode"], numbers(root, each["owner"]))


def write(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Whole or not at all, and never readable by others for a moment."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".dvn-")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if owner:
                os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
        draft.replace(path)
    except BaseException:
        draft.unlink()
        raise


def reach(bundle: Mapping[str, Any]) -> None:
    limit = time.monotonic() + bundle["reach_timeout"]
    for each in bundle["reach"]:
        while True:
            try:
                socket.create_connection((each["address"], each["port"]), timeout=3).close()
                break
            except OSError as error:
                if time.monotonic() > limit:
                    refused = isinstance(error, ConnectionRefusedError)
                    raise Failed(
                        "service" if refused else "reach",  # a refusal came through the tunnel
                        f"{each['name']} at {each['address']} port {each['port']} does not "
                        f"answer through the tunnel: {error}",
                    ) from error
            time.sleep(1)


def mount(root: str, each: Mapping[str, Any], log: str) -> None:
    target = root + each["target"]
    with open("/proc/self/mounts") as file:
        mounted = [line.split()[:2] for line in file]
    if [each["source"], target] in mounted:  # another file system there is covered by ours
        return
    with stage("mount"):
        Path(target).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Failed):  # built in, or loaded by the kernel itself
        execute("mount", ["modprobe", f"fs-{each['type']}"], 30, log)
    argv, options = ["mount", "-t", each["type"]], each["options"]
    if each["bare_options"] and not shutil.which(f"mount.{each['type']}"):
        argv, options = [*argv, "-i"], each["bare_options"]
    if options:
        argv += ["-o", options]
    argv += [each["source"], target]
    execute("mount", argv, 60, log, attempts=3)


def command(root: str, each: Mapping[str, Any], bundle: Mapping[str, Any], log: str) -> None:
    memory = bundle["memory_mb"]
    with open("/proc/meminfo") as file:
        memory = min(memory, int(file.readline().split()[1]) // 1024)
    argv = [argument.replace("{memory_mb}", str(memory)) for argument in each["argv"]]
    who: dict[str, Any] = {}
    if each["user"] != "root":
        with stage(each["name"]):
            uid, gid = numbers(root, each["user"])
        who = {"user": uid, "group": gid, "extra_groups": []}
    try:
        execute(each["name"], argv, each["timeout"], log, each["attempts"], who)
    except Failed:
        if not each["may_fail"]:
            raise


def execute(
    name: str,
    argv: Sequence[str],
    timeout: float,
    log: str,
    attempts: int = 1,
    who: Mapping[str, Any] | None = None,
) -> None:
    """Run to the end of the process itself: a daemon it leaves behind may hold the output open."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(2)
        with open(log, "ab+") as output:
            begin = output.seek(0, os.SEEK_END)
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    start_new_session=True, cwd="/", **(who or {}),
                )  # fmt: skip
            except OSError as error:
                raise Failed(name, f"{argv[0]}: {error}") from error
            try:
                status = process.wait(timeout)
                how = f"status {status}"
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                status, how = -1, f"no end after {timeout:g} s"
            if status == 0:
                return
            output.seek(max(begin, output.seek(0, os.SEEK_END) - 1200))
            tail = output.read().decode(errors="replace").strip()
    raise Failed(name, f"{' '.join(argv)}: {how}\n{tail}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
