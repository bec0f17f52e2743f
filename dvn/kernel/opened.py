"""What is open to the kernel: on first use, in the namespace of the thread that uses it first."""

from __future__ import annotations

from dvn.kernel import netlink as nl
from dvn.kernel.batch import words
from dvn.kernel.driver import KernelError
from dvn.kernel.evidence import Evidence
from dvn.kernel.nft import Nft
from dvn.kernel.rights import may_change_networks


class Opened:
    """Sockets, libnftables, and the evidence of what others changed."""

    def __init__(self) -> None:
        self._open_socket: nl.Socket | None = None
        self._open_nft: Nft | None = None
        self._open_conntrack: nl.Socket | None = None
        self._open_evidence: Evidence | None = None

    @property
    def _socket(self) -> nl.Socket:
        if self._open_socket is None:
            self._open_socket = nl.Socket()
        return self._open_socket

    @property
    def _nft(self) -> Nft:
        if self._open_nft is None:
            if not may_change_networks():  # libnftables would write to standard error by itself
                raise KernelError("reading nftables needs root (CAP_NET_ADMIN): use sudo")
            self._open_nft = Nft()
        return self._open_nft

    @property
    def _conntrack(self) -> nl.Socket:
        # It lives on: closing one of this protocol waits until nf_tables has put away what the
        # last transaction removed (nft_rcv_nl_event in the kernel), some 15 ms.
        if self._open_conntrack is None:
            self._open_conntrack = nl.Socket(nl.NETLINK_NETFILTER)
        return self._open_conntrack

    @property
    def _evidence(self) -> Evidence:
        if self._open_evidence is None:
            self._open_evidence = Evidence()
        return self._open_evidence

    def close(self) -> None:
        if self._open_socket:
            self._open_socket.close()
        if self._open_nft:
            self._open_nft.close()
        if self._open_conntrack:
            self._open_conntrack.close()
        if self._open_evidence:
            self._open_evidence.close()
        self._open_evidence = None
        self._open_conntrack = None
        self._open_socket = self._open_nft = None

    def _generation(self) -> int:
        try:
            return self._nft.generation()
        except OSError as error:
            raise refused(error) from error


def refused(error: OSError) -> KernelError:
    return KernelError(words(error))
