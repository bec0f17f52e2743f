"""Shapers and detours to and from route netlink (tc(8), linux/pkt_sched.h, linux/pkt_cls.h)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator

from dvn.kernel import netlink as nl
from dvn.kernel.netlink import Request, attribute, nested, text, u32
from dvn.kernel.things import IndexOf, Sight, Thing
from dvn.rates.things import Detour, Shaper, major

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER = 44, 45
RTM_GETACTION = 50
TC_H_ROOT, TC_H_CLSACT = 0xFFFFFFFF, 0xFFFFFFF1
CLSACT_HANDLE = 0xFFFF0000
TCA_KIND, TCA_OPTIONS, TCA_INGRESS_BLOCK = 1, 2, 13
TCM_IFINDEX_MAGIC_BLOCK = -1

TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TC_LINKLAYER_ETHERNET = 1
TCA_FQ_CODEL_FLOWS, TCA_FQ_CODEL_MEMORY_LIMIT = 5, 9
TCA_U32_SEL, TCA_U32_ACT, TC_U32_TERMINAL = 5, 7, 1
TCA_ACT_TAB, TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_ACT_COOKIE = 1, 1, 2, 6
TCA_MIRRED_PARMS, TCA_EGRESS_REDIR, TC_ACT_STOLEN = 2, 1, 4
TCA_ROOT_FLAGS, TCA_FLAG_LARGE_DUMP_ON = 2, 1
ETH_P_ALL = 3

_TCMSG = struct.Struct("=4xiIII")  # of any family
_SPEC = struct.Struct("=BBHhHI")  # tc_ratespec
_TBF = struct.Struct("=12s12sIII")
_MIRRED = struct.Struct("=IIiiiiI")
_U32_SEL = struct.Struct("=BBBxHHhhI")
_COOKIE = struct.Struct("=4sIII")
_PREFERENCE = 0xD4
_LEAF = 1  # minor number of the class a token bucket has
_MARK = b"dvn\0"

# The bucket: what may pass at once. 10 ms at the rate, so that a timer that is late by some of them
# costs no throughput; at low rates, two jumbo frames.
_BURST_S, _LEAST_BURST = 0.010, 20_000
_BACKLOG = 1 << 20  # of the queue that stands in until fq_codel does, bytes
# fq_codel's own defaults are 1,024 flows and 32 MB for each queue, of which there may be thousands.
_FLOWS, _QUEUE_MEMORY = 256, 4 << 20
_GONE = frozenset({errno.ENODEV, errno.ENOENT, errno.EINVAL})


class RatesDriver:
    """Shapers and detours of one site, or of all."""

    kinds = frozenset({"rate", "detour"})

    def observe(self, sock: nl.Socket, sight: Sight) -> Iterable[Thing]:
        """Two dumps, of queues and of actions; none where no link has a token bucket."""
        if "tbf" not in sight.queues.values():
            return ()
        payloads = sock.dump(RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0), "list queues")
        queues = _Queues(sight, payloads)
        return (*queues.shapers(), *self._detours(sock, sight, queues))

    def _detours(self, sock: nl.Socket, sight: Sight, queues: _Queues) -> Iterator[Detour]:
        body = struct.pack("=I", 0)
        body += nested(TCA_ACT_TAB, nested(1, text(TCA_ACT_KIND, "mirred")))
        body += attribute(
            TCA_ROOT_FLAGS, struct.pack("=II", TCA_FLAG_LARGE_DUMP_ON, TCA_FLAG_LARGE_DUMP_ON)
        )
        led: dict[int, str] = {}
        for payload in sock.dump(RTM_GETACTION, body, "list redirections"):
            table = nl.attributes(nl.attributes(payload, 4).get(TCA_ACT_TAB, b""))
            for action in table.values():
                led |= _detour(nl.attributes(action), sight)
        for index in queues.prepared:
            yield Detour(sight.names[index], led.get(index, ""), sight.site)

    def requests(self, thing: Thing, before: Thing | None, index_of: IndexOf) -> list[Request]:
        match thing:
            case Shaper():
                return _shape(thing, before, index_of(thing.on))
            case Detour():
                return _lead(thing, before, index_of(thing.on), index_of(thing.through))
            case _:
                raise TypeError(f"no rate: {thing!r}")

    def removal(self, thing: Thing, index_of: IndexOf) -> list[Request]:
        match thing:
            case Shaper():
                body = _TCMSG.pack(index_of(thing.on), major(thing.site) << 16, TC_H_ROOT, 0)
                return [Request(RTM_DELQDISC, 0, body, f"uncap {thing.on}", _GONE)]
            case Detour():
                body = _TCMSG.pack(index_of(thing.on), CLSACT_HANDLE, TC_H_CLSACT, 0)
                return [Request(RTM_DELQDISC, 0, body, f"detour of {thing.on}", _GONE)]
            case _:
                raise TypeError(f"no rate: {thing!r}")


class _Queues:
    """One dump of all queues, and which of them are the site's."""

    def __init__(self, sight: Sight, payloads: Iterable[bytes]) -> None:
        self._sight = sight
        self._handle = major(sight.site) << 16
        self._shaped: dict[int, int] = {}
        self._fair: set[int] = set()
        self.prepared: set[int] = set()  # have our clsact
        for payload in payloads:
            index, handle, parent, _info = _TCMSG.unpack_from(payload)
            attrs = nl.attributes(payload, _TCMSG.size)
            kind = attrs.get(TCA_KIND, b"").rstrip(b"\0")
            if index not in sight.names:
                continue
            if kind == b"tbf" and parent == TC_H_ROOT and handle == self._handle:
                self._shaped[index] = _rate_of(attrs.get(TCA_OPTIONS, b""))
            elif kind == b"fq_codel" and parent == self._handle | _LEAF:
                self._fair.add(index)
            elif kind == b"clsact" and TCA_INGRESS_BLOCK in attrs:
                (block,) = struct.unpack("=I", attrs[TCA_INGRESS_BLOCK])
                if block == _block(sight.site, index):
                    self.prepared.add(index)

    def shapers(self) -> Iterator[Shaper]:
        for index, bits in self._shaped.items():
            yield Shaper(self._sight.names[index], bits, self._sight.site, index in self._fair)


def _rate_of(options: bytes) -> int:
    attrs = nl.attributes(options)
    rate64 = attrs.get(TCA_TBF_RATE64)
    if rate64:
        return int(struct.unpack("=Q", rate64)[0]) * 8
    parms = attrs.get(TCA_TBF_PARMS, b"")
    return int(_SPEC.unpack_from(parms)[5]) * 8 if len(parms) >= _SPEC.size else 0


def _detour(action: nl.Attributes, sight: Sight) -> dict[int, str]:
    """{index of the link that is led off: name of the device}, if the redirection is ours."""
    cookie = action.get(TCA_ACT_COOKIE, b"")
    if len(cookie) != _COOKIE.size:
        return {}
    mark, site, index, _zero = _COOKIE.unpack(cookie)
    parms = nl.attributes(action.get(TCA_ACT_OPTIONS, b"")).get(TCA_MIRRED_PARMS, b"")
    if mark != _MARK or site != major(sight.site) or len(parms) < _MIRRED.size:
        return {}
    return {index: sight.names.get(_MIRRED.unpack_from(parms)[6], "")}


def _shape(thing: Shaper, before: Thing | None, index: int) -> list[Request]:
    handle = major(thing.site) << 16
    bytes_s = thing.bits // 8
    spec = _SPEC.pack(0, TC_LINKLAYER_ETHERNET, 0, 0, 0, min(bytes_s, 0xFFFFFFFF))
    burst = max(int(bytes_s * _BURST_S), _LEAST_BURST)
    options = [attribute(TCA_TBF_PARMS, _TBF.pack(spec, bytes(12), _BACKLOG, 0, 0))]
    if bytes_s > 0xFFFFFFFF:
        options.append(attribute(TCA_TBF_RATE64, struct.pack("=Q", bytes_s)))
    options.append(u32(TCA_TBF_BURST, burst))
    body = _TCMSG.pack(index, handle, TC_H_ROOT, 0)
    body += text(TCA_KIND, "tbf") + nested(TCA_OPTIONS, *options)
    # Without NLM_F_REPLACE the kernel puts it in the place of its own default queue only, and
    # refuses where somebody chose one.
    what = f"cap {thing.on} (`tc qdisc show dev {thing.on}` shows what stands there)"
    found = [Request(RTM_NEWQDISC, nl.NLM_F_CREATE if before is None else 0, body, what)]
    if not isinstance(before, Shaper) or not before.fair:
        leaf = _TCMSG.pack(index, 0, handle | _LEAF, 0)
        leaf += text(TCA_KIND, "fq_codel") + nested(
            TCA_OPTIONS,
            u32(TCA_FQ_CODEL_FLOWS, _FLOWS),
            u32(TCA_FQ_CODEL_MEMORY_LIMIT, _QUEUE_MEMORY),
        )
        flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
        needs = f"fair queue of {thing.on} (kernel module sch_fq_codel)"
        found.append(Request(RTM_NEWQDISC, flags, leaf, needs))
    return found


def _block(site: str, index: int) -> int:
    """The number of the filter block of our clsact on a link: it says whose clsact it is. The
    filter goes into the block, so that it cannot get into a clsact that somebody else made."""
    return 1 << 31 | (major(site) & 0x3FF) << 21 | index & 0x1FFFFF


def _lead(thing: Detour, before: Thing | None, index: int, through: int) -> list[Request]:
    what = f"detour of {thing.on} (`tc filter show dev {thing.on} ingress` shows what stands there)"
    found = []
    info = _PREFERENCE << 16 | socket.htons(ETH_P_ALL)
    block = _block(thing.site, index)
    filter_ = _TCMSG.pack(TCM_IFINDEX_MAGIC_BLOCK, 0, block, info)
    if before is None:
        # NLM_F_EXCL: one that somebody made is left to him.
        body = _TCMSG.pack(index, CLSACT_HANDLE, TC_H_CLSACT, 0) + text(TCA_KIND, "clsact")
        body += u32(TCA_INGRESS_BLOCK, block)
        found.append(Request(RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body, what))
    elif isinstance(before, Detour) and before.through:
        found.append(Request(RTM_DELTFILTER, 0, filter_ + text(TCA_KIND, "u32"), what, _GONE))
    cookie = _COOKIE.pack(_MARK, major(thing.site), index, 0)
    mirred = _MIRRED.pack(0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, through)
    action = nested(
        1,
        text(TCA_ACT_KIND, "mirred"),
        nested(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, mirred)),
        attribute(TCA_ACT_COOKIE, cookie),
    )
    # No key to compare: every packet matches.
    selector = _U32_SEL.pack(TC_U32_TERMINAL, 0, 0, 0, 0, 0, 0, 0)
    options = nested(TCA_OPTIONS, nested(TCA_U32_ACT, action), attribute(TCA_U32_SEL, selector))
    body = filter_ + text(TCA_KIND, "u32") + options
    found.append(Request(RTM_NEWTFILTER, nl.NLM_F_CREATE | nl.NLM_F_EXCL, body, what))
    return found
