"""Configuration: YAML differences -> frozen dataclasses -> command-line overrides. Strict.

A configuration file holds only what differs from the dataclasses' defaults, and may start from
another file (`base: NAME`). Unknown keys, wrong types and values out of range are the user's to
mend, so each fails with one line that names the key. A choice among dataclasses is a union whose
members have a field `kind: Literal["..."]`; the key `kind` picks one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from lawm_policy.types import UserError

T = TypeVar("T")


class Text(str):
    """An override's value as typed: what it means depends on the field that receives it."""


def config_dir() -> Path:
    """The folder of configurations: `configs/` of a clone, `lawm_policy/configs` of a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise UserError(
        f"expected configurations in {package / 'configs'}, found none: install the package again"
    )


def cache_folder() -> Path:
    """Where what can be made or fetched again lies: `$LAWM_CACHE`, else the user's own cache."""
    return Path(os.environ.get("LAWM_CACHE") or Path.home() / ".cache" / "lawm-policy")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where X is close, else the list of what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(known)) or '(none)'}"


def load_config(
    name_or_path: str | Path, cls: type[T], overrides: Sequence[tuple[str, str]] = (), *, stage: str = ""
) -> T:
    """Reads `configs/<stage>/<name>.yaml` (or a path to a YAML file) and applies `(a.b, text)` overrides."""
    data = _read_chain(_find(str(name_or_path), stage), stage, seen=())
    for key, text in overrides:
        _merge(data, _nested(key.replace("-", "_"), Text(text)), key)
    return from_dict(cls, data)


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """The dataclass that `data` describes; keys left out keep their defaults."""
    return _build(cls, data, None, "")


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain values that YAML and JSON can hold; `from_dict` gives it back."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}


def dump(config: Any) -> str:
    """The resolved configuration as YAML text, in the order of the fields."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=100)


def difference(old: Any, new: Any) -> str | None:
    """The first of the differences."""
    return next(differences(old, new), None)


def differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    """The dotted keys whose values differ, as "train.lr: 0.001 and 0.002"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    elif old != new:
        yield f"{at}: {json.dumps(old)} and {json.dumps(new)}"


def value_at(plain: Mapping[str, Any], key: str) -> Any:
    """What `to_dict` gave for a dotted key."""
    for part in key.split("."):
        plain = plain[part]
    return plain


def refuse_ignored(
    overrides: Iterable[tuple[str, str]], asked: Any, became: Any, decides: Mapping[str, str]
) -> None:
    """An override that another key undoes is a mistake; `decides` says, for a key or its section, which."""
    before, after = to_dict(asked), to_dict(became)
    for key in (key.replace("-", "_") for key, _ in overrides):
        if told := difference({key: value_at(before, key)}, {key: value_at(after, key)}):
            found = told.partition(":")[0]
            whose = next(decides[part] for part in decides if f"{found}.".startswith(f"{part}."))
            raise UserError(
                f"expected {found}={_say(value_at(after, found))}, which follows from {whose}, found "
                f"{_say(value_at(before, found))}: leave it out, or change {whose}"
            )


# Files ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of booleans and numbers (`no` is text, `1e-4` a number); repeated keys fail."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise UserError(f"expected each key once, found {key.value!r} again in line {line}: keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "float")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tfTF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"expected YAML in {where}, found {reason}: correct it") from None


def _find(name: str, stage: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if path.is_file():
            return path
        raise UserError(f"expected a configuration file, found nothing at {name}: check the path")
    folder = config_dir() / stage
    path = folder / f"{name}.yaml"
    if path.is_file():
        return path
    known = [p.stem for p in folder.glob("*.yaml")]
    raise UserError(
        f"expected a configuration of {stage or 'configs'}, found {name!r}: {nearest(name, known)}"
    )


def _read_chain(path: Path, stage: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's keys laid over those of its `base`."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"expected a chain of bases with an end, found {path.name} twice: remove one `base`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"expected a readable text file, found {path} ({error}): check it") from None
    data = parse_yaml(text, str(path))
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise UserError(f"expected keys and values in {path}, found {_say(data)}: write `key: value` lines")
    base = data.pop("base", None)
    if base is None:
        return data
    sibling = path.parent / f"{base}.yaml"
    root = _read_chain(sibling if sibling.is_file() else _find(str(base), stage), stage, (*seen, path))
    _merge(root, data, "")
    return root


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    head, _, rest = dotted.partition(".")
    if not head:
        raise UserError(f"expected a key like a.b, found {dotted!r}: write --set a.b=value")
    return {head: _nested(rest, value) if rest else value}


def _merge(onto: dict[str, Any], data: Mapping[str, Any], at: str) -> None:
    """Lays `data` over `onto`; choosing another `kind` drops the keys of the kind before."""
    for key, value in data.items():
        old = onto.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            if "kind" in value and str(value["kind"]) != str(old.get("kind", value["kind"])):
                onto[key] = dict(value)
            else:
                _merge(old, value, at)
        else:
            onto[key] = dict(value) if isinstance(value, Mapping) else value


# Types ---------------------------------------------------------------------------------------


def _fields(cls: Any) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return {f.name: (f, hints[f.name]) for f in dataclasses.fields(cls) if f.init}


def _build(cls: type[T], data: Mapping[str, Any], default: T | None, at: str) -> T:
    """An instance of dataclass `cls`: `default` (or the class's own defaults) changed by `data`."""
    fields = _fields(cls)
    values: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{at}.{key}" if at else str(key)
        if key not in fields:
            known = [f"{at}.{name}" if at else name for name in fields]
            raise UserError(f"expected a known key, found {path!r}: {nearest(path, known)}")
        field, hint = fields[key]
        values[key] = _convert(hint, value, _default(field, default), path)
    for name, (field, _) in fields.items():
        if default is not None and name not in values:
            values[name] = getattr(default, name)
        elif name not in values and _default(field, None) is dataclasses.MISSING:
            path = f"{at}.{name}" if at else name
            raise UserError(
                f"expected a value for {path}, found none: add it to the configuration or --set {path}=..."
            )
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(_placed(str(error), fields, at)) from None
    except ValueError as error:
        raise UserError(f"expected valid {at or 'values'}, found {error}: change the configuration") from None


def _placed(message: str, fields: Iterable[str], at: str) -> str:
    """A dataclass knows its fields by their own names, the user by their whole ones."""
    named = re.match(r"expected (\w+)", message)
    if at and named and named[1] in fields:
        return f"expected {at}.{message[len('expected ') :]}"
    return f"{at}: {message}" if at else message


def _default(field: dataclasses.Field[Any], instance: Any) -> Any:
    if instance is not None:
        return getattr(instance, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _convert(hint: Any, value: Any, default: Any, at: str) -> Any:
    """`value` as type `hint`, or a UserError that says what `at` should hold."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return parse_yaml(value, at) if isinstance(value, Text) else value
    if origin is typing.Annotated:
        return _convert(args[0], value, default, at)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, default, at)
    if origin is Literal:
        for choice in args:
            if (value == choice and type(value) in (type(choice), Text)) or (
                isinstance(value, Text) and str(choice) == value
            ):
                return choice
        raise _wrong(" or ".join(repr(a) for a in args), value, at)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Text):
            value = parse_yaml(value, at)
        if not isinstance(value, Mapping):
            raise _wrong(f"keys and values ({', '.join(_fields(typing.cast(type, hint)))})", value, at)
        return _build(
            typing.cast(type, hint),
            value,
            default if isinstance(default, typing.cast(type, hint)) else None,
            at,
        )
    if origin in (tuple, list) or hint in (tuple, list):
        return _convert_sequence(origin or hint, args, value, at)
    if origin in (dict, Mapping) or hint is dict:
        value = parse_yaml(value, at) if isinstance(value, Text) else value
        if not isinstance(value, Mapping):
            raise _wrong("keys and values", value, at)
        inner = args[1] if args else Any
        return {str(k): _convert(inner, v, dataclasses.MISSING, f"{at}.{k}") for k, v in value.items()}
    return _convert_scalar(hint, value, at)


def _convert_union(args: tuple[Any, ...], value: Any, default: Any, at: str) -> Any:
    absent = value is None or (isinstance(value, Text) and value.lower() in ("null", "none", ""))
    if absent and type(None) in args:
        return None
    members = [a for a in args if a is not type(None)]
    kinds = {m.kind: m for m in members if dataclasses.is_dataclass(m) and hasattr(m, "kind")}
    if len(kinds) == len(members) and len(kinds) > 1:
        if isinstance(value, Text):
            value = {"kind": value}  # `--world_model rssm` picks the kind
        if not isinstance(value, Mapping):
            raise _wrong(f"keys and values with `kind` ({' or '.join(kinds)})", value, at)
        kind = str(value.get("kind", getattr(default, "kind", next(iter(kinds)))))
        if kind not in kinds:
            raise UserError(
                f"expected {at}.kind among {', '.join(kinds)}, found {kind!r}: {nearest(kind, kinds)}"
            )
        return _convert(kinds[kind], value, default, at)
    failures = []
    for member in members:
        try:
            return _convert(member, value, default, at)
        except UserError as error:
            failures.append(error)
    raise failures[0]


def _convert_sequence(kind: type, args: tuple[Any, ...], value: Any, at: str) -> Any:
    if isinstance(value, Text):
        text = value.strip()
        value = (
            [Text(v) for v in text.strip("[]()").replace(",", " ").split()]
            if "[[" not in text
            else parse_yaml(text, at)
        )
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong("a list", value, at)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise _wrong(f"{len(args)} values", value, at)
        return tuple(
            _convert(a, v, dataclasses.MISSING, f"{at}[{i}]")
            for i, (a, v) in enumerate(zip(args, value, strict=True))
        )
    inner = args[0] if args else Any
    return kind(_convert(inner, v, dataclasses.MISSING, f"{at}[{i}]") for i, v in enumerate(value))


def _convert_scalar(hint: Any, value: Any, at: str) -> Any:
    if hint is str and isinstance(value, str):
        return str(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, Text):
        value = parse_yaml(value, at)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5 steps
    if hint is bool and isinstance(value, bool):
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    raise _wrong(names.get(hint, str(hint)), value, at)


def _wrong(expected: str, value: Any, at: str) -> UserError:
    return UserError(f"expected {expected} for {at}, found {_say(value)}: correct it")


def _say(value: Any) -> str:
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return value
