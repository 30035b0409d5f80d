"""Targets and penalties as text: `ring(0.9, 0.99)`, `band(0.5, 1.0)*0.1@ramp(0, 100)`. Parsed, never evaluated."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from specreg.studies.errors import UsageError

MAX_LENGTH = 1000


class ExpressionError(UsageError):
    """Text that is not a call such as `ring(0.9, 0.99)`: says what stands there and what may."""


@dataclass(frozen=True)
class Expression:
    """A name with arguments, each a number or another expression, and perhaps a weight and a schedule."""

    name: str
    arguments: tuple[float | int | Expression, ...] = ()
    keywords: Mapping[str, float | int | Expression] = field(default_factory=dict)
    weight: float | None = None
    schedule: Expression | None = None


def parse(text: str) -> Expression:
    """Read `name(number, …)`, `name(…)*weight` or `name(…)*weight@schedule(…)`; `ExpressionError` for anything else."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression may have {MAX_LENGTH} characters, got {len(text)}")
    try:
        body = ast.parse(text.strip(), mode="eval").body
        return _scheduled(body, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise ExpressionError(_refusal(text)) from None


def build(expression: Expression, classes: Mapping[str, type], kind: str) -> Any:
    """The object that an expression names, from the classes that are on offer, arguments built first."""
    if expression.name not in classes:
        raise ExpressionError(unknown(kind, expression.name, classes))
    cls = classes[expression.name]
    arguments = [_argument(value, classes, kind) for value in expression.arguments]
    keywords = {key: _argument(value, classes, kind) for key, value in expression.keywords.items()}
    try:
        inspect.signature(cls).bind(*arguments, **keywords)
    except TypeError as error:
        raise ExpressionError(f"{expression.name}: {error}; the form is {_form(expression.name, cls)}") from None
    try:
        return cls(*arguments, **keywords)
    except TypeError as error:  # a number where an object belongs, or the other way round
        raise ExpressionError(f"{expression.name}: {error}; the form is {_form(expression.name, cls)}") from None


def unknown(kind: str, name: str, known: Mapping[str, Any] | list[str]) -> str:
    """The message for a name that nobody has, with its nearest neighbours."""
    near = get_close_matches(name, list(known), n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known))}"
    return f"no {kind} {name!r}: {hint}"


def _form(name: str, cls: type) -> str:
    return f"{name}{inspect.signature(cls)}".split(" -> ")[0]


def _argument(value: float | int | Expression, classes: Mapping[str, type], kind: str) -> Any:
    return build(value, classes, kind) if isinstance(value, Expression) else value


def _scheduled(node: ast.expr, text: str) -> Expression:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        return replace(_weighted(node.left, text), schedule=_call(node.right, text))
    return _weighted(node, text)


def _weighted(node: ast.expr, text: str) -> Expression:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        call, weight = (node.left, node.right) if isinstance(node.left, ast.Call) else (node.right, node.left)
        expression = _call(call, text)
        return replace(expression, weight=float(_number(weight, text)))
    return _call(node, text)


def _call(node: ast.expr, text: str) -> Expression:
    if isinstance(node, ast.Name):
        return Expression(node.id)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ExpressionError(_refusal(text))
    if any(keyword.arg is None for keyword in node.keywords):
        raise ExpressionError(_refusal(text))
    arguments = tuple(_value(argument, text) for argument in node.args)
    keywords = {str(keyword.arg): _value(keyword.value, text) for keyword in node.keywords}
    return Expression(node.func.id, arguments, keywords)


def _value(node: ast.expr, text: str) -> float | int | Expression:
    return _call(node, text) if isinstance(node, (ast.Call, ast.Name)) else _number(node, text)


def _number(node: ast.expr, text: str) -> float | int:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return sign * value
    raise ExpressionError(_refusal(text))


def _refusal(text: str) -> str:
    return f"cannot read {text!r}: write a name with numbers, ring(0.9, 0.99), and for a weight band(0.5, 1.0)*0.1"
