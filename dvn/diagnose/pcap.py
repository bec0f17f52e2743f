"""The pcap file format with nanoseconds (draft-ietf-opsawg-pcap), as Wireshark and tcpdump read."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

ETHERNET, RAW_IP = 1, 101  # link types
SNAPLEN = 262144  # what tcpdump takes unless told
_MAGIC_NANOSECONDS = 0xA1B23C4D
_HEADER = struct.Struct("=IHHiIII")
_RECORD = struct.Struct("=IIII")
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Captured:
    """A frame: when (nanoseconds since 1970), its bytes as far as they were kept, its length."""

    time_ns: int
    data: bytes
    length: int
    outgoing: bool = False


class PcapWriter:
    """Writes a file header at once, then a record a frame."""

    def __init__(self, file: BinaryIO, link_type: int = ETHERNET, snaplen: int = SNAPLEN) -> None:
        self._file = file
        file.write(_HEADER.pack(_MAGIC_NANOSECONDS, 2, 4, 0, 0, snaplen, link_type))

    def write(self, frame: Captured) -> None:
        seconds, rest = divmod(frame.time_ns, _NANOSECONDS)
        self._file.write(_RECORD.pack(seconds, rest, len(frame.data), frame.length) + frame.data)

    def flush(self) -> None:
        self._file.flush()
