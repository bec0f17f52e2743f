"""The site's name service, for batch systems that find nodes by name only: a line "add NAME
ADDRESS" to a port of the head, and its /etc/hosts says so; likewise on the gateway.

At a site this is its DNS; the lab's gateway calls `command` as it would call nsupdate(1).
"""

from __future__ import annotations

from lab.host import Host

PORT = 5300
COMMAND = "/run/farm-dns"  # on the gateway
_PROGRAM = "/run/farm-dnsd"
# A later machine may have the same address, or the same name, as one before it.
_SERVER = """\
import pathlib, socket, sys
hosts = pathlib.Path("/etc/hosts")
for_all = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    peer, (address, _) = for_all.accept()
    with peer, peer.makefile("rw") as line:
        said = line.readline().split()
        if address != sys.argv[3] or len(said) != 3 or said[0] != "add":
            line.write("refused\\n")
            continue
        kept = [each for each in hosts.read_text().splitlines()
                if each.split()[:1] != [said[2]] and said[1] not in each.split()[1:]]
        hosts.write_text("\\n".join([*kept, f"{said[2]} {said[1]}"]) + "\\n")
        line.write("done\\n")
"""
_CLIENT = """\
#!/bin/bash
set -eu
for server in ADDRESS 127.0.0.1; do
  exec 3<>/dev/tcp/$server/PORT
  echo "$1 $2 $3" >&3
  read -r -t 20 said <&3
  [ "$said" = done ] || { echo "the name service says: $said" >&2; exit 1; }
done
"""


def serve(head: Host, address: str, gateway: Host, gateway_address: str) -> None:
    """Start it on the head, for the gateway alone, and put the gateway's command in its place."""
    # The gateway's own resolver is asked as well: qconf(1) looks names up before it sends them.
    for host, own, peer in (
        (head, address, gateway_address),
        (gateway, "127.0.0.1", "127.0.0.1"),
    ):
        host.write(_PROGRAM, _SERVER)
        host.spawn("/usr/bin/python3", "-I", "-S", _PROGRAM, own, str(PORT), peer)
    text = _CLIENT.replace("ADDRESS", address).replace("PORT", str(PORT))
    gateway.write(COMMAND, text, 0o755)
