"""A configuration as YAML in which each key says what it is, in the words of its dataclass."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import yaml

from lawm_policy.config import to_dict


def explain(config: Any) -> str:
    """YAML that `load_config` reads back as the same configuration."""
    return "".join(f"{line}\n" for line in _lines(config, ""))


def field_comments(cls: type[Any]) -> dict[str, str]:
    """What the source says of each field, on one line: the string below it, or the comment beside it."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    said = {}
    for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            words = [beside.get(row, "") for row in range(node.lineno, (node.end_lineno or node.lineno) + 1)]
            match following:
                case ast.Expr(value=ast.Constant(value=str(below))):
                    words = [below]
            said[node.target.id] = " ".join(" ".join(words).split())
    return said


def _lines(config: Any, indent: str) -> Iterator[str]:
    said, hints, plain = field_comments(type(config)), typing.get_type_hints(type(config)), to_dict(config)
    for name in (f.name for f in fields(config) if f.init):
        value = getattr(config, name)
        line = f"{indent}{name}:" + ("" if is_dataclass(value) else f" {_value(plain[name])}")
        comment = "; ".join(filter(None, (_choices(hints[name]), said[name])))
        yield line + (f"  # {comment}" if comment else "")
        if is_dataclass(value):
            yield from _lines(value, indent + "  ")


def _value(plain: Any) -> str:
    """As YAML, on one line."""
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1_000_000)
    return text.removesuffix("...\n").strip()


def _choices(hint: Any) -> str:
    """What a field may hold, where that is a list."""
    if typing.get_origin(hint) is not Literal:
        return ""
    *others, last = map(str, typing.get_args(hint))
    return f"{', '.join(others)} or {last}" if others else ""
