"""`torch.compile(fullgraph=True)` of all that has a closed form: equal to what it is without, with its gradient."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specreg import invariants, parametrizations, penalties, targets
from specreg.estimators import Exact
from specreg.invariants import (
    effective_memory,
    half_life,
    influence_profile,
    lag_averaged_memory,
    modulus_shares,
    relative_influence,
    share_older,
    window_eigenvalues,
)
from specreg.operators import Chain, Diagonal, HouseholderProduct, RankOneUpdate, ScaledIdentity, StructuredOperator
from specreg.parametrizations import Disc, Ring, Sector, SignRange, TimescaleInterval
from specreg.penalties import Penalty
from specreg.spectrum import Density, Exponents, Spectrum
from specreg.system import LinearSystem, System
from specreg.targets import Target
from specreg.testing.operators import assert_close

FULL = os.environ.get("SPECREG_FULL") == "1"
ITERATE = {"Sinkhorn", "HenriciDeparture", "SchurStable"}  # no closed forms: they solve, and end by what they find


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SIGN, SIGNS = normal(2, 7, 3, seed=1).sign(), normal(2, 7, 3, 4, seed=2).sign()
COUNTED = torch.arange(7) < torch.tensor([[7], [5]])
INPUTS, READOUTS, VALUES = normal(2, 7, 3, 4, 2, seed=3), normal(2, 7, 3, 2, 4, seed=4), normal(2, 7, 3, 2, 1, seed=5)
FREE = normal(2, 7, 3, 4, seed=6)
Make = Callable[[Tensor], StructuredOperator]
OPERATORS: dict[str, Make] = {
    "scalar": lambda x: ScaledIdentity(-x[..., 0].exp(), 4, sign=SIGN),
    "diagonal": lambda x: Diagonal(-x.exp()),
    "signed diagonal": lambda x: Diagonal(-x.exp(), sign=SIGNS),
    "complex diagonal": lambda x: Diagonal(-x.exp(), angle=2 * x),
    "rank one": lambda x: RankOneUpdate(-x[..., 0].exp(), x[..., 1].sigmoid(), x, sign=SIGN),
    "product of one": lambda x: HouseholderProduct(-x[..., 0].exp(), x[..., :1].sigmoid(), x.unsqueeze(-2)),
    "chain": lambda x: Chain((ScaledIdentity(-x[..., 0].exp(), 4), Diagonal(-x.exp(), angle=x))),
}


def members(package: Any, kind: type) -> Iterator[Any]:
    for member in vars(package).values():
        if inspect.isclass(member) and issubclass(member, kind) and not inspect.isabstract(member):
            yield member


PENALTIES = {m.__name__: m.example() for m in members(penalties, Penalty) if m.__name__ not in ITERATE}
TARGETS = {m.__name__: m.example() for m in members(targets, Target)}
MAPS: dict[str, nn.Module] = {
    "Disc": Disc(0.9),
    "Ring": Ring(0.5, 0.9),
    "Sector": Sector(0.5, 0.9, 0.1, 1.0),
    "SignRange": SignRange(-0.5, 0.9),
    "TimescaleInterval": TimescaleInterval(1, 100),
}
INVARIANTS: dict[str, Callable[[LinearSystem], Tensor]] = {
    "effective_memory": effective_memory,
    "half_life": half_life,
    "influence_profile": lambda system: influence_profile(system).influence,
    "lag_averaged_memory": lag_averaged_memory,
    "relative_influence": lambda system: relative_influence(system, [0, 1, 3]),
    "share_older": lambda system: share_older(system, 2.0),
    "window_eigenvalues": lambda system: window_eigenvalues(system, 3).log_modulus,
    "modulus_shares": lambda system: modulus_shares(Exact()(system)),
}


def system_of(operator: StructuredOperator) -> System:
    parts = (INPUTS, READOUTS)
    if isinstance(operator, Diagonal) and operator.angle is not None:
        parts = tuple(torch.complex(part, part.roll(1, 0)) for part in parts)
    return System(operator, *parts, VALUES, mask=COUNTED)


def check(function: Callable[..., Tensor], *inputs: Tensor, backend: str = "eager") -> None:
    """The compiled function gives the same, and the same gradient."""
    torch._dynamo.reset()
    found = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, others in each version
            compiled: Any = torch.compile(function, fullgraph=True, backend=backend, dynamic=False)
            for told in (compiled, function):
                leaves = [x.clone().requires_grad_() for x in inputs]
                result = told(*leaves)
                total = (result.real + result.imag if result.is_complex() else result).clamp_min(-99).sum()
                gradients = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else ()
                found.append([result, *(torch.zeros(()) if g is None else g for g in gradients)])
    finally:
        torch._dynamo.reset()
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)


def of_penalty(penalty: Penalty) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A penalty of what it takes, made of plain tensors."""
    if penalty.takes is Spectrum:
        return lambda x: penalty(Exact()(system_of(OPERATORS["complex diagonal"](x)))), [FREE]
    if penalty.takes is LinearSystem:
        return lambda x: penalty(system_of(OPERATORS["signed diagonal"](x))), [FREE]
    if penalty.takes is StructuredOperator:
        return lambda x: penalty(OPERATORS["rank one"](x)), [FREE]
    if penalty.takes is Exponents:
        return lambda x: penalty(Exponents(x, torch.zeros_like(x))), [FREE[0, 0]]
    return lambda x, y: penalty(Density(x, y.softmax(-1))), [FREE[0], FREE[1]]


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name: str) -> None:
    function, inputs = of_penalty(PENALTIES[name])
    check(function, *inputs)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    """Eigenvalues and κ, matrix, products and windows; a penalty on top."""
    make, penalty = OPERATORS[name], PENALTIES["Band"]

    def told(x: Tensor) -> Tensor:
        operator = make(x)
        spectrum = Exact()(operator)
        known = (spectrum.log_modulus, spectrum.phase, spectrum.condition)
        parts = (*known, operator.dense(), operator.mv(x), operator.window(3, 2).dense())
        flat = [(part.real if part.is_complex() else part).flatten() for part in parts if part is not None]
        return torch.cat((*flat, penalty(spectrum).view(1)))

    check(told, FREE)


@pytest.mark.parametrize("name", TARGETS)
def test_target_distances(name: str) -> None:
    """In log-modulus and phase, with steps that do not count."""
    multiplicity = torch.ones(4, dtype=torch.long)
    check(lambda x, y: TARGETS[name].distance(Spectrum(-x.exp(), y, multiplicity, COUNTED)), FREE, 3 * FREE.flip(0))


@pytest.mark.parametrize("structure", ["scalar", "complex diagonal", *(["rank one", "chain"] if FULL else [])])
@pytest.mark.parametrize("name", INVARIANTS)
def test_invariants(name: str, structure: str) -> None:
    check(lambda x: INVARIANTS[name](system_of(OPERATORS[structure](x))), FREE)


@pytest.mark.parametrize("name", MAPS)
def test_parametrisations(name: str) -> None:
    """Of real values or complex ones; assignment, which looks at values, is left to Python."""
    module = MAPS[name]
    turned = torch.complex(FREE[0, 0], FREE[1, 0])
    check(lambda x: module(x), FREE[0, 0] if isinstance(module, SignRange | TimescaleInterval) else turned)


@pytest.mark.parametrize("backend", ["aot_eager", *(["inductor"] if FULL else [])])
def test_other_backends(backend: str) -> None:
    """Traced through the gradient, and, on request, compiled to machine code."""
    check(lambda x: PENALTIES["TimescaleBand"](Exact()(OPERATORS["rank one"](x))), FREE, backend=backend)
    if FULL:
        check(lambda x: PENALTIES["InverseCondition"](Exact()(OPERATORS["diagonal"](x))), FREE, backend=backend)
        check(lambda x: effective_memory(system_of(OPERATORS["scalar"](x))), FREE, backend=backend)


def test_every_member_is_compiled() -> None:
    """Or named as what has no closed form."""
    assert {m.__name__ for m in members(penalties, Penalty)} == {*PENALTIES, *ITERATE} - {"SchurStable"}
    own = {m.__name__ for m in members(parametrizations, nn.Module) if m.__module__ == parametrizations.__name__}
    assert own == {*MAPS, "SchurStable"}
    told = {
        name
        for name, function in vars(invariants).items()
        if inspect.isfunction(function) and function.__module__ == invariants.__name__ and not name.startswith("_")
    }
    assert told - {"log_spaced_lags"} == set(INVARIANTS)
    assert len(TARGETS) >= 13
