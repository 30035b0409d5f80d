"""Expressions: what text means, and that nothing but a call with numbers is ever read."""

from __future__ import annotations

import math
import random
import re
import string

import pytest

from specreg.penalties import Band, PerHead, PhaseDistance, TimescaleDistance
from specreg.studies import members
from specreg.studies.expressions import Expression, ExpressionError, build, parse
from specreg.targets import LogUniformTimescale, Ring, TwoCluster

CLASSES = {**members.targets(), **members.penalties()}

CODE = [
    "__import__('os').system('touch x')",
    "__import__('os')",
    "ring(__import__('os').getpid(), 1)",
    "os.system",
    "ring.__class__",
    "ring(0.9, 0.99).quantiles(3)",
    "ring(0.9, 0.99).__init__.__globals__",
    "().__class__.__base__.__subclasses__()",
    "lambda: 1",
    "ring(lambda: 1, 0.9)",
    "[x for x in (1, 2)]",
    "ring(*[0.9, 0.99])",
    "ring(**{'r_min': 0.9, 'r_max': 0.99})",
    "ring([0.9], 0.99)",
    "ring((0.9, 0.99))",
    "ring({0.9}, {})",
    "ring(x := 0.9, 0.99)",
    "ring(0.9 if 1 else 0.8, 0.99)",
    "ring(0.9 + 0.01, 0.99)",
    "ring(2**9, 0.99)",
    "ring(0.9 < 0.99)",
    "ring(not 0, 1)",
    "ring('0.9', 0.99)",
    "ring(b'0.9', 0.99)",
    "ring(f'{1}', 0.99)",
    "ring(True, 0.99)",
    "ring(None, 0.99)",
    "ring(..., 0.99)",
    "ring(0.9j, 0.99)",
    "ring[0.9, 0.99]",
    "ring(0.9, 0.99)()",
    "(ring)(0.9, 0.99)(0.1)",
    "ring(0.9, 0.99); import os",
    "import os",
    "x = ring(0.9, 0.99)",
    "await ring(0.9, 0.99)",
    "yield",
    "0.5",
    "'ring'",
    "band(0.5, 1.0)*0.1*2",
    "band(0.5, 1.0)*band(0.5, 1.0)",
    "band(0.5, 1.0)*'2'",
    "band(0.5, 1.0)*[2]",
    "band(0.5, 1.0)/2",
    "band(0.5, 1.0)+0.1",
    "-band(0.5, 1.0)",
    "per_head(band(0.5, 1.0)*2)",
]
BROKEN = [
    "",
    "   ",
    "\n",
    "ring(0.9,0.99",
    "ring 0.9, 0.99)",
    "ring(0.9 0.99)",
    "ring(0.9,,0.99)",
    "ring(r_min=0.9, 0.99)",
    "ring(r_min=0.9, r_min=0.9)",
    "ring(\x00)",
    "ring(0.9, 0.99)\x00",
    "ring(0.9\\",
    "'\\d'",
    "(" * 400,
    "(" * 200 + "1" + ")" * 200,
    "-" * 900 + "1",
    "ring(" * 150 + ")" * 150,
    "a." * 400 + "a",
    "ring(" + "9" * 990,
    "λ→∞",
    "\ud800",
]
UNENDING = ["1e999", "-1e999", "1" + "0" * 400, "nan", "inf", "-inf", "float('nan')", "NaN", "infinity"]


@pytest.mark.parametrize("text", CODE + BROKEN, ids=ascii)
def test_what_is_no_expression_is_refused(text: str) -> None:
    """Code, however harmless, and text that does not parse: an `ExpressionError`, before anything is made."""
    with pytest.raises(ExpressionError):
        build(parse(text), CLASSES, "penalty")


@pytest.mark.parametrize("number", UNENDING)
def test_numbers_are_finite(number: str) -> None:
    """Neither NaN nor an infinity nor an integer too large for a float, as argument or weight."""
    for text in (f"ring(0.9, {number})", f"log_uniform_timescale(1, {number})", f"band(0.5, 1.0)*{number}"):
        with pytest.raises(ExpressionError):
            build(parse(text), CLASSES, "penalty")


def test_long_text_is_refused_unread() -> None:
    with pytest.raises(ExpressionError, match="1000 characters, got 10000"):
        parse("r" * 10_000)
    with pytest.raises(ExpressionError, match="1000 characters"):
        parse("ring(0.9, 0.99)" + " " * 1000)


def test_random_text_is_refused_or_read() -> None:
    """2000 seeded strings of call-like characters, and valid text with a character changed: no other exception."""
    draw = random.Random(0)
    alphabet = "ringbad_(),.*=-+0159 e'\"[]{}:\\\n\t" + string.ascii_lowercase
    valid = "per_head(timescale_distance(ring(0.9, 0.99, max_phase=0.3)))*0.1"
    for _ in range(1000):
        place = draw.randrange(len(valid))
        mutant = valid[:place] + draw.choice(alphabet) + valid[place + draw.randrange(2) :]
        for text in ("".join(draw.choices(alphabet, k=draw.randrange(30))), mutant):
            try:
                expression = parse(text)
            except ExpressionError:
                continue
            assert isinstance(expression, Expression)
            try:
                build(expression, CLASSES, "penalty")
            except ValueError:
                continue


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("ring(0.9, 0.99)", Ring(0.9, 0.99)),
        ("  ring( 0.9 ,0.99 )\n", Ring(0.9, 0.99)),
        ("ring(r_max=0.99, r_min=0.9, max_phase=0.3)", Ring(0.9, 0.99, 0.3)),
        ("log_uniform_timescale(1, 1_024)", LogUniformTimescale(1, 1024)),
        ("two_cluster(.5, 5e-2)", TwoCluster(0.5)),
        ("per_head(band(0.5, 1.0))", PerHead(Band(0.5, 1.0))),
        ("timescale_distance(ring(0.9, 0.99))", TimescaleDistance(Ring(0.9, 0.99))),
        ("phase_distance(target=ring(0.9, 0.99, max_phase=3.14))", PhaseDistance(Ring(0.9, 0.99, 3.14))),
    ],
)
def test_text_means_the_object(text: str, made: object) -> None:
    assert build(parse(text), CLASSES, "penalty") == made


@pytest.mark.parametrize("text", ["band(0.5, 1.0)*0.1", "0.1*band(0.5, 1.0)", "band(0.5, 1.0) * 1e-1"])
def test_weights_stand_on_either_side(text: str) -> None:
    expression = parse(text)
    assert expression.weight == 0.1
    assert build(expression, CLASSES, "penalty") == Band(0.5, 1.0)
    assert parse("band(0.5, 1.0)*-2").weight == -2.0
    assert parse("band(0.5, 1.0)").weight is None


@pytest.mark.parametrize("member", CLASSES.values(), ids=lambda member: member.__name__)
def test_every_member_can_be_written(member: type) -> None:
    """The repr of each example, its class names in snake case, is text for an equal object."""
    example = member.example()  # type: ignore[attr-defined]
    text = repr(example)
    for name, cls in CLASSES.items():
        text = re.sub(rf"\b{cls.__name__}\(", f"{name}(", text)
    text = text.replace(", max_phase=None", "")
    assert build(parse(text), CLASSES, "penalty") == example


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("rign(0.9, 0.99)", "ring"),
        ("log_uniform(1, 9)", "log_uniform_timescale"),
        ("timescale_dist(1)", "timescale_distance"),
    ],
)
def test_unknown_names_get_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(ExpressionError, match=f"did you mean .*{nearest}"):
        build(parse(text), CLASSES, "target")
    with pytest.raises(ExpressionError, match="no target 'zzz': known are band, "):
        build(parse("zzz(1)"), CLASSES, "target")
    with pytest.raises(ExpressionError, match="did you mean ring"):
        build(parse("per_head(rng(1))"), CLASSES, "target")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ring", r"ring: missing a required argument: 'r_min'; the form is ring\(r_min"),
        ("ring(0.9)", r"missing a required argument: 'r_max'"),
        ("ring(0.1, 0.2, 0.3, 0.4)", "too many positional arguments"),
        ("ring(0.9, 0.99, phase=1)", "unexpected keyword argument 'phase'; the form is"),
        ("ring(0.99, 0.9)", r"allowed are 0 <= r_min < r_max <= 1"),
        ("ring(ring(0.8, 0.9), 1)", r"ring: .*; the form is ring\(r_min"),
        ("timescale_distance(0.5)", "takes a target"),
        ("per_head(ring(0.5, 0.9))", "takes a penalty"),
    ],
)
def test_wrong_arguments_say_what_is_right(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(parse(text), CLASSES, "penalty")


def test_nothing_ran() -> None:
    """Reading makes no object: the arguments of an expression are numbers and expressions only."""
    expression = parse("timescale_distance(ring(0.9, r_max=-1))")
    assert expression == Expression("timescale_distance", (Expression("ring", (0.9,), {"r_max": -1}),))
    assert all(math.isfinite(value) for value in expression.arguments[0].arguments)  # type: ignore[union-attr, arg-type]
