"""nftables' netlink for what there are thousands of: elements of sets, written and read packed.

Formats: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h. Rules and chains are left to
libnftables, which knows how to compile them.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence

from dvn.kernel import netlink as nl
from dvn.kernel.netlink import NetlinkError

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWSETELEM, _GETSETELEM, _DELSETELEM, _GETGEN = 12, 13, 14, 16
GETTABLE, GETCHAIN, GETRULE, GETSET = 1, 4, 7, 10
_TABLE = 1  # NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_GEN_ID = 1  # NFTA_GEN_ID, NFNL_BATCH_GENID
_FAMILIES = {"inet": 1, "bridge": 7}  # NFPROTO_*
_HEADER = struct.Struct("=IHHII")
_GENMSG = struct.Struct("!BBH")
_RECEIVE = 1 << 18
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_BUFFER = 64 << 20  # a transaction is one datagram


class Elements:
    """Elements to add to, or (`gone`) to remove from, a set; packed as Form.messages does."""

    __slots__ = ("gone", "pieces", "set", "table")

    def __init__(
        self, table: tuple[str, str], set_: str, pieces: Sequence[bytes], *, gone: bool
    ) -> None:
        self.table, self.set, self.pieces, self.gone = table, set_, pieces, gone


class NftSocket:
    """Opens in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        )
        self._socket.setsockopt(nl.SOL_NETLINK, nl.NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, nl.TIMEOUT)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def generation(self) -> int:
        """The number of the ruleset: it grows with each transaction, whoever made it."""
        for payload in self._ask(_GETGEN, 0, _GENMSG.pack(0, 0, 0), "read the generation"):
            return int.from_bytes(nl.attributes(payload, 4)[_GEN_ID], "big")
        raise NetlinkError(errno.EPROTO, "the kernel told no generation")

    def tables(self) -> list[tuple[str, bytes]]:
        """(family, attributes) of each table of the families we use."""
        names = {number: name for name, number in _FAMILIES.items()}
        found = self._dump(GETTABLE, _GENMSG.pack(0, 0, 0), "list tables")
        return [(names[row[0]], row[4:]) for row in found if row[0] in names]

    def parts(self, kind: int, family: str, table: str) -> list[bytes]:
        """Attributes of each set, chain or rule (GETSET, GETCHAIN, GETRULE) of a table."""
        body = _GENMSG.pack(_FAMILIES[family], 0, 0)
        if kind != GETCHAIN:  # takes no filter
            body += nl.text(_TABLE, table)
        found = self._dump(kind, body, f"list table {family} {table}")
        wanted = table.encode() + b"\0"
        return [row[4:] for row in found if nl.attributes(row, 4).get(_TABLE) == wanted]

    def elements(self, family: str, table: str, set_: str) -> list[bytes]:
        """The lists of elements of a set, as Form.read takes them."""
        body = self._set(family, table, set_)
        found = self._dump(_GETSETELEM, body, f"list set {family} {table} {set_}")
        lists = (_LISTS.read(payload[4:]).get(_LIST_ELEMENTS) for payload in found)
        return [data for data in lists if data]

    def change(self, changes: Iterable[Elements]) -> int:
        """One transaction: all of it or nothing. Returns the number of messages.

        Raises NetlinkError with the first refusal.
        """
        rows: list[tuple[int, int, bytes, str]] = []
        for each in changes:
            kind = _DELSETELEM if each.gone else _NEWSETELEM
            flags = 0 if each.gone else nl.NLM_F_CREATE | nl.NLM_F_EXCL
            start = self._set(*each.table, each.set)
            what = (
                f"{'remove from' if each.gone else 'add to'} set {' '.join(each.table)} {each.set}"
            )
            rows += [
                (kind, flags, start + nl.attribute(_LIST_ELEMENTS | nl.NLA_F_NESTED, piece), what)
                for piece in each.pieces
            ]
        if not rows:
            return 0
        edge = _GENMSG.pack(0, 0, _SUBSYSTEM)
        first = self._sequence + 1
        packed = [self._message(_BATCH_BEGIN, 0, edge)]
        for number, (kind, flags, body, _what) in enumerate(rows, 1):
            ack = nl.NLM_F_ACK if number == len(rows) else 0
            packed.append(self._message(_SUBSYSTEM << 8 | kind, flags | ack, body))
        packed.append(self._message(_BATCH_END, 0, edge))
        self._socket.send(b"".join(packed))
        self._answers(first, [row[3] for row in rows])
        return len(rows)

    def _dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        for _attempt in range(10):
            try:
                return self._ask(kind, nl.NLM_F_DUMP, body, what)
            except InterruptedError:
                continue
        raise nl.DumpInterruptedError(errno.EINTR, f"{what}: it changes faster than it reads")

    def _answers(self, first: int, whats: list[str]) -> None:
        """The kernel answers before send() returns; the last message is acknowledged."""
        refused: NetlinkError | None = None
        done = False
        while True:
            try:
                data = self._socket.recv(_RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for kind, flags, sequence, payload in nl.messages(data):
                place = sequence - first - 1
                if kind != nl.NLMSG_ERROR or not -1 <= place <= len(whats):
                    continue
                what = whats[min(max(place, 0), len(whats) - 1)]
                error = nl.error_of(payload, flags, what)
                refused = refused or error
                done = done or error is None
        if refused:
            raise refused
        if not done:
            raise NetlinkError(errno.EPROTO, f"{whats[-1]}: the kernel did not answer")

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        self._socket.send(self._message(_SUBSYSTEM << 8 | kind, flags, body))
        found: list[bytes] = []
        interrupted = False
        while True:
            for got, answered, sequence, payload in nl.messages(self._socket.recv(_RECEIVE)):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(answered & nl.NLM_F_DUMP_INTR)
                if got == nl.NLMSG_ERROR:
                    raise nl.error_of(payload, answered, what) or NetlinkError(errno.EPROTO, what)
                if got == nl.NLMSG_DONE:
                    (code,) = struct.unpack_from("=i", payload) if len(payload) >= 4 else (0,)
                    if code == -errno.EINTR or interrupted:
                        raise InterruptedError
                    if code:
                        raise NetlinkError(-code, f"{what}: {os.strerror(-code)}")
                    return found
                found.append(payload)
                if not flags & nl.NLM_F_DUMP:
                    return found

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return (
            _HEADER.pack(16 + len(body), kind, flags | nl.NLM_F_REQUEST, self._sequence, 0)
            + body
            + b"\0" * (-len(body) % 4)
        )

    def _set(self, family: str, table: str, set_: str) -> bytes:
        return (
            _GENMSG.pack(_FAMILIES[family], 0, 0)
            + nl.text(_LIST_TABLE, table)
            + nl.text(_LIST_SET, set_)
        )


_LISTS = nl.Shapes(_LIST_ELEMENTS)
