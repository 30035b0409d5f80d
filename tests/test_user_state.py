"""What is the user's stays as it was: random state, modes, requires_grad, hooks, values; many calls leave no memory."""

from __future__ import annotations

import gc
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from specreg import eigen, estimators, penalties
from specreg.estimators import (
    AppliedOperator,
    AppliedSystem,
    Arnoldi,
    Estimator,
    Exact,
    KernelPolynomial,
    Lanczos,
    LanczosQuadrature,
    Lyapunov,
    PowerIteration,
)
from specreg.operators import Dense, Diagonal, Hessian
from specreg.penalties import Penalty
from specreg.spectrum import Density, Exponents, Extremes, Spectrum
from specreg.system import System
from specreg.testing.penalties import random_knowledge, random_spectrum

FULL = os.environ.get("SPECREG_FULL") == "1"
CALLS = 1000 if FULL else 50
PAGE = os.sysconf("SC_PAGE_SIZE")
GROWTH = 16 * 2**20  # bytes that the allocator may keep to itself

PENALTIES = {
    member.__name__: member.example()
    for member in vars(penalties).values()
    if inspect.isclass(member) and issubclass(member, Penalty) and not inspect.isabstract(member)
}
ESTIMATORS: dict[str, Estimator[object]] = {
    type(estimator).__name__: estimator
    for estimator in (
        *(AppliedOperator(), AppliedSystem(), Arnoldi(2), Exact(), KernelPolynomial(8, 2), Lanczos(2)),
        *(LanczosQuadrature(4, 2), Lyapunov(2), PowerIteration(max_matvecs=400)),
    )
}
EIGEN: dict[str, Callable[[Tensor], object]] = {
    name: (lambda matrix: eigen.pseudospectral_radius(matrix, 0.1)) if name == "pseudospectral_radius" else function
    for name in eigen.__all__
    if inspect.isfunction(function := getattr(eigen, name))
}
Call = Callable[[Tensor], object]


def test_every_member_is_called() -> None:
    found = {
        name
        for name, member in vars(estimators).items()
        if inspect.isclass(member) and issubclass(member, Estimator) and not inspect.isabstract(member)
    }
    assert found == set(ESTIMATORS)
    assert {"eigenvalues", "spectral_radius", "kreiss_constant", "pseudospectral_radius"} <= set(EIGEN)
    assert len(PENALTIES) >= 18


def calls() -> dict[str, Call]:
    """Everything that is given matrices ``(2, 3, 1, 5, 5)``, its first derivative among it."""
    found: dict[str, Call] = {name: (lambda matrix, f=f: f(matrix[0, :, 0])) for name, f in EIGEN.items()}
    for name, estimator in ESTIMATORS.items():
        found[name] = lambda matrix, e=estimator: e(source(e, matrix))
    for name, penalty in PENALTIES.items():
        found[name] = lambda matrix, p=penalty: of_penalty(p, matrix)
    return found


def source(estimator: Estimator[object], matrix: Tensor) -> object:
    symmetric = 0.5 * (matrix + matrix.mT)
    if isinstance(estimator, AppliedSystem):
        return system(matrix)
    if isinstance(estimator, Lanczos):
        return Hessian(lambda x: 0.5 * (x * (symmetric[0, 0, 0] @ x)).sum(), torch.ones(5, dtype=matrix.dtype))
    if isinstance(estimator, KernelPolynomial | LanczosQuadrature):
        return Dense(symmetric)
    return Dense(matrix[0, :1, 0]) if isinstance(estimator, Arnoldi | PowerIteration) else Dense(matrix)


def system(matrix: Tensor) -> System:
    log_modulus = -matrix[..., 0].square()
    ones = torch.ones(1, 1, 1, 5, 1, dtype=matrix.dtype)
    return System(Diagonal(log_modulus), ones, ones.mT, torch.zeros(2, 3, 1, 1, 1, dtype=matrix.dtype))


def of_penalty(penalty: Penalty, matrix: Tensor) -> Tensor:
    """On what it takes, made of `matrix`."""
    if penalty.takes is Spectrum:
        spectrum = random_spectrum(0)
        shift = matrix.mean()
        return penalty(Spectrum(spectrum.log_modulus + shift, spectrum.phase + shift, spectrum.multiplicity))
    make, inputs = random_knowledge(penalty.takes, 0)
    return penalty(make(*(part + 0.01 * matrix.mean() for part in inputs)))


def differentiated(call: Call, matrix: Tensor) -> None:
    """The call and the gradient of what it gives, as far as it has one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are not certified; checked apart
        results = [part for part in tensors(call(matrix)) if part.requires_grad and torch.is_grad_enabled()]
    total = sum((part.real if part.is_complex() else part).clamp(-99, 99).sum() for part in results)
    if isinstance(total, Tensor):
        torch.autograd.grad(total, matrix, allow_unused=True)


def tensors(found: object) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, tuple):
        yield from (part for part in found if isinstance(part, Tensor))
    elif isinstance(found, Spectrum | Extremes | Density | Exponents) or hasattr(found, "__dict__"):
        yield from (part for part in vars(found).values() if isinstance(part, Tensor))


def matrices() -> Tensor:
    return torch.randn(2, 3, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@contextmanager
def unchanged(*held: Tensor) -> Iterator[None]:
    """Global state, and the tensors' values, versions, gradients and hooks, are the same after as before."""

    def state() -> tuple[object, ...]:
        every = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        ways = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), len(warnings.filters))
        return (*every, *ways, torch.is_anomaly_enabled(), torch.get_rng_state().tolist())

    def of(tensor: Tensor) -> tuple[object, ...]:
        return tensor._version, tensor.requires_grad, tensor.grad, tensor._backward_hooks, tensor.is_leaf

    before, were, values = state(), [of(each) for each in held], [each.detach().clone() for each in held]
    yield
    assert state() == before
    assert [of(each) for each in held] == were
    assert all(torch.equal(each.detach(), value) for each, value in zip(held, values, strict=True))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("name", calls())
def test_a_call_leaves_the_users_state(name: str, grad: bool) -> None:
    """Random state, default dtype, grad mode, threads, warning filters, and the matrices that were given."""
    matrix = matrices()
    given: list[Tensor] = []
    matrix.register_hook(given.append)
    with unchanged(matrix), torch.set_grad_enabled(grad), unchanged():
        differentiated(calls()[name], matrix)
    assert not given or grad


@pytest.mark.parametrize("name", ["KernelPolynomial", "Lanczos", "LanczosQuadrature", "PowerIteration"])
def test_an_estimate_leaves_a_model_as_it_was(name: str) -> None:
    """A Hessian of a network in training mode with a dropout, a frozen weight and a hook."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    model[0].weight.requires_grad_(False)
    hook = model.register_forward_hook(lambda *_: None)
    inputs, labels = torch.ones(6, 3, dtype=torch.float64), torch.arange(6) % 2
    parameters = dict(model.named_parameters())
    modes, hooks = [module.training for module in model.modules()], dict(model._forward_hooks)
    with unchanged(*parameters.values(), *model.buffers()):
        hessian = Hessian(
            lambda p: nn.functional.cross_entropy(functional_call(model, p, (inputs,)), labels), parameters
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator = ESTIMATORS[name]
            estimator(hessian)  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == modes
    assert dict(model._forward_hooks) == hooks and hook.id in hooks


@pytest.mark.parametrize("name", calls())
def test_many_calls_leave_memory_flat(name: str) -> None:
    """No tensor stays alive that only a collector would free, and, over a thousand calls, no page."""
    call, matrix = calls()[name], matrices()
    for _ in range(5):
        differentiated(call, matrix)
    count, pages = alive(), resident()
    gc.disable()
    try:
        for _ in range(CALLS):
            differentiated(call, matrix)
        assert tensors_alive() <= count
    finally:
        gc.enable()
    assert resident() - pages <= GROWTH


def alive() -> int:
    gc.collect()
    return tensors_alive()


def tensors_alive() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
