"""Pydantic models read from located YAML: every error gets its line, and words a person knows."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from dvn.problems import Path_, Problem, SpecError

if TYPE_CHECKING:
    from dvn.located import Located


class Model(BaseModel):
    """A frozen value of a file: unknown keys are errors, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


M = TypeVar("M", bound=BaseModel)

_FAULT = "fault"


def fault(what: str, fix: str = "") -> PydanticCustomError:
    """An error for a validator to raise: what is wrong and how to mend it."""
    return PydanticCustomError(_FAULT, "{what}", {"what": what, "fix": fix})


def validate(model: type[M], doc: Located, *, path: Path_ = ()) -> M:
    """Make a `model` of the mapping at `path` in `doc`.

    Raises SpecError with every problem, each with file and line.
    """
    here = doc.at(path)
    try:
        return model.model_validate(here.plain())
    except ValidationError as error:
        raise SpecError(problems_of(error, model, here)) from None


def problems_of(error: ValidationError, model: type[BaseModel], doc: Located) -> list[Problem]:
    """Each error of a validation of `doc.plain()` as a problem at its line."""
    problems: dict[tuple[int, Path_, str], Problem] = {}
    for detail in error.errors(include_url=False):
        path = _real_path(detail["loc"], doc)
        what, fix = _words(detail, model, path)
        line = doc.line_of(path)
        if detail["type"] == "missing":
            line = doc.line_of(path[:-1])
        problem = Problem(doc.file, line, what, fix, path)
        problems.setdefault((line, path, what), problem)
    return _without_union_noise(list(problems.values()))


def unplaced(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """The same for a value that came from no file; problems carry their path only."""
    result = []
    for detail in error.errors(include_url=False):
        path = tuple(detail["loc"])
        what, fix = _words(detail, model, path)
        result.append(Problem("", 0, what, fix, path))
    return result


def _real_path(loc: Iterable[str | int], doc: Located) -> Path_:
    """The part of a pydantic location that exists in the file (it also names union members)."""
    path: list[str | int] = []
    here: Located | None = doc
    for step in loc:
        if here is not None and _is_tag(step, here):
            continue
        below = here.get(step) if here is not None else None
        if below is None:
            if (
                here is not None
                and isinstance(here.value, dict)
                and isinstance(step, str)
                and step != "[key]"
                and "[" not in step
            ):
                path.append(step)
            break
        path.append(step)
        here = below
    return tuple(path)


def _is_tag(step: str | int, here: Located) -> bool:
    """Whether pydantic names the member of a union here, by the value of the mapping's `type`."""
    if not isinstance(here.value, dict) or here.get(step) is not None:
        return False
    kind = here.get("type")
    return kind is not None and kind.plain() == step


def _without_union_noise(problems: list[Problem]) -> list[Problem]:
    """Of several complaints about one value keep the first: a union makes one for each member."""
    seen: set[tuple[int, Path_]] = set()
    kept = []
    for problem in problems:
        if (problem.line, problem.path) not in seen or not problem.path:
            kept.append(problem)
            seen.add((problem.line, problem.path))
    return kept


def _words(detail: ErrorDetails, model: type[BaseModel], path: Path_) -> tuple[str, str]:
    name = _name(path)
    given = _shown(detail.get("input"))
    ctx: dict[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "fault":
            return str(ctx["what"]), str(ctx["fix"])
        case "extra_forbidden":
            return f"`{path[-1]}` is not a known key{_of(path)}", _nearest(
                str(path[-1]), model, tuple(detail["loc"])
            )
        case "missing":
            example = _example(model, tuple(detail["loc"]))
            return f"{name} is missing{_in(path)}", f"add `{path[-1]}: {example}`"
        case "union_tag_invalid":
            kind, known = ctx["tag"], ctx["expected_tags"].replace("'", "").split(", ")
            return f"`type` is {kind!r}, which is not known here", nearest(kind, known)
        case "union_tag_not_found":
            return f"{name} has no `type`", "say with `type` of which kind it is"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{name} must be a whole number, not {given}", "write a number without quotes"
        case "float_type" | "float_parsing":
            return f"{name} must be a number, not {given}", "write a number without quotes"
        case "string_type":
            return f"{name} must be text, not {given}", "put it in quotes"
        case "bool_type" | "bool_parsing":
            return f"{name} must be true or false, not {given}", "write true or false"
        case "model_type" | "dict_type" | "model_attributes_type":
            return (
                f"{name} must be a mapping of keys to values, not {given}",
                "write its keys below it, indented",
            )
        case "list_type" | "tuple_type":
            return f"{name} must be a list, not {given}", "write [a, b] or one item a line with `-`"
        case "literal_error" | "enum":
            return f"{name} is {given}, which is not known here", f"use {ctx.get('expected', '')}"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            sign = {
                "greater_than_equal": ("at least", "ge"),
                "greater_than": ("above", "gt"),
                "less_than_equal": ("at most", "le"),
                "less_than": ("below", "lt"),
            }
            word, key = sign[detail["type"]]
            return f"{name} {given} is out of range", f"use {word} {ctx[key]}"
        case "value_error":
            return f"{name}: {ctx.get('error', detail['msg'])}", ""
        case _:
            return f"{name} {given}: {detail['msg'][:1].lower()}{detail['msg'][1:]}", ""


def _name(path: Path_) -> str:
    words = [step for step in path if isinstance(step, str)]
    return f"`{words[-1]}`" if words else "the file"


def _of(path: Path_) -> str:
    owner = ".".join(str(step) for step in path[:-1])
    return f" of {owner}" if owner else ""


def _in(path: Path_) -> str:
    owner = ".".join(str(step) for step in path[:-1])
    return f" in {owner}" if owner else ""


def _example(model: type[BaseModel], path: Path_) -> str:
    owner = _model_at(model, path[:-1])
    info = owner.model_fields.get(str(path[-1])) if owner else None
    return str(info.examples[0]) if info and info.examples else "..."


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, str) else str(value)


def _nearest(key: str, model: type[BaseModel], path: Path_) -> str:
    owner = _model_at(model, path[:-1])
    known = [f.alias or name for name, f in owner.model_fields.items()] if owner else []
    return nearest(key, known)


def nearest(word: str, known: Iterable[str]) -> str:
    """The fix for a word nobody knows: the known one it looks like, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"known here: {', '.join(known)}" if known else "remove it"


def _model_at(model: type[BaseModel], path: Path_) -> type[BaseModel] | None:
    """The model that describes the mapping at `path` of a `model`'s file."""
    kind: Any = model
    for step in path:
        kind = _below(kind, step)
        if kind is None:
            return None
    models = [k for k in _members(kind) if isinstance(k, type) and issubclass(k, BaseModel)]
    return models[0] if models else None


def _tag_of(member: Any) -> Any:
    """The one value of its `type`, by which a union tells this member from the others."""
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return None
    info = member.model_fields.get("type")
    values = typing.get_args(info.annotation) if info is not None else ()
    return values[0] if len(values) == 1 else None


def _members(kind: Any) -> list[Any]:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _members(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for arg in typing.get_args(kind) for member in _members(arg)]
    return [kind]


def _below(kind: Any, step: str | int) -> Any:
    for member in _members(kind):
        if _tag_of(member) == step:
            return member
    for member in _members(kind):
        origin, args = typing.get_origin(member), typing.get_args(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, info in member.model_fields.items():
                if step in (name, info.alias):
                    return info.annotation
        elif origin is Literal:
            continue
        elif isinstance(step, str) and len(args) == 2 and args[1] is not Ellipsis:
            return args[1]
        elif isinstance(step, int) and args:
            return args[0]
    return None
