"""What is captured: a file others can read, a filter the kernel understands."""

from __future__ import annotations

import io
import struct

import pytest

from dvn.diagnose.capturing import FilterError, compile_filter
from dvn.diagnose.pcap import ETHERNET, Captured, PcapWriter


def test_a_file_is_as_the_format_says() -> None:
    file = io.BytesIO()
    writer = PcapWriter(file, ETHERNET, 96)
    writer.write(Captured(1_700_000_000_123_456_789, b"abc", 1500))
    raw = file.getvalue()
    assert struct.unpack("=IHHiIII", raw[:24]) == (0xA1B23C4D, 2, 4, 0, 0, 96, 1)
    assert struct.unpack("=IIII", raw[24:40]) == (1_700_000_000, 123_456_789, 3, 1500)
    assert raw[40:] == b"abc"


def test_a_filter_is_a_program_for_the_kernel() -> None:
    program = compile_filter("udp port 53")
    assert len(program) % 8 == 0
    assert len(program) > 8
    # The first instruction loads the ethertype: ldh [12] (linux/filter.h).
    assert struct.unpack("=HBBI", program[:8]) == (0x28, 0, 0, 12)


@pytest.mark.parametrize("text", ["udp portt 53", "port", "(tcp"])
def test_a_wrong_filter_is_refused_with_the_filter_in_the_message(text: str) -> None:
    with pytest.raises(FilterError, match="see pcap-filter"):
        compile_filter(text)
