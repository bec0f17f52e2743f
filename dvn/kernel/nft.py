"""nftables through libnftables in this process: no fork, one transaction a call.

libnftables(3). A context opens its netlink socket in the namespace of the thread that makes it.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from typing import Any, Literal, cast

from dvn.kernel.driver import KernelError
from dvn.kernel.state import OWNER_SET, Element, NftChain, NftRule, NftSet, NftTable

_JSON, _STATELESS = 1 << 4, 1 << 2  # nftables/libnftables.h
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
        self._writer = _Context(_STATELESS)
        self._bridge_meta: bool | None = None
        # What each rule looked like when first seen under its comment: a rule whose body was
        # changed by hand and whose comment was kept is no longer what it says.
        self._seen: dict[tuple[str, str, str, str], str] = {}

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def run(self, text: str) -> None:
        """One transaction: all of it or nothing."""
        self._writer.run(text)

    def forget(self, family: str, table: str, chain: str | None = None) -> None:
        """The rules of a table, or of one chain of it, have just been written anew."""
        gone = (family, table) if chain is None else (family, table, chain)
        self._seen = {key: s for key, s in self._seen.items() if key[: len(gone)] != gone}

    def table_names(self) -> list[tuple[str, str]]:
        return [
            (item["table"]["family"], item["table"]["name"])
            for item in self._list("list tables")
            if "table" in item
        ]

    def table(self, family: str, name: str) -> NftTable | None:
        """A table as it is in the kernel; None if it has no marker of ours."""
        items = self._list(f"list table {family} {name}")
        sets = tuple(_set(body) for body in _bodies(items, "set", "map"))
        marker = next((s for s in sets if s.name == OWNER_SET), None)
        if marker is None or not marker.comment.startswith("dvn:"):
            return None
        rules: dict[str, list[NftRule]] = {}
        for body in _bodies(items, "rule"):
            rules.setdefault(body["chain"], []).append(self._rule(body))
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

    def ruleset(self) -> str:
        """nft's own text of every table, whoever made it, without counters' values."""
        return self._writer.run("list ruleset")

    def items(self, command: str) -> list[dict[str, Any]]:
        """What a `list` command answers, as nft's JSON objects. Raises KernelError."""
        return self._list(command)

    def _list(self, command: str) -> list[dict[str, Any]]:
        output = self._reader.run(command)
        if not output:
            return []
        return cast(list[dict[str, Any]], json.loads(output)["nftables"])

    def _rule(self, body: dict[str, Any]) -> NftRule:
        comment = body.get("comment", "")
        shape = json.dumps([_uncounted(part) for part in body.get("expr", ())], sort_keys=True)
        if not comment:
            return NftRule(f"(not ours: {shape[:200]})")
        key = (body["family"], body["table"], body["chain"], comment)
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
