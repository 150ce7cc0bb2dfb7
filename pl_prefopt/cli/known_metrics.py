"""The metrics that modules declare, read from source files without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from pl_prefopt.cli.class_sources import ClassSource, Module, dotted, read_module
from pl_prefopt.metric_info import MetricInfo

_KINDS = ("MetricInfo", "RegisteredMetric")
_FIELDS = {field.name for field in fields(MetricInfo)}


def registered() -> list[MetricInfo]:
    """Return the metrics of every run."""
    return declared_in("pl_prefopt.metrics.registry")


def declared_in(module: str) -> list[MetricInfo]:
    """Return the metrics declared by calls of ``MetricInfo`` in a module's source, in order."""
    source = read_module(module)
    bound = source.bound.values() if isinstance(source, Module) else ()
    return list(_declared(statement for statements in bound for statement in statements))


def declared_by(source: ClassSource) -> list[MetricInfo]:
    """Return the metrics that the body of a class declares."""
    return list(_declared(iter([source.node])))


def _declared(statements: Iterator[ast.stmt]) -> Iterator[MetricInfo]:
    seen: set[ast.stmt] = set()
    for statement in statements:
        if statement not in seen:
            seen.add(statement)
            calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
            infos = (_read(call) for call in sorted(calls, key=_line) if _is_info(call))
            yield from (info for info in infos if info.name)


def _line(node: ast.Call) -> int:
    return node.lineno


def _is_info(call: ast.Call) -> bool:
    named = {keyword.arg for keyword in call.keywords}
    return (dotted(call.func) or "").rpartition(".")[2] in _KINDS and {"name", "help"} <= named


def _read(call: ast.Call) -> MetricInfo:
    """Return the entry; arguments that are not literals are left out."""
    settings: dict[str, Any] = {"name": "", "help": ""}
    for keyword in call.keywords:
        if keyword.arg in _FIELDS:
            try:
                settings[keyword.arg] = _literal(keyword.value)
            except ValueError:
                continue
    return MetricInfo(**settings)


def _literal(value: ast.expr) -> Any:
    """Return a literal's value; for an f-string, its text with the names in braces.

    >>> _literal(ast.parse('f"{part}_loss"', mode="eval").body)
    '{part}_loss'
    """
    if isinstance(value, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"  # type: ignore[attr-defined]
            for part in value.values
        )
    return ast.literal_eval(value)
