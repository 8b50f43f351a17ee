"""Strict YAML to typed models: what is misspelt stops at the door, with its place and its likely meaning.

A config is data. It names components by `kind`, inherits by `extends`, is overridden by `a.b=c`, and can neither
import nor execute anything. Scalars follow YAML 1.2, so `1e-4` is a number and `no` is a word.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from latentvid.core.errors import InputError, UsageError, did_you_mean
from latentvid.core.reading import DEEPEST, read_text

MAX_BYTES = 1 << 20
MOST_ENTRIES = 1 << 15
"""Keys, values and lists of one file."""
MOST_FILES = 32
"""Which a config may extend, directly or not, counted as often as they are named."""


class StrictModel(BaseModel):
    """The base of every config: unknown keys, infinities and later changes are errors.

    A choice between components is a union told apart by `kind`:
    `noise: Annotated[Iid.Config | Mixed.Config, Field(discriminator="kind")]`, with `kind: Literal["iid"] = "iid"`.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


Model = TypeVar("Model", bound=BaseModel)


def load_config(path: str | Path | None, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file (None: nothing but defaults), apply `a.b=c` overrides, and check it against `model`.

    Raises:
        UsageError: the file is missing, is not YAML, extends itself, or does not fit `model`.
    """
    tree = {} if path is None else read_tree(path)
    wanted: dict[str, Any] = {}
    for override in overrides:
        tree, wanted = _override(tree, wanted, override)
    return validate(merge(tree, wanted), model, source=path)


def validate(tree: Mapping[str, Any], model: type[Model], *, source: str | Path | None = None) -> Model:
    """Return `tree` as a `model`.

    Raises:
        UsageError: naming the place ("config.noise.alhpa is not known; did you mean 'alpha'?").
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        # A misspelt key explains the missing one that comes with it, so it is told first.
        found = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        where = f"{source}: " if source else ""
        raise UsageError(f"{where}{_sentence(found[0], model)}{more}") from error


def read_tree(path: str | Path) -> dict[str, Any]:
    """Return a YAML file as plain data, what it extends merged beneath it.

    Raises:
        UsageError: the file is missing, too large, not a YAML mapping, or extends itself.
    """
    return _read(Path(path), (), [0])


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `above` laid over `below`, mapping by mapping; one that changes its `kind` replaces.

    >>> merge({"noise": {"kind": "mixed", "alpha": 2}}, {"noise": {"kind": "iid"}})
    {'noise': {'kind': 'iid'}}
    """
    if "kind" in below and "kind" in above and below["kind"] != above["kind"]:
        return dict(above)  # the old keys belong to another component
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


def dump_config(config: BaseModel) -> str:
    """Return a config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, no aliases (they can grow without bound; `extends` serves), no duplicate keys.

    Values are null, yes and no, numbers, words, lists and mappings; how many there are, and how deep, is bounded.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}
    yaml_constructors: dict[Any, Any] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }
    num_nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        problem = "aliases are not read; use 'extends'" if self.check_event(yaml.AliasEvent) else ""
        self.num_nodes += 1
        if self.num_nodes > MOST_ENTRIES:
            problem = f"it has more than {MOST_ENTRIES:,} entries"
        if self.depth > DEEPEST:
            problem = "it is nested too deeply"
        if problem:
            raise yaml.constructor.ConstructorError(None, None, problem, self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf)|\.nan",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse_yaml(text: str) -> Any:
    """Return YAML as plain data, without aliases and within bounds.

    Raises:
        ValueError: it is none, or not of the kind that is read here; the text says why, and in which line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{line}{problem}") from error


def _parse(text: str, place: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{place}: not YAML we read ({error}).") from error


def _read(path: Path, chain: tuple[Path, ...], num_read: list[int]) -> dict[str, Any]:
    """Read a file and what it extends.

    Args:
        chain: the files that led here.
        num_read: how many were read so far; one may be extended by many.
    """
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a zero byte
        raise UsageError(f"{path}: the config cannot be read ({error}).") from error
    if resolved in chain:
        names = " -> ".join(p.name for p in (*chain, resolved))
        raise UsageError(f"{path}: configs extend each other in a circle ({names}).")
    num_read[0] += 1
    if num_read[0] > MOST_FILES:
        raise UsageError(f"{path}: the config extends more than {MOST_FILES} files.")
    try:
        tree = _parse(read_text(path, max_bytes=MAX_BYTES), str(path))
    except InputError as error:
        raise UsageError(f"{str(error).rstrip('.')}; a config is a YAML file.") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: a config is a mapping of keys to values, not a {type(tree).__name__}.")
    merged: dict[str, Any] = {}
    for parent in _parents(tree.pop("extends", ()), path):
        merged = merge(merged, _read(path.parent / parent, (*chain, resolved), num_read))
    return merge(merged, tree)


def _parents(extends: Any, path: Path) -> list[str]:
    parents = [extends] if isinstance(extends, str) else extends or ()
    if not isinstance(parents, (list, tuple)) or not all(isinstance(parent, str) for parent in parents):
        raise UsageError(f"{path}: 'extends' names one file or a list of files.")
    return list(parents)


def _override(tree: dict[str, Any], wanted: dict[str, Any], text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Add one `a.b=c` to `wanted`; one that reaches into a list is applied to `tree` at once."""
    key, equals, value = text.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UsageError(f"--set {text!r}: write it as key.subkey=value.")
    parsed = _parse(value, f"--set {key.strip()}")
    if any(_is_position(step) for step in path):
        return _replaced(merge(tree, wanted), path, parsed, text), {}
    leaf: Any = parsed
    for step in reversed(path):
        leaf = {step: leaf}
    return tree, merge(wanted, leaf)


def _is_position(step: str) -> bool:
    return step.isascii() and step.isdigit() and len(step) < 10


def _replaced(node: Any, path: Sequence[str], value: Any, text: str) -> Any:
    if not path:
        return merge(node, value) if isinstance(node, Mapping) and isinstance(value, Mapping) else value
    step, rest = path[0], path[1:]
    if isinstance(node, list):
        if not _is_position(step) or int(step) >= len(node):
            raise UsageError(f"--set {text!r}: {step!r} is no position in a list of {len(node)}.")
        return [_replaced(item, rest, value, text) if i == int(step) else item for i, item in enumerate(node)]
    if not isinstance(node, Mapping) and node is not None:
        raise UsageError(f"--set {text!r}: {step!r} lies in a {type(node).__name__}, not in a mapping.")
    return {**(node or {}), step: _replaced((node or {}).get(step), rest, value, text)}


def _sentence(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    steps, parents = _walk(model, error["loc"])
    place = "config" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"{place} is not known{did_you_mean(str(error['loc'][-1]), _keys(parents))}"
    if kind == "missing":
        return f"{place} is missing."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        kinds = _kinds(parents)
        if kind == "union_tag_not_found":
            return f"{place} needs a 'kind', one of: {', '.join(sorted(kinds))}."
        tag = str(error["ctx"]["tag"])
        return f"{place}.kind {tag!r} is not known{did_you_mean(tag, kinds)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = error.get("input")
    shown = f"; got {given!r}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{place}: {message[:1].lower()}{message[1:]}{shown if len(shown) < 80 else ''}."


def _walk(model: type[BaseModel], loc: Iterable[str | int]) -> tuple[list[str | int], list[Any]]:
    """Follow an error's place through the types; return it as the user wrote it, and the types it ends in.

    Pydantic puts the names of union members between the keys; those are no part of the file.
    """
    steps: list[str | int] = []
    types_here: list[Any] = [model]
    loc = list(loc)
    for i, step in enumerate(loc):
        last = i == len(loc) - 1
        chosen = [t for t in types_here if str(step) in _tags(t)]
        if chosen and len(types_here) > 1 and not (last and _has_key(types_here, step)):
            types_here = chosen
            continue
        steps.append(step)
        inside = [t for here in types_here for t in _inside(here, step)]
        if last and not inside:
            break  # the key itself is the trouble: its neighbours are wanted
        types_here = inside
    return steps, types_here


def _members(annotation: Any) -> list[Any]:
    """Return the plain types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [t for part in get_args(annotation) if part is not type(None) for t in _members(part)]
    return [annotation]


def _inside(here: Any, step: str | int) -> list[Any]:
    if isinstance(here, type) and issubclass(here, BaseModel):
        field = here.model_fields.get(str(step))
        return _members(field.annotation) if field else []
    arguments = [a for a in get_args(here) if a is not Ellipsis]
    return _members(arguments[-1]) if arguments and get_origin(here) is not Literal else []


def _tags(here: Any) -> set[str]:
    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return {getattr(here, "__name__", str(here))}
    return {here.__name__, *_kinds([here])}


def _kinds(models: Iterable[Any]) -> set[str]:
    fields = (m.model_fields.get("kind") for m in models if isinstance(m, type) and issubclass(m, BaseModel))
    return {str(kind) for field in fields if field is not None for kind in get_args(field.annotation)}


def _keys(models: Iterable[Any]) -> set[str]:
    return {k for m in models if isinstance(m, type) and issubclass(m, BaseModel) for k in m.model_fields}


def _has_key(models: Iterable[Any], step: str | int) -> bool:
    return str(step) in _keys(models)
