"""nftables in this process: rules by libnftables, elements by packed netlink; no fork.

libnftables(3). A context opens its netlink socket in the namespace of the thread that makes it.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from dvn.kernel import nfnl, nftread
from dvn.kernel.driver import KernelError
from dvn.kernel.elements import Form, UnknownFormError
from dvn.kernel.nfnl import Elements, NftSocket
from dvn.kernel.nftcommands import (
    AddElements,
    AddSet,
    AddTable,
    DelElements,
    DelTable,
    LoadTable,
    NftCommand,
    TableId,
)
from dvn.kernel.state import OWNER_SET, Element, NftChain, NftRule, NftSet, NftTable

_JSON, _STATELESS, _TERSE = 1 << 4, 1 << 2, 1 << 11  # nftables/libnftables.h
_TYPEOF = re.compile(r"^\t(?:set|map) (\S+) {\n\t\ttypeof (.+)$", re.MULTILINE)
_BRIDGE_META = (
    "add table bridge dvn-try; add chain bridge dvn-try c { type filter hook prerouting "
    'priority 0; }; add rule bridge dvn-try c meta ibrname "dvn-try"'
)


class _Context:
    """One libnftables context with fixed output flags."""

    def __init__(self, flags: int, *, dry: bool = False) -> None:
        try:
            self._lib = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise KernelError(
                f"libnftables.so.1 cannot be loaded ({error}); install libnftables1"
            ) from None
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        self._lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._lib.nft_ctx_new(0))
        if not self._context:
            raise KernelError("libnftables gave no context")
        self._lib.nft_ctx_output_set_flags(self._context, ctypes.c_uint(flags))
        self._lib.nft_ctx_set_dry_run(self._context, ctypes.c_bool(dry))
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> str:
        """Run commands as one transaction. Raises KernelError with nft's own words."""
        status = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._lib.nft_ctx_get_output_buffer(self._context)
        error = self._lib.nft_ctx_get_error_buffer(self._context)
        if status != 0:
            words = (error or b"").decode(errors="replace").strip()
            raise KernelError(f"nft: {words or 'refused without a word'}")
        return cast(bytes, output or b"").decode()

    def takes(self, commands: str) -> bool:
        """Whether the kernel would take the commands (of a dry context)."""
        try:
            self.run(commands)
        except KernelError:
            return False
        return True

    def close(self) -> None:
        self._lib.nft_ctx_free(self._context)


class Nft:
    """Reads our tables, writes transactions."""

    def __init__(self) -> None:
        self._reader = _Context(_JSON)
        self._shown = _Context(_STATELESS | _TERSE)
        self._writer = _Context(_STATELESS)
        self._bridge_meta: bool | None = None
        self._socket = NftSocket()
        self._forms: dict[tuple[str, str, NftSet, str], Form | None] = {}
        self._typeofs: dict[tuple[str, str, str], str] = {}
        # What each rule looked like when first seen under its comment: a rule whose body was
        # changed by hand and whose comment was kept is no longer what it says.
        self._seen: dict[tuple[str, str, str, str], str] = {}

    def close(self) -> None:
        self._reader.close()
        self._shown.close()
        self._writer.close()
        self._socket.close()

    def generation(self) -> int:
        """Grows with each transaction, ours or others'. Raises OSError."""
        return self._socket.generation()

    def run(self, commands: Sequence[NftCommand]) -> int:
        """All of it or nothing. Returns the number of transactions. Raises KernelError, OSError.

        One transaction; but new tables are made in three, elements first and what uses them last:
        packets meet no chain of ours or all of it.
        """
        try:
            stages = self._stages(commands)
        except UnknownFormError:
            stages = [list(commands)]
        done: list[TableId] = []
        try:
            for stage in stages:
                if isinstance(stage, list):
                    self._writer.run("\n".join(command.text() for command in stage))
                    done += [c.table for c in stage if isinstance(c, AddTable)]
                else:
                    self._socket.change(stage)
        except (KernelError, OSError):
            if len(stages) > 1:
                for table in done:
                    self._writer.run(DelTable(table).text())
            raise
        return len(stages)

    def _stages(
        self, commands: Sequence[NftCommand]
    ) -> list[list[NftCommand] | tuple[Elements, ...]]:
        """Commands for libnftables, and elements to be sent packed; raises UnknownFormError where
        only libnftables can do it."""
        packed: list[Elements] = []
        before: list[NftCommand] = []
        after: list[NftCommand] = []
        for command in commands:
            match command:
                case AddElements(table, set_, elements):
                    pieces = tuple(self._form(table, set_).messages(elements))
                    packed.append(Elements(table, set_.name, pieces, gone=False))
                case DelElements(table, set_, elements):
                    pieces = tuple(self._form(table, set_).messages(elements, keys_only=True))
                    packed.append(Elements(table, set_.name, pieces, gone=True))
                case AddSet(table, set_):
                    self._typeofs[*table, set_.name] = set_.typeof
                    before.append(command)
                case AddTable():
                    before.append(command)
                case _:
                    after.append(command)
        fresh = {command.table for command in before if isinstance(command, AddTable)}
        if any(isinstance(c, LoadTable | DelTable) or c.table not in fresh for c in after):
            raise UnknownFormError("a change of what is in use")
        if before and not {each.table for each in packed} <= fresh:
            raise UnknownFormError("a change of what is in use")
        return [stage for stage in (before, tuple(packed), after) if stage]

    def _form(self, table: TableId, set_: NftSet) -> Form:
        """How a set's elements are packed. Raises UnknownFormError."""
        key = (*table, set_.frame(), set_.typeof)
        if key not in self._forms:
            try:
                self._forms[key] = Form(set_)
            except UnknownFormError:
                self._forms[key] = None
        form = self._forms[key]
        if form is None:
            raise UnknownFormError(set_.name)
        return form

    def forget(self, family: str, table: str, chain: str | None = None) -> None:
        """The rules of a table, or of one chain of it, have just been written anew."""
        gone = (family, table) if chain is None else (family, table, chain)
        self._seen = {key: s for key, s in self._seen.items() if key[: len(gone)] != gone}

    def table_names(self) -> list[tuple[str, str]]:
        """(family, name) of all tables of the families inet and bridge. Raises OSError."""
        return [(family, nftread.name_of(row)) for family, row in self._socket.tables()]

    def table(self, family: str, name: str) -> NftTable | None:
        """A table as it is in the kernel; None if it has no marker of ours. Raises KernelError,
        OSError.

        Its parts are of one generation of the ruleset: read again if somebody changed it meanwhile.
        """
        for _attempt in range(10):
            before = self._socket.generation()
            try:
                found = self._table(family, name)
            except UnknownFormError:
                found = self._listed(family, name)
            if self._socket.generation() == before:
                return found
        raise KernelError("nft: the ruleset changes faster than it is read")

    def _table(self, family: str, name: str) -> NftTable | None:
        """By netlink. Raises UnknownFormError for sets that are none of ours."""
        key = (family, name)
        frames = [nftread.read_set(row) for row in self._socket.parts(nfnl.GETSET, *key)]
        marker = next((s for s in frames if s and s.name == OWNER_SET), None)
        if marker is None or not marker.comment.startswith("dvn:"):
            return None
        sets = tuple(self._filled(key, self._exact(key, frame)) for frame in frames if frame)
        rules: dict[str, list[NftRule]] = {}
        for row in self._socket.parts(nfnl.GETRULE, *key):
            chain, comment, digest = nftread.read_rule(row)
            rules.setdefault(chain, []).append(self._rule(key, chain, comment, f"#{digest}"))
        chains = [nftread.read_chain(row) for row in self._socket.parts(nfnl.GETCHAIN, *key)]
        return NftTable(
            cast(Literal["inet", "bridge"], family),
            name,
            sets,
            tuple(replace(c, rules=tuple(rules.get(c.name, ()))) for c in chains),
        )

    def _listed(self, family: str, name: str) -> NftTable | None:
        """By libnftables."""
        items = self._list(f"list table {family} {name}")
        sets = tuple(_set(body) for body in _bodies(items, "set", "map"))
        marker = next((s for s in sets if s.name == OWNER_SET), None)
        if marker is None or not marker.comment.startswith("dvn:"):
            return None
        rules: dict[str, list[NftRule]] = {}
        for body in _bodies(items, "rule"):
            shape = json.dumps([_uncounted(part) for part in body.get("expr", ())], sort_keys=True)
            rule = self._rule((family, name), body["chain"], body.get("comment", ""), shape)
            rules.setdefault(body["chain"], []).append(rule)
        chains = tuple(
            _chain(body, tuple(rules.get(body["name"], ()))) for body in _bodies(items, "chain")
        )
        return NftTable(cast(Literal["inet", "bridge"], family), name, sets, chains)

    def knows_bridges(self) -> bool:
        """Whether this kernel can match a frame's bridge (CONFIG_NFT_BRIDGE_META): it is asked,
        and nothing is changed."""
        if self._bridge_meta is None:
            asking = _Context(0, dry=True)
            self._bridge_meta = asking.takes(_BRIDGE_META)
            asking.close()
        return self._bridge_meta

    def listing(self, family: str, name: str) -> str:
        """nft's own text of a table, without counters' values; `nft -f` takes it back."""
        return self._writer.run(f"list table {family} {name}")

    def dropped(self, family: str, name: str) -> tuple[tuple[str, str, int, int], ...]:
        """(chain, comment, packets, bytes) of each rule of a table that counts what it drops."""
        reader = _Context(_JSON | _TERSE)
        try:
            items = json.loads(reader.run(f"list table {family} {name}"))["nftables"]
        finally:
            reader.close()
        found = []
        for rule in _bodies(items, "rule"):
            parts = [part for part in rule.get("expr", ()) if isinstance(part, dict)]
            counters = [part["counter"] for part in parts if part.get("counter")]
            if counters and any("drop" in part or "reject" in part for part in parts):
                count = counters[0]
                why = rule.get("comment", "")
                found.append((rule["chain"], why, count["packets"], count["bytes"]))
        return tuple(found)

    def ruleset(self) -> str:
        """nft's own text of every table, whoever made it, without counters' values."""
        return self._writer.run("list ruleset")

    def items(self, command: str) -> list[dict[str, Any]]:
        """What a `list` command answers, as nft's JSON objects. Raises KernelError."""
        return self._list(command)

    def _exact(self, table: TableId, frame: NftSet) -> NftSet:
        """A set with its `typeof`, which JSON does not have: how long its integers are."""
        if "integer" not in (*frame.type, *frame.data.split(" . ")):
            return frame
        if (*table, frame.name) not in self._typeofs:
            for name, words in _TYPEOF.findall(self._shown.run(f"list table {' '.join(table)}")):
                self._typeofs[*table, name] = words
        return replace(frame, typeof=self._typeofs.get((*table, frame.name), ""))

    def _filled(self, table: TableId, frame: NftSet) -> NftSet:
        """A set with its elements. Raises UnknownFormError."""
        form = self._form(table, frame)
        return replace(frame, elements=form.read(self._socket.elements(*table, frame.name)))

    def _list(self, command: str) -> list[dict[str, Any]]:
        output = self._reader.run(command)
        if not output:
            return []
        return cast(list[dict[str, Any]], json.loads(output)["nftables"])

    def _rule(self, table: TableId, chain: str, comment: str, shape: str) -> NftRule:
        """`shape`: what stands for what the rule does, the same each time it is read."""
        if not comment:
            return NftRule(f"(not ours: {shape[:200]})")
        # A digest and words (libnftables had to be asked) are not compared with each other.
        key = (*table, chain, f"{shape[:1]}{comment}")
        if self._seen.setdefault(key, shape) != shape:
            return NftRule(f"{comment} (changed by hand)")
        return NftRule(comment)


def _bodies(items: list[dict[str, Any]], *kinds: str) -> Iterator[dict[str, Any]]:
    for item in items:
        for kind in kinds:
            if kind in item:
                yield item[kind]


def _uncounted(part: Any) -> Any:
    """An expression without the packets and bytes it has counted."""
    return {"counter": None} if isinstance(part, dict) and "counter" in part else part


def _set(body: dict[str, Any]) -> NftSet:
    kinds = body["type"]
    if isinstance(kinds, dict):  # a set declared with typeof, as nft 1.1 shows it
        kinds = [_type_of(part) for part in kinds["typeof"].get("concat", [kinds["typeof"]])]
    data = body.get("map", "")
    elements = frozenset(_element(item, bool(data)) for item in body.get("elem", ()))
    return NftSet(
        name=body["name"],
        type=(kinds,) if isinstance(kinds, str) else tuple(kinds),
        elements=elements,
        data=_data(data),
        interval="interval" in body.get("flags", ()),
        comment=body.get("comment", ""),
    )


def _data(kind: Any) -> str:
    if isinstance(kind, dict):  # likewise
        return _type_of(kind["typeof"])
    return kind if isinstance(kind, str) else " . ".join(kind)


def _type_of(expression: Any) -> str:
    key = expression.get("meta", {}).get("key", "integer")
    return "ifname" if key == "iifname" else str(key)


def _element(item: Any, is_map: bool) -> Element:
    if is_map:
        key, value = item
        return (*_parts(key), *_parts(value))
    return _parts(item)


def _parts(item: Any) -> Element:
    if isinstance(item, dict):
        if "elem" in item:
            return _parts(item["elem"]["val"])
        if "concat" in item:
            return tuple(part for one in item["concat"] for part in _parts(one))
        if "prefix" in item:
            return (f"{item['prefix']['addr']}/{item['prefix']['len']}",)
        if "range" in item:
            return ("-".join(str(end) for end in item["range"]),)
        return (json.dumps(item, sort_keys=True),)
    return (str(item),)


def _chain(body: dict[str, Any], rules: tuple[NftRule, ...]) -> NftChain:
    return NftChain(
        name=body["name"],
        rules=rules,
        type=body.get("type", ""),
        hook=body.get("hook", ""),
        priority=int(body.get("prio", 0)),
        policy=body.get("policy", ""),
    )
