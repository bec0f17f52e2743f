"""What every part of a way does: tell its steps, and ask the rules of a hook."""

from __future__ import annotations

from collections.abc import Iterable

from dvn.diagnose import conntrack
from dvn.diagnose.flows import Flows
from dvn.diagnose.frames import Packet
from dvn.diagnose.hops import ACCEPT, DROP, Exit, Hop
from dvn.diagnose.nfteval import Ruling, judge
from dvn.diagnose.nfttypes import NAMES, Value
from dvn.diagnose.routing import Flow, Routing
from dvn.diagnose.rulesets import Chain, Ruleset, Table
from dvn.diagnose.scene import Device, Scene
from dvn.diagnose.subject import Subject, Surroundings


class _Facts(Surroundings):
    """What rules ask beside the packet."""

    def __init__(self, scene: Scene, routing: Routing) -> None:
        self._devices, self._routing = scene.devices, routing

    def group(self, device: str) -> int:
        return self._devices[device].group if device in self._devices else 0

    def kind(self, device: str) -> str:
        return self._devices[device].kind if device in self._devices else ""

    def mac(self, device: str) -> str:
        return self._devices[device].mac if device in self._devices else ""

    def mss(self, device: str, version: int) -> int:
        mtu = self._devices[device].mtu if device in self._devices else 1500
        return mtu - (40 if version == 4 else 60)

    def fib(self, subject: Subject, keys: tuple[str, ...], result: str) -> Value | None:
        ip = subject.packet.ip
        if ip is None:
            return None
        asked = ip.source if "saddr" in keys else ip.destination
        flow = Flow(asked, None, subject.iif, mark=subject.packet.mark if "mark" in keys else 0)
        found = self._routing.lookup(flow)
        if result == "type":
            if asked.is_multicast:
                return NAMES["fib_addrtype"]["multicast"]
            known = NAMES["fib_addrtype"]
            return known.get(found.kind, 1) if found else known["unreachable"]
        fits = found is not None and ("iif" not in keys or found.device == subject.iif)
        if result == "check":
            return int(fits)
        return found.device if found is not None and fits else None


class Trail:
    """One packet under way, and what was told of it."""

    def __init__(self, ruleset: Ruleset, scene: Scene, routing: Routing, flows: Flows) -> None:
        self._rules, self._scene, self._routing = ruleset, scene, routing
        self._facts = _Facts(scene, routing)
        self._tracker = conntrack.Tracker(flows, scene)
        self._depth = 0
        self.hops: list[Hop] = []
        self.exits: list[Exit] = []

    def _tell(self, where: str, device: str, words: str, verdict: str = "") -> None:
        self.hops.append(Hop(where, device, words, verdict))

    def _drop(self, where: str, device: str, words: str) -> None:
        self._tell(where, device, words, DROP)

    def _exit(self, device: str, packet: Packet, words: str) -> None:
        self._tell("exit", device, words, ACCEPT)
        self.exits.append(Exit(device, packet))

    # -- filters

    def _hook(self, subject: Subject, device: str) -> bool:
        """Every base chain at the subject's hook. Whether the packet goes on."""
        chains = self._rules.at(subject.family, subject.hook)
        first = subject.hook in ("prerouting", "output") and subject.family != "bridge"
        if first:  # conntrack stands between raw and the rest
            early = [pair for pair in chains if pair[1].priority <= conntrack.PRIORITY]
            if not self._chains(subject, device, early):
                return False
            self._tracker.begin(subject)
            chains = tuple(pair for pair in chains if pair[1].priority > conntrack.PRIORITY)
        at = conntrack.NAT_PRIORITIES.get(subject.hook, 0)
        before = [pair for pair in chains if pair[1].priority < at]
        if not self._chains(subject, device, before):
            return False
        words = self._tracker.translate(subject)
        if words:
            self._tell("nat", device, words)
        return self._chains(subject, device, chains[len(before) :])

    def _chains(self, subject: Subject, device: str, chains: Iterable[tuple[Table, Chain]]) -> bool:
        for table, chain in chains:
            if chain.type == "nat" and not self._tracker.decides(subject):
                continue  # NAT is decided by the first packet of a flow
            changed = len(subject.changes)
            ruling = judge(table, chain, subject, self._facts)
            where = f"{subject.hook} {table.id} {chain.name}"
            words = _ruled(ruling, subject.changes[changed:])
            verdict = ruling.verdict
            if chain.type == "nat" and subject.translation is not None:
                words, possible = self._tracker.decided(subject)
                verdict = verdict if possible else DROP
            self.hops.append(Hop(where, device, words, verdict, ruling.hits, ruling.unknown))
            if verdict == DROP:
                return False
        return True

    def enter(self, device: Device, packet: Packet) -> None:
        """A frame that a device received."""
        raise NotImplementedError

    def _receive(self, device: Device, packet: Packet) -> None:
        """What a device gives to the host's own protocols."""
        raise NotImplementedError

    def _send(self, device: Device, packet: Packet) -> None:
        """A frame goes out by a device."""
        raise NotImplementedError

    def _whole(self, device: Device, packet: Packet) -> bool:
        """Whether IP takes it up."""
        raise NotImplementedError


def _ruled(ruling: Ruling, changes: list[str]) -> str:
    told = [change for change in changes if not change.startswith("mark ")]
    said = f" ({', '.join(told)})" if told else ""
    decisive = ruling.decisive
    if decisive is not None:
        return decisive.line.shown + said
    return ("nothing objects" if ruling.verdict == ACCEPT else "policy drop") + said
