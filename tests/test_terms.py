"""Terms and estimators: what is found, weighted, scheduled and refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from specreg import estimators
from specreg.estimators import Estimator, Exact
from specreg.models.lru import LRU
from specreg.models.mamba2 import Mamba2
from specreg.operators import Dense, Diagonal, StructuredOperator
from specreg.penalties import Band, Penalty, PerHead, TimescaleDistance
from specreg.spectrum import Spectrum
from specreg.system import LinearSystem
from specreg.targets import LogUniformTimescale, Ring
from specreg.terms import Constant, Ramp, Term
from specreg.testing.estimators import EstimatorConformance

MEMBERS = [
    member
    for member in vars(estimators).values()
    if inspect.isclass(member) and issubclass(member, Estimator) and not inspect.isabstract(member)
]


class TestEstimators(EstimatorConformance):
    @pytest.fixture(autouse=True, params=[member for member in MEMBERS if issubclass(member.gives, Spectrum)])
    def member(self, request: pytest.FixtureRequest) -> None:
        self.cls: type[Estimator[Spectrum]] = request.param

    def make(self) -> Estimator[Spectrum]:
        return self.cls()


@dataclass(frozen=True)
class Radius:
    """What some other estimator may give."""

    value: Tensor


@dataclass(frozen=True)
class RadiusOf(Estimator[Radius]):
    gives = Radius

    def __call__(self, source: LinearSystem | StructuredOperator) -> Radius:
        raise NotImplementedError


@dataclass(frozen=True)
class RadiusBound(Penalty):
    takes = Radius

    def loss(self, spectrum: Spectrum) -> Tensor:
        raise NotImplementedError

    def goal(self, count: int) -> Spectrum:
        raise NotImplementedError

    @classmethod
    def example(cls) -> Self:
        return cls()


def layers() -> dict[str, LinearSystem]:
    torch.manual_seed(0)
    u = torch.randn(2, 12, 8)
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    mixers = {"lru": LRU(8, d_state=6), "mamba2": Mamba2(8, heads=4)}
    return {name: mixer.with_system(u, None, mask)[2] for name, mixer in mixers.items()}


def test_every_member_is_found() -> None:
    assert Exact in MEMBERS


def test_loss_is_the_weighted_mean_over_layers() -> None:
    """weight · schedule(step) · mean, with each layer's penalty and spectrum beside it."""
    systems, penalty = layers(), Band(0.9, 0.95)
    term = Term("stay", Exact(), penalty, weight=0.3, schedule=Ramp(0, 10))
    evaluation = term(systems, step=4)
    expected = {name: penalty(Exact()(system)) for name, system in systems.items()}
    assert evaluation.penalties.keys() == evaluation.spectra.keys() == systems.keys()
    for name, value in expected.items():
        torch.testing.assert_close(evaluation.penalties[name], value)
    torch.testing.assert_close(evaluation.loss, 0.3 * 0.4 * torch.stack(list(expected.values())).mean())


def test_masked_steps_change_nothing_through_a_term() -> None:
    """A padded layer has the loss of its real steps, and the input of padded steps has no gradient."""
    mixer = Mamba2(8, heads=4)
    term = Term("d", Exact(), TimescaleDistance(LogUniformTimescale(1, 100)))
    u = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alone = term({"m": mixer.with_system(u[:, :7])[2]}).loss
    padded = term({"m": mixer.with_system(u, None, torch.arange(12).view(1, -1) < 7)[2]}).loss
    torch.testing.assert_close(padded, alone)
    (gradient,) = torch.autograd.grad(padded, u)
    assert bool(gradient[:, :7].any())
    assert not bool(gradient[:, 7:].any())


def test_a_module_of_ones_own_is_wrapped_as_dense() -> None:
    """The recurrent weight of a torch RNN, as the documentation shows it: a step of descent lowers the loss."""
    torch.manual_seed(0)
    weight = nn.RNN(3, 6).weight_hh_l0
    assert isinstance(weight, Tensor)
    stay = Term("recurrent", Exact(), Band(0.8, 1.0), weight=0.1)
    loss = stay({"rnn": Dense(weight)}).loss
    (gradient,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        moved = stay({"rnn": Dense(weight - 0.1 * gradient / gradient.norm())}).loss
    assert moved.item() < loss.item()


def test_factor_is_weight_times_schedule() -> None:
    """Zero before a ramp starts, the weight after it: the caller leaves a term of factor 0 out."""
    term = Term("t", Exact(), Band(0.5, 0.9), weight=0.2, schedule=Ramp(10, 20))
    assert [term.factor(step) for step in (0, 10, 15, 20, 100)] == [0.0, 0.0, 0.1, 0.2, 0.2]
    assert Term("t", Exact(), Band(0.5, 0.9), weight=0.0).factor(3) == 0.0
    assert term(layers(), step=10).loss.item() == 0.0


@pytest.mark.parametrize(("start", "stop", "factors"), [(2, 4, [0, 0, 0, 0.5, 1, 1]), (4, 2, [1, 1, 1, 0.5, 0, 0])])
def test_ramps_go_either_way(start: int, stop: int, factors: list[float]) -> None:
    assert [Ramp(start, stop)(step) for step in range(6)] == factors


def test_constant_is_one() -> None:
    assert {Constant()(step) for step in (0, 1, 10**9)} == {1.0}


def test_a_ramp_needs_two_steps() -> None:
    with pytest.raises(ValueError, match="two different steps, got 5"):
        Ramp(5, 5)


def test_record_is_the_term() -> None:
    """The repr evaluates to an equal term: it is the record of the run."""
    term = Term("t", Exact(), PerHead(TimescaleDistance(Ring(0.5, 0.9))), weight=0.1, schedule=Ramp(0, 100))
    names = {cls.__name__: cls for cls in (Term, Exact, PerHead, TimescaleDistance, Ring, Ramp)}
    assert eval(repr(term), {"__builtins__": {}}, names) == term
    with pytest.raises(FrozenInstanceError):
        term.weight = 1.0  # type: ignore[misc]


def test_a_pair_that_does_not_fit_is_a_type_error() -> None:
    """An estimator that gives less than the penalty takes, either way round, names both."""
    other: Any = RadiusOf()
    with pytest.raises(TypeError, match="Band takes a Spectrum and RadiusOf gives a Radius"):
        Term("t", other, Band(0.5, 0.9))
    with pytest.raises(TypeError, match="RadiusBound takes a Radius and Exact gives a Spectrum"):
        Term("t", Exact(), RadiusBound())
    assert Term("t", other, RadiusBound()).name == "t"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Term("t", Exact(), Ring(0.5, 0.9)), TypeError, "'t' needs a penalty.*Ring"),  # type: ignore[arg-type]
        (lambda: Term("t", Exact(), Band), TypeError, "needs a penalty"),  # type: ignore[arg-type]
        (lambda: Term("t", Exact, Band(0.5, 0.9)), TypeError, "needs an estimator such as Exact()"),  # type: ignore[arg-type]
        (lambda: Term("t", None, Band(0.5, 0.9)), TypeError, "needs an estimator"),  # type: ignore[arg-type]
        (lambda: Term("t", Exact(), Band(0.5, 0.9), schedule=3.0), TypeError, "needs a schedule"),  # type: ignore[arg-type]
        (lambda: Term("t", Exact(), Band(0.5, 0.9), -1.0), ValueError, "finite number of at least 0, got -1.0"),
        (lambda: Term("t", Exact(), Band(0.5, 0.9), math.nan), ValueError, "finite number"),
        (lambda: Term("t", Exact(), Band(0.5, 0.9), math.inf), ValueError, "finite number"),
        (lambda: Term("t", Exact(), Band(0.5, 0.9))({}), ValueError, "got no system"),
        (lambda: Term("t", Exact(), Band(0.5, 0.9))({"w": torch.eye(2)}), TypeError, r"got Tensor: wrap it as Dense"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_pooled_layers_share_one_reduction() -> None:
    """A time-invariant and a time-varying operator of the same values have the same loss."""
    constant = Diagonal(torch.tensor([-0.1, -0.5]).view(1, 1, 1, 2))
    varying = constant.map(lambda field: field.expand(3, 5, -1, -1))
    term = Term("t", Exact(), Band(0.7, 0.8))
    torch.testing.assert_close(term({"a": constant}).loss, term({"a": varying}).loss)
