"""The conformance tests of a penalty, for our members and for anybody's.

A penalty passes when it is zero at its goal, finite with a finite gradient on the whole complex plane, and depends on
nothing but the values that count: `PenaltyConformance` for one of a spectrum, `KnowledgePenaltyConformance` for one
that takes a system, matrices, exponents or a density. Plain assertions: any runner that calls methods named `test_…`
will do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck

from specreg.operators import Dense, Diagonal, StructuredOperator
from specreg.penalties import Penalty, PerHead
from specreg.spectrum import Density, Exponents, Spectrum, polar
from specreg.system import LinearSystem, System
from specreg.testing.operators import assert_close

__all__ = ["KnowledgePenaltyConformance", "PenaltyConformance", "random_spectrum"]

_PLANE = (-torch.inf, -1e4, -70.0, -1.0, -1e-3, -1e-6, -1e-9, -1e-30, 0.0, 1e-9, 0.5, 70.0, 1e4)  # log |λ|
_ANGLES = (0.0, 1e-30, 1.0, math.pi / 2, math.pi, -math.pi, -1.0, 7.0)
_TYPES = (torch.float32, torch.float64)


class PenaltyConformance(ABC):
    """The tests that every penalty passes: subclass it, give `make`.

    `repetition_tolerance` is how far, relative to the loss, a value of multiplicity k may be from k values: a transport
    distance represents its law by one point for each value, which a finer division moves.
    """

    repetition_tolerance: float = 0.02
    width: int = 300  # values of a head where few and many are compared: fewer for a penalty of all pairs
    every_entry: bool = True  # finite differences in each value, or along one random direction

    @abstractmethod
    def make(self) -> Penalty:
        """The penalty under test, a frozen dataclass."""

    def test_zero_at_its_goal(self) -> None:
        """`goal` has a loss of at most 1e-5, in both precisions and for few and many values."""
        penalty = self.make()
        for count in (1, 2, 9, 200):
            goal = penalty.goal(count)
            assert goal.log_modulus.shape == goal.phase.shape == (1, 1, 1, count)
            for dtype in _TYPES:
                loss = penalty(_cast(goal, dtype))
                assert loss.shape == ()
                assert loss.dtype == dtype
                assert 0 <= loss.item() <= 1e-5

    def test_never_negative(self) -> None:
        """On random spectra, decaying, growing and mixed."""
        for seed in range(20):
            assert self.make()(random_spectrum(seed)).item() >= 0

    def test_order_has_no_effect(self) -> None:
        """Permuted batch elements, steps, heads, or values with their multiplicity, and conjugates."""
        penalty, spectrum = self.make(), random_spectrum(0)
        reference = penalty(spectrum)
        for axis in range(4):
            size = spectrum.log_modulus.shape[axis]
            order = torch.randperm(size, generator=torch.Generator().manual_seed(axis))
            moved = replace(
                spectrum,
                log_modulus=spectrum.log_modulus.index_select(axis, order),
                phase=spectrum.phase.index_select(axis, order),
                multiplicity=spectrum.multiplicity[order] if axis == 3 else spectrum.multiplicity,
                mask=spectrum.mask if axis > 1 or spectrum.mask is None else spectrum.mask.index_select(axis, order),
            )
            assert_close(penalty(moved), reference)
        assert_close(penalty(replace(spectrum, phase=-spectrum.phase)), reference)

    def test_gradient_is_that_of_finite_differences(self) -> None:
        """gradcheck in float64 with respect to log-modulus and phase, masked steps among them."""
        penalty = self.make()
        for seed in range(3):
            spectrum = random_spectrum(seed)
            inputs = [x.clone().requires_grad_() for x in (spectrum.log_modulus, spectrum.phase)]

            def loss(log_modulus: Tensor, phase: Tensor, spectrum: Spectrum = spectrum) -> Tensor:
                return penalty(replace(spectrum, log_modulus=log_modulus, phase=phase))

            assert gradcheck(loss, inputs, eps=1e-7, atol=1e-5, fast_mode=seed > 0 or not self.every_entry)

    def test_finite_on_the_whole_plane(self) -> None:
        """Value and gradient, each point alone and all together: λ = 0, 1e±30, e^±10000, exactly 1, phases of ±π."""
        for dtype in _TYPES:
            moduli = torch.tensor(_PLANE, dtype=dtype)
            angles = torch.tensor(_ANGLES, dtype=dtype)
            log_modulus = moduli.repeat_interleave(len(angles)).view(1, 1, 1, -1)
            phase = angles.repeat(len(moduli)).view(1, 1, 1, -1)
            for part in (*range(phase.shape[-1]), slice(None)):
                index = slice(part, part + 1) if isinstance(part, int) else part
                self._check_finite(log_modulus[..., index], phase[..., index])

    def test_finite_down_to_the_matrix(self) -> None:
        """The gradient by complex eigenvalues and by the entries of a matrix, at 0, 1e±30 and on the axes."""
        penalty = self.make()
        for dtype, largest in ((torch.complex64, 1e30), (torch.complex128, 1e100)):
            values = torch.tensor([0, 1 / largest, largest, 1, -1, 1j, -1j, -1 / largest, 0.5 + 0.5j], dtype=dtype)
            values.requires_grad_()
            log_modulus, phase = polar(values)
            loss = penalty(_one_head(log_modulus, phase))
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, values)
                assert bool(torch.view_as_real(gradient).isfinite().all())
        matrix = torch.diag(torch.tensor([0.0, 1e-30, 0.3, -0.7, 1.0, 3.0])).requires_grad_()
        log_modulus, phase = Dense(matrix).polar()
        (gradient,) = torch.autograd.grad(penalty(_one_head(log_modulus, phase)) + 0 * matrix.sum(), matrix)
        assert bool(gradient.isfinite().all())

    def test_masked_steps_have_no_effect(self) -> None:
        """Neither on the loss nor in the gradient, whatever they hold, NaN included."""
        penalty, spectrum = self.make(), random_spectrum(0)
        mask = torch.arange(spectrum.log_modulus.shape[1]) < 4
        reference = penalty(replace(_steps(spectrum, slice(0, 4)), mask=None))
        for filler in (0.0, 3.0, -torch.inf, torch.inf, math.nan):
            inputs = [
                torch.where(mask.view(1, -1, 1, 1), x, filler).requires_grad_()
                for x in (spectrum.log_modulus, spectrum.phase)
            ]
            masked = replace(spectrum, log_modulus=inputs[0], phase=inputs[1], mask=mask.view(1, -1))
            loss = penalty(masked)
            assert_close(loss, reference)
            for gradient in torch.autograd.grad(loss, inputs, allow_unused=True):
                if gradient is not None:
                    assert bool(gradient.isfinite().all())
                    assert not bool(gradient[:, 4:].any())

    def test_nothing_counted_is_zero(self) -> None:
        """With every step masked out the loss is 0 and so is its gradient, also for a time-invariant system."""
        penalty = self.make()
        for spectrum in (random_spectrum(0), _steps(random_spectrum(0), slice(0, 1))):
            inputs = [x.clone().requires_grad_() for x in (spectrum.log_modulus, spectrum.phase)]
            mask = torch.zeros(inputs[0].shape[0], 6, dtype=torch.bool)
            loss = penalty(replace(spectrum, log_modulus=inputs[0], phase=inputs[1], mask=mask))
            assert loss.item() == 0
            for gradient in torch.autograd.grad(loss, inputs, allow_unused=True):
                assert gradient is None or not bool(gradient.any())

    def test_constant_axes_weigh_as_if_written_out(self) -> None:
        """A masked system that varies neither over batch nor time has the loss of its expanded form."""
        penalty, spectrum = self.make(), _steps(random_spectrum(3, steps=1, width=self.width), slice(0, 1))
        constant = replace(spectrum, log_modulus=spectrum.log_modulus[:1], phase=spectrum.phase[:1])
        mask = torch.arange(6) < torch.tensor([[3], [6]])
        written = replace(
            constant, log_modulus=constant.log_modulus.expand(2, 6, -1, -1), phase=constant.phase.expand(2, 6, -1, -1)
        )
        self._check_near(penalty(replace(constant, mask=mask)), penalty(replace(written, mask=mask)))

    def test_multiplicity_is_repetition(self) -> None:
        """A value of multiplicity k counts as k values."""
        penalty, spectrum = self.make(), random_spectrum(0, width=min(40, self.width))
        count = spectrum.multiplicity
        repeated = replace(
            spectrum,
            log_modulus=spectrum.log_modulus.repeat_interleave(count, -1),
            phase=spectrum.phase.repeat_interleave(count, -1),
            multiplicity=torch.ones(int(count.sum()), dtype=torch.long),
        )
        self._check_near(penalty(spectrum), penalty(repeated))

    def test_per_head_is_the_loop(self) -> None:
        """PerHead is the mean over heads of the penalty on each alone."""
        penalty, spectrum = self.make(), random_spectrum(0)
        heads = range(spectrum.log_modulus.shape[2])
        alone = [_each(spectrum, lambda x, h=h: x[:, :, [h]]) for h in heads]  # type: ignore[misc]
        assert_close(PerHead(penalty)(spectrum), torch.stack([penalty(head) for head in alone]).mean())

    def test_single_precision_agrees(self) -> None:
        """float32 gives the float64 loss to 1e-4."""
        for seed in range(5):
            spectrum = random_spectrum(seed)
            single = self.make()(_cast(spectrum, torch.float32))
            assert_close(single.double(), self.make()(spectrum), 1e-4)

    def test_settings_cannot_be_changed(self) -> None:
        """A frozen dataclass, equal to its copy and hashable."""
        _check_settings(self.make())

    def _check_finite(self, log_modulus: Tensor, phase: Tensor) -> None:
        inputs = [x.clone().requires_grad_() for x in (log_modulus, phase)]
        loss = self.make()(_one_head(inputs[0].flatten(), inputs[1].flatten()))
        assert bool(loss.isfinite()), f"loss {loss.item()} at log-modulus {log_modulus.flatten().tolist()}"
        for gradient in torch.autograd.grad(loss, inputs, allow_unused=True):
            assert gradient is None or bool(gradient.isfinite().all()), f"{gradient} at {log_modulus}, {phase}"

    def _check_near(self, ours: Tensor, theirs: Tensor) -> None:
        assert abs(ours.item() - theirs.item()) <= self.repetition_tolerance * max(ours.item(), theirs.item()) + 1e-9


class KnowledgePenaltyConformance(ABC):
    """The tests of a penalty that takes anything but a spectrum: subclass it, give `make`.

    `sampling_error` is how far an unbiased estimate of a distance may be below 0.
    """

    sampling_error: float = 0.0

    @abstractmethod
    def make(self) -> Penalty:
        """The penalty under test, a frozen dataclass."""

    def test_zero_at_its_goal(self) -> None:
        """`goal` has a loss of at most 1e-5 and is what the penalty takes."""
        penalty = self.make()
        for count in (1, 2, 9, 60):
            goal = penalty.goal(count)
            assert isinstance(goal, penalty.takes)
            loss = penalty(goal)
            assert loss.shape == ()
            assert abs(loss.item()) <= 1e-5

    def test_never_negative(self) -> None:
        """On random systems, matrices, exponents or densities, of batches of one and of more."""
        penalty = self.make()
        for seed in range(10):
            make, inputs = random_knowledge(penalty.takes, seed)
            assert penalty(make(*inputs)).item() >= -self.sampling_error

    def test_gradient_is_that_of_finite_differences(self) -> None:
        """gradcheck in float64 in all that the knowledge is made of."""
        penalty = self.make()
        make, inputs = random_knowledge(penalty.takes, 0)
        assert gradcheck(lambda *x: penalty(make(*x)), [x.requires_grad_() for x in inputs], eps=1e-7, atol=1e-5)

    def test_a_step_down_the_gradient_lowers_the_loss(self) -> None:
        """On random knowledge."""
        penalty = self.make()
        make, inputs = random_knowledge(penalty.takes, 1)
        loss = penalty(make(*[x.requires_grad_() for x in inputs]))
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        moved = [x if g is None else x - 1e-6 * g / g.norm() for x, g in zip(inputs, gradients, strict=True)]
        assert penalty(make(*moved)).item() < loss.item()

    def test_finite_at_the_edges(self) -> None:
        """Value and gradient where eigenvalues vanish, coincide, are defective, or of order 1e±30, both precisions."""
        penalty = self.make()
        for dtype in _TYPES:
            for make, inputs in awkward_knowledge(penalty.takes, dtype):
                leaves = [x.requires_grad_() for x in inputs]
                loss = penalty(make(*leaves))
                assert bool(loss.isfinite()), f"loss {loss.item()} at {inputs}"
                for gradient in torch.autograd.grad(loss, leaves, allow_unused=True):
                    assert gradient is None or bool(gradient.isfinite().all()), f"{gradient} at {inputs}"

    def test_settings_cannot_be_changed(self) -> None:
        """A frozen dataclass, equal to its copy and hashable."""
        _check_settings(self.make())


Knowledge = tuple[Callable[..., Any], list[Tensor]]
"""What makes the knowledge, and the tensors that it is made of."""


def random_knowledge(takes: type, seed: int) -> Knowledge:
    """What a penalty takes, from seeded float64 tensors."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    if issubclass(takes, LinearSystem):
        return _system, [-normal(2, 12, 3, 2).exp(), *(normal(2, 12, 3, *shape) for shape in ((2, 1), (1, 2)))]
    if issubclass(takes, StructuredOperator):
        return Dense, [normal(2, 3, 5, 5)]
    if issubclass(takes, Exponents):
        return (lambda values: Exponents(values, torch.zeros_like(values))), [normal(2, 4)]
    if issubclass(takes, Density):
        return _density, [2 * normal(2, 3, 6), normal(2, 3, 6)]
    raise TypeError(f"no random {takes.__name__} is known: give one by overriding the tests")


def awkward_knowledge(takes: type, dtype: torch.dtype) -> Iterator[Knowledge]:
    """What a penalty takes, at the edges of what there is."""
    if issubclass(takes, LinearSystem):
        for decay in (-torch.inf, -1e4, -1e-30, 0.0, 0.5):
            ones = torch.ones(1, 8, 2, 1, 1, dtype=dtype)
            for inputs in (ones, torch.zeros_like(ones)):
                yield _system, [torch.full((1, 8, 2, 1), decay, dtype=dtype), inputs, ones.clone()]
    elif issubclass(takes, StructuredOperator):
        for size in (1, 2, 63):
            shift = torch.eye(size, dtype=dtype).roll(1, 0).tril()
            for matrix in (torch.zeros_like(shift), shift, shift + torch.eye(size, dtype=dtype)):
                for scale in (1e-30, 1.0, 1e30):
                    yield Dense, [scale * matrix]
    elif issubclass(takes, Exponents):
        values = torch.tensor([1e30, 1.0, 0.0, -1e-30, -1e4, -torch.inf], dtype=dtype)
        yield (lambda values: Exponents(values, torch.zeros_like(values))), [values]
    elif issubclass(takes, Density):
        for scale in (0.0, 1e-30, 1.0, 1e30):
            nodes = scale * torch.tensor([[-1.0, 0.0, 0.0], [1.0, 1.0, 2.0]], dtype=dtype)
            yield _density, [nodes, torch.zeros(2, 3, dtype=dtype)]


def _system(log_modulus: Tensor, inputs: Tensor, readouts: Tensor) -> LinearSystem:
    values = torch.zeros(*log_modulus.shape[:3], 1, 1, dtype=log_modulus.dtype)
    return System(Diagonal(log_modulus), inputs, readouts, values)


def _density(nodes: Tensor, logits: Tensor) -> Density:
    return Density(nodes, logits.softmax(-1))


def _check_settings(penalty: Penalty) -> None:
    assert replace(penalty) == penalty  # type: ignore[type-var]
    assert hash(replace(penalty)) == hash(penalty)  # type: ignore[type-var]
    for name in [field.name for field in fields(penalty)] or ["setting"]:  # type: ignore[arg-type]
        try:
            setattr(penalty, name, 0.5)
        except FrozenInstanceError:
            continue
        raise AssertionError("a setting was assigned to; a penalty is a frozen dataclass")


def random_spectrum(seed: int, steps: int = 6, width: int = 3) -> Spectrum:
    """Decaying and growing values of any phase, (2, steps, 3, width) in float64, multiplicities 1 to 3, unmasked."""
    draw = torch.Generator().manual_seed(seed)
    log_modulus = 0.2 - torch.rand(2, steps, 3, width, dtype=torch.float64, generator=draw).mul(6).sub(4).exp()
    phase = 2 * math.pi * (torch.rand(2, steps, 3, width, dtype=torch.float64, generator=draw) - 0.5)
    return Spectrum(log_modulus, phase, torch.arange(width) % 3 + 1)


def _one_head(log_modulus: Tensor, phase: Tensor) -> Spectrum:
    ones = torch.ones(len(log_modulus), dtype=torch.long)
    return Spectrum(log_modulus.view(1, 1, 1, -1), phase.view(1, 1, 1, -1), ones)


def _each(spectrum: Spectrum, function: Callable[[Tensor], Tensor]) -> Spectrum:
    return replace(spectrum, log_modulus=function(spectrum.log_modulus), phase=function(spectrum.phase))


def _cast(spectrum: Spectrum, dtype: torch.dtype) -> Spectrum:
    return _each(spectrum, lambda x: x.to(dtype))


def _steps(spectrum: Spectrum, part: slice) -> Spectrum:
    return _each(spectrum, lambda x: x[:, part])
