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

from specreg import invariants, operators, parametrizations, penalties, targets
from specreg.estimators import Exact, Lyapunov
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
from specreg.penalties import ClippedCondition, InverseCondition, Penalty, PerHead
from specreg.spectrum import Density, Exponents, Spectrum
from specreg.system import LinearSystem, System
from specreg.targets import Target
from specreg.testing.operators import assert_close

FULL = os.environ.get("SPECREG_FULL") == "1"
# traced, traced through the gradient, and compiled to machine code, which takes minutes
BACKENDS = ["eager", "aot_eager", "inductor"] if FULL else ["eager"]
ITERATE = {"Sinkhorn", "HenriciDeparture", "SchurStable"}  # no closed forms: they solve, and end by what they find
SOLVE = {"Dense", "DiagonalPlusLowRank", "DiagonalPlusRankOne"}  # by a dense solve


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


MEANS = ["scalar", "diagonal", "signed diagonal", "complex diagonal"]  # of logs: their Lyapunov exponents
STRUCTURES = list(OPERATORS) if FULL else ["complex diagonal"]


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


def together(*parts: Tensor) -> Tensor:
    """Real and imaginary parts, one after the other."""
    return torch.cat(
        [part for x in parts for part in ((x.real.flatten(), x.imag.flatten()) if x.is_complex() else (x.flatten(),))]
    )


def check(function: Callable[..., Tensor], *inputs: Tensor, backend: str) -> None:
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


def exponents_of(operator: StructuredOperator) -> Exponents:
    """Of a system, those of its time means, or of its first step for ever."""
    if isinstance(operator, ScaledIdentity | Diagonal):
        return Lyapunov(2)(system_of(operator))
    return Lyapunov(2)(system_of(operator.map(lambda field: field[:, :1])))


TAKEN: dict[type, Callable[[StructuredOperator], Any]] = {
    Spectrum: lambda operator: Exact()(system_of(operator)),
    LinearSystem: lambda operator: system_of(operator),
    StructuredOperator: lambda operator: operator,
    Exponents: exponents_of,
    # any nodes and weights will do
    Density: lambda operator: Density(operator.log_modulus().flatten(1, -2)[0], FREE[0].flatten(0, 1).softmax(-1)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name: str, structure: str, backend: str) -> None:
    """Of what they take of each structure."""
    penalty = PENALTIES[name]
    if penalty.takes is Density and structure in ("scalar", "rank one", "product of one"):
        structure = "diagonal"  # with one distinct eigenvalue, or two, for four weights
    check(lambda x: penalty(TAKEN[penalty.takes](OPERATORS[structure](x))), FREE, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name, penalty in PENALTIES.items() if penalty.takes is Spectrum])
def test_wrapped_penalties(name: str, backend: str) -> None:
    """By head, and with the gradient of ill-conditioned values held back."""
    wrappers = (PerHead(PENALTIES[name]), InverseCondition(PENALTIES[name]), ClippedCondition(PENALTIES[name], 10.0))

    def told(x: Tensor) -> Tensor:
        spectrum = Exact()(system_of(OPERATORS["signed diagonal"](x)))
        return torch.stack([wrapper(spectrum) for wrapper in wrappers])

    check(told, FREE, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, backend: str) -> None:
    """Eigenvalues and κ, matrix, adjoint, products, windows and steps."""

    def told(x: Tensor) -> Tensor:
        operator = OPERATORS[name](x)
        spectrum = Exact()(operator)
        assert spectrum.condition is not None
        known = (spectrum.log_modulus, spectrum.phase, spectrum.condition, operator.eigenvalues())
        products = (operator.dense(), operator.adjoint().dense(), operator.mv(x), operator.mm(x.unsqueeze(-1)))
        scaled = operator.scaled(x[..., 0])
        steps = [step.mv(x[:, 0]) for step in operator.steps(7)]
        return together(*known, *products, scaled.dense(), scaled.log_scale(), operator.window(3, 2).dense(), *steps)

    check(told, FREE, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATORS)
def test_exponents(name: str, backend: str) -> None:
    """Of logs, and of a step that never changes; with masked steps and without."""

    def told(x: Tensor) -> Tensor:
        operator = OPERATORS[name](x)
        plain = Lyapunov(2)(operator if name in MEANS else operator.map(lambda field: field[:, :1]))
        masked = exponents_of(operator)
        return together(plain.values, plain.standard_error, masked.values, masked.standard_error)

    check(told, FREE, backend=backend)


def test_exponents_of_no_step_are_refused() -> None:
    """A graph cannot say which batch element it is."""
    for backend in BACKENDS:
        compiled: Any = torch.compile(
            lambda x, mask: Lyapunov(2)(System(Diagonal(x), INPUTS, READOUTS, VALUES, mask=mask)).values,
            fullgraph=True,
            backend=backend,
            dynamic=False,
        )
        assert compiled(-FREE.exp(), COUNTED).shape == (2, 3, 2)
        with pytest.raises(RuntimeError, match="no step that counts"):
            compiled(-FREE.exp(), COUNTED & torch.tensor([[True], [False]]))
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TARGETS)
def test_targets(name: str, backend: str) -> None:
    """Distances with steps that do not count, members, quantiles, and what may be drawn."""
    target, multiplicity = TARGETS[name], torch.ones(4, dtype=torch.long)

    def told(x: Tensor, y: Tensor) -> Tensor:
        spectrum = Spectrum(-x.exp(), y, multiplicity, COUNTED)
        distances = (target.distance(spectrum), target.timescale_distance(spectrum), target.phase_distance(spectrum))
        share = x.sigmoid().flatten()
        log_modulus, phase = target.place(share, y.sigmoid().flatten())
        moduli, phases = target.quantiles(12)
        quantiles = (target.log_modulus_quantile(share), target.phase_quantile(share))
        assert phase is not None and phases is not None and quantiles[1] is not None
        values = (log_modulus, phase, moduli, phases, quantiles[0], quantiles[1])
        return together(*distances, *values, target.contains(-x.exp(), y).to(x), target.contains(moduli, phases).to(x))

    check(told, FREE, 3 * FREE.flip(0), backend=backend)


@pytest.mark.parametrize("name", TARGETS)
def test_samples(name: str) -> None:
    """From torch's own random state: a compiler takes no generator."""

    def told() -> Tensor:
        log_modulus, phase = TARGETS[name].sample(64)
        assert phase is not None
        return TARGETS[name].contains(log_modulus, phase).double()

    with torch.random.fork_rng([]):
        check(told, backend="eager")
        assert (told() == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", dict.fromkeys(["scalar", *STRUCTURES]))
@pytest.mark.parametrize("name", INVARIANTS)
def test_invariants(name: str, structure: str, backend: str) -> None:
    if name == "window_eigenvalues" and structure in ("rank one", "product of one"):
        structure = "scalar"  # windows of reflections are solved
    check(lambda x: INVARIANTS[name](system_of(OPERATORS[structure](x))), FREE, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAPS)
def test_parametrisations(name: str, backend: str) -> None:
    """Of real values or complex ones; assignment, which looks at values, is left to Python."""
    module = MAPS[name]
    free = FREE[0, 0] if isinstance(module, SignRange | TimescaleInterval) else torch.complex(FREE[0, 0], FREE[1, 0])
    check(lambda x: module(x), free, backend=backend)


def test_through_the_gradient() -> None:
    """Traced with its derivative; every member is, on request."""
    check(lambda x: PENALTIES["TimescaleBand"](Exact()(OPERATORS["rank one"](x))), FREE, backend="aot_eager")


def test_every_member_is_compiled() -> None:
    """Or named as what has no closed form."""
    assert {m.__name__ for m in members(penalties, Penalty)} == {*PENALTIES, *ITERATE} - {"SchurStable"}
    made = {type(make(FREE)).__name__ for make in OPERATORS.values()}
    assert {m.__name__ for m in members(operators, StructuredOperator)} == made | SOLVE
    own = {m.__name__ for m in members(parametrizations, nn.Module) if m.__module__ == parametrizations.__name__}
    assert own == {*MAPS, "SchurStable"}
    told = {
        name
        for name, function in vars(invariants).items()
        if inspect.isfunction(function) and function.__module__ == invariants.__name__ and not name.startswith("_")
    }
    assert told - {"log_spaced_lags"} == set(INVARIANTS)
    assert len(TARGETS) >= 13
