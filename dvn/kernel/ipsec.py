"""IPsec connections of the IKE daemon (strongSwan's charon), as things, through its vici socket.

charon forgets them when it ends; each look at it shows what is missing. A connection protects all
GRE between two hosts in transport mode (RFC 4301, 4). What it was made of stands as a digest in the
name of its child, so that a new secret or setting is a change in place: the daemon uses it from the
next negotiation on, and security associations that stand go on till then.
"""

from __future__ import annotations

import errno
import hashlib
import json
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dvn.kernel.netlink import Socket
from dvn.kernel.things import Sight, Thing

VICI = Path("/var/run/charon.vici")
_TIMEOUT_S = 20.0
# All AES-GCM, with perfect forward secrecy (RFC 8221, RFC 8247).
IKE_PROPOSALS = (
    "aes256gcm16-prfsha384-ecp384",
    "aes256gcm16-prfsha256-ecp256",
    "aes128gcm16-prfsha256-ecp256",
    "aes256-sha256-modp2048",
)
ESP_PROPOSALS = ("aes256gcm16-ecp384", "aes256gcm16-ecp256", "aes128gcm16-ecp256", "aes256gcm16")
LIFETIME_S = 3600


@dataclass(frozen=True)
class IpsecPeer:
    """GRE between two hosts is encrypted. Ids are what each calls itself in IKE (RFC 7296, 3.5)."""

    site: str
    local: str
    remote: str
    digest: str
    local_id: str = field(default="", compare=False)
    remote_id: str = field(default="", compare=False)
    psk_file: str = field(default="", compare=False)
    kind: Literal["ipsec"] = "ipsec"
    rank: int = 2

    @property
    def key(self) -> tuple[object, ...]:
        return (self.site, self.local, self.remote)

    @property
    def link(self) -> None:
        return None

    def __str__(self) -> str:
        return f"transport mode {self.local} - {self.remote}, settings {self.digest}"


def settings_digest(local_id: str, remote_id: str, secret: str) -> str:
    """What stands for all that a connection is made of; `secret` is the secret's own digest."""
    made = [local_id, remote_id, secret, IKE_PROPOSALS, ESP_PROPOSALS, LIFETIME_S]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:10]


def connection_name(thing: IpsecPeer) -> str:
    return f"dvn:{thing.site}:{thing.local}:{thing.remote}".replace(":", "_")


def connection(thing: IpsecPeer) -> dict[str, Any]:
    """swanctl.conf(5), `connections`. Both ends start, and traffic starts it as well; a trap for it
    stands while there is none, so that the kernel holds packets instead of sending them bare."""
    child = {
        "mode": "transport",
        "local_ts": ["dynamic[gre]"],
        "remote_ts": ["dynamic[gre]"],
        "esp_proposals": list(ESP_PROPOSALS),
        "rekey_time": str(LIFETIME_S),
        "start_action": "trap|start",
        "close_action": "trap",
        "dpd_action": "restart",
    }
    return {
        "version": "2",
        "local_addrs": [thing.local],
        "remote_addrs": [thing.remote],
        "proposals": list(IKE_PROPOSALS),
        "dpd_delay": "10s",
        "keyingtries": "0",
        "mobike": "no",
        "unique": "replace",
        "local": {"auth": "psk", "id": thing.local_id},
        "remote": {"auth": "psk", "id": thing.remote_id},
        "children": {f"gre-{thing.digest}": child},
    }


class IpsecDriver:
    """`vici`: the daemon's socket."""

    kinds = frozenset({"ipsec"})

    def __init__(self, vici: Path = VICI) -> None:
        self._vici = vici

    def observe(self, _socket: Socket, sight: Sight) -> Iterable[Thing]:
        if not self._vici.exists():
            return
        prefix = f"dvn_{sight.site}_"
        with self._session() as session:
            rows = [row for listed in session.list_conns() for row in listed.items()]
        for name, row in rows:
            if name.startswith(prefix):
                yield _peer(sight.site, row)

    def put(self, _socket: Socket, thing: Thing, _before: Thing | None) -> int:
        if not isinstance(thing, IpsecPeer):
            raise TypeError(f"{thing!r} is no IPsec connection")
        name = connection_name(thing)
        if not thing.psk_file:  # one that was only seen, and is to come back
            raise OSError(errno.ENOENT, f"{thing}: where its secret is, only the site file knows")
        secret = Path(thing.psk_file).read_bytes().strip()
        with self._session() as session:
            session.load_shared(
                {
                    "id": name,
                    "type": "IKE",
                    "data": secret,
                    "owners": [thing.local_id, thing.remote_id],
                }
            )
            session.load_conn({name: connection(thing)})
        return 2

    def remove(self, _socket: Socket, thing: Thing) -> int:
        if not isinstance(thing, IpsecPeer) or not self._vici.exists():
            return 0
        from vici.exception import CommandException

        name = connection_name(thing)
        with self._session() as session:
            # First the way to make it anew, then what there is of it.
            session.unload_conn({"name": name})
            session.unload_shared({"id": name})
            with suppress(CommandException):  # there may be nothing of it
                list(session.terminate({"ike": name, "force": "yes", "timeout": "-1"}))
        return 2

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """Raises OSError in words for people."""
        import vici  # only sites with IPsec pay for it
        from vici.exception import CommandException, SessionException

        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_TIMEOUT_S)
            try:
                sock.connect(str(self._vici))
                yield vici.Session(sock)
            except TimeoutError:
                raise OSError(errno.ETIMEDOUT, "the IKE daemon does not answer") from None
            except (CommandException, SessionException) as error:
                raise OSError(errno.EIO, f"the IKE daemon says: {error}") from None
            except (FileNotFoundError, ConnectionRefusedError):
                raise OSError(
                    errno.ENOENT,
                    "no IKE daemon answers; install strongswan-charon and strongswan-swanctl, and "
                    "start it (systemctl start strongswan-starter)",
                    str(self._vici),
                ) from None


def _peer(site: str, row: Mapping[str, Any]) -> IpsecPeer:
    children = row.get("children", {})
    digest = next((name.removeprefix("gre-") for name in children), "")
    return IpsecPeer(site, _first(row, "local_addrs"), _first(row, "remote_addrs"), digest)


def _first(row: Mapping[str, Any], key: str) -> str:
    values = row.get(key) or [b""]
    return bytes(values[0]).decode(errors="replace")
