"""The conformance tests of a sequence mixer, for our members and for anybody's.

A mixer passes when the system that it hands out is the one that it ran: unrolling that system gives the forward pass,
split, padded and regauged, and its eigenvalues carry gradients to whatever set them. Plain assertions: any runner that
calls methods named `test_…` will do.
"""

from __future__ import annotations

import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd import gradcheck

from specreg.estimators import Exact
from specreg.spectrum import Spectrum
from specreg.system import LinearSystem
from specreg.testing.dispatch import Record, tensors

__all__ = ["MixerConformance", "MixerLike"]

_LENGTH = 13  # of the sequences that are looked at step by step
_BATCH = 2


class MixerLike(Protocol):
    """What a mixer offers beside being a `torch.nn.Module`: see `specreg.models.mixer.Mixer`."""

    d_model: int

    def __call__(self, u: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Output (B, T, d_model) for input (B, T, d_model), and the state to go on from."""

    def with_system(self, u: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any, LinearSystem]:
        """The same, and the system that was applied."""

    def step(self, u: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One time step: output (B, d_model) for input (B, d_model)."""

    def readout(self, core: Tensor, u: Tensor) -> Tensor:
        """The output for the core output (B, T, ·) and the input."""

    def spectral_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that set eigenvalues directly."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As `torch.nn.Module` has it."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As `torch.nn.Module` has it."""

    def state_dict(self) -> dict[str, Any]:
        """As `torch.nn.Module` has it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """As `torch.nn.Module` has it."""


class MixerConformance(ABC):
    """The tests that every mixer passes: subclass it, give `make`.

    Three attributes may be narrowed, with a reason beside them: `scales`, the factors on a standard normal input at
    which float32 outputs and gradients stay finite; `shifts`, which are added to each spectral parameter to push |λ| to
    0 and 1; and `autocast_tolerance`, the relative error of the output under bfloat16.
    """

    scales: Sequence[float] = (0.0, 1e-4, 1e4)
    shifts: Sequence[float] = (-50.0, -10.0, 10.0, 50.0)
    autocast_tolerance: float = 0.05
    lengths: Sequence[int] = (1, 2, 31, 32, 33, 63, 64, 65, 130, 1000)

    @abstractmethod
    def make(self) -> MixerLike:
        """A fresh small mixer, float32 on the CPU; torch's generator is seeded before each call."""

    # the identity that makes a reported spectrum true

    def test_unroll_is_forward(self) -> None:
        """The recurrence, step after step, gives the forward pass: 1e-10 relative in float64, 1e-5 in float32."""
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            mixer, u = self._mixer(dtype), self._input(150, dtype)
            y, _, system = mixer.with_system(u)
            _assert_close(_unrolled(mixer, system, u), y, tolerance)
            _assert_close(mixer(u)[0], y, 0.0)

    def test_unroll_has_the_gradient_of_forward(self) -> None:
        """The two agree as functions of input and parameters, not only at one point."""
        mixer, u = self._mixer(), self._input(_LENGTH).requires_grad_()
        inputs = [u, *mixer.parameters()]
        y, _, system = mixer.with_system(u)
        weight = torch.randn_like(y)
        for ours, theirs in zip(
            _gradients((weight * _unrolled(mixer, system, u)).sum(), inputs),
            _gradients((weight * mixer(u)[0]).sum(), inputs),
            strict=True,
        ):
            _assert_close(ours, theirs, 1e-8)

    def test_step_is_forward(self) -> None:
        """One step after the other with the state handed over, as in generation."""
        mixer, u = self._mixer(), self._input(_LENGTH)
        state, outputs = None, []
        for u_t in u.unbind(1):
            y_t, state = mixer.step(u_t, state)
            outputs.append(y_t)
        _assert_close(torch.stack(outputs, 1), mixer(u)[0], 1e-10)

    def test_split_anywhere(self) -> None:
        """Two calls with the state handed over are one, in output and spectrum, and the second's system unrolls."""
        mixer, u = self._mixer(), self._input(_LENGTH)
        y, _, system = mixer.with_system(u)
        whole = _log_modulus(system, _LENGTH)
        for position in range(1, _LENGTH):
            first, state = mixer(u[:, :position])
            second, _, later = mixer.with_system(u[:, position:], state)
            _assert_close(torch.cat((first, second), 1), y, 1e-10)
            _assert_close(_unrolled(mixer, later, u[:, position:]), second, 1e-10)
            _assert_close(_log_modulus(later, _LENGTH - position), whole[:, position:], 1e-10)

    def test_split_in_many(self) -> None:
        """Pieces shorter than a short convolution's reach, an uneven one, and a long rest."""
        mixer, u = self._mixer(), self._input(140)
        state, outputs = None, []
        for part in u.split([1, 1, 2, 65, 1, 70], 1):
            y, state = mixer(part, state)
            outputs.append(y)
        _assert_close(torch.cat(outputs, 1), mixer(u)[0], 1e-10)

    def test_chunk_boundaries_have_no_effect(self) -> None:
        """A shorter call is the start of a longer one at every length around a chunk's, and both are the recurrence."""
        mixer, u = self._mixer(), self._input(max(self.lengths))
        with torch.no_grad():
            y, _, system = mixer.with_system(u)
            _assert_close(_unrolled(mixer, system, u), y, 1e-10)
            for length in self.lengths:
                _assert_close(mixer(u[:, :length])[0], y[:, :length], 1e-10)

    # time and padding

    def test_causality_by_gradient(self) -> None:
        """∂y_t/∂u_s is exactly 0 for s > t, also across a chunk's boundary, and y_t does depend on u_t."""
        mixer = self._mixer()
        for length, steps in ((7, range(7)), (70, (0, 31, 32, 63, 64))):
            u = self._input(length).requires_grad_()
            y, _ = mixer(u)
            for t in steps:
                (gradient,) = torch.autograd.grad(y[:, t].sum(), u, retain_graph=True)
                assert not gradient[:, t + 1 :].any(), f"the output at step {t} depends on later inputs"
                assert gradient[:, t].any(), f"the output at step {t} does not depend on its own input"

    def test_spectrum_is_causal(self) -> None:
        """∂λ_t/∂u_s is exactly 0 for s > t."""
        mixer, u = self._mixer(), self._input(7).requires_grad_()
        log_modulus = _log_modulus(mixer.with_system(u)[2], 7)
        for t in range(7):
            total = log_modulus[:, t].sum()
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, u, retain_graph=True, allow_unused=True)
                assert gradient is None or not gradient[:, t + 1 :].any(), f"λ at step {t} depends on later inputs"

    def test_padding_changes_nothing(self) -> None:
        """Real steps of a padded row have output, spectrum and influence of the row alone; padding has no gradient."""
        mixer, u, mask = self._mixer(), self._input(_LENGTH).requires_grad_(), _mask(_LENGTH, 5)
        padded, _, system = mixer.with_system(u, None, mask)
        alone, _, own = mixer.with_system(u[1:, :5])
        _assert_close(padded[1:, :5], alone, 1e-10)
        _assert_close(padded[:1], mixer(u[:1])[0], 1e-10)
        _assert_close(_log_modulus(system, _LENGTH)[1:, :5], _log_modulus(own, 5, batch=1), 1e-10)
        for ours, theirs in zip(system.influence([0, 1, 3]), own.influence([0, 1, 3]), strict=True):
            real = ours.expand(_BATCH, -1, -1)[1:, : 5 - (_LENGTH - ours.shape[1])]
            _assert_close(real, theirs.expand_as(real), 1e-10)
            read = ours.expand(_BATCH, -1, -1)[1:, 5 - (_LENGTH - ours.shape[1]) :]
            assert not read.any(), "a padded step reads"
        (gradient,) = torch.autograd.grad(padded[mask].square().sum(), u)
        assert not gradient[~mask].any(), "an output at a real step depends on a padded input"

    def test_padding_does_not_count(self) -> None:
        """Padded steps have no weight in the spectrum, and what stands in them changes no eigenvalue that counts."""
        mixer, u, mask = self._mixer(), self._input(_LENGTH), _mask(_LENGTH, 5)
        other = torch.where(mask.unsqueeze(-1), u, 7 * torch.ones_like(u))
        spectra = [Exact()(mixer.with_system(v, None, mask)[2]) for v in (u, other)]
        for spectrum in spectra:
            if spectrum.log_modulus.shape[1] != 1:
                assert not spectrum.weights().expand(_BATCH, -1, -1, -1)[~mask].any(), "a padded step counts"
            _assert_close(spectrum.weights().sum(), torch.ones(()), 1e-6)
        first, second = ((s.weights() * s.log_modulus).sum() for s in spectra)
        _assert_close(first, second, 1e-12)

    def test_state_after_padding(self) -> None:
        """The state of a padded row is that after its last real step: what follows is the same, spectrum included."""
        mixer, u, v, mask = self._mixer(), self._input(_LENGTH), self._input(6, seed=2), _mask(_LENGTH, 5)
        _, state = mixer(u, None, mask)
        _, alone = mixer(u[1:, :5])
        after, _, system = mixer.with_system(v, state)
        expected, _, own = mixer.with_system(v[1:], alone)
        _assert_close(after[1:], expected, 1e-10)
        _assert_close(_log_modulus(system, 6)[1:], _log_modulus(own, 6, batch=1), 1e-10)
        _assert_close(_unrolled(mixer, system, v), after, 1e-10)

    def test_state_of_a_row_that_has_not_begun(self) -> None:
        """After calls without a real step a row starts afresh: output, spectrum and which of its steps count."""
        mixer, u, v, mask = self._mixer(), self._input(8), self._input(6, seed=2), _mask(6, 4)
        state = None
        for _ in range(2):
            _, state = mixer(u, state, _mask(8, 0))
        after, later, system = mixer.with_system(v, state, mask)
        expected, _, own = mixer.with_system(v[1:], None, mask[1:])
        _assert_close(after[1:], expected, 1e-10)
        # 1/e stands where nothing counts, so that this compares which steps do as well
        found, fresh = (Exact()(s).counted().log_modulus for s in (system, own))
        _assert_close(found[-1:], fresh, 1e-10)
        _assert_close(_unrolled(mixer, system, v)[mask], after[mask], 1e-10)
        again = Exact()(mixer.with_system(v, later)[2]).weights()
        assert (again > 0).all(), "a row that has begun counts from its first step on"

    def test_state_of_a_row_that_has_ended(self) -> None:
        """A row without a real step in a later call keeps its state; so does one that a mask of all True touches."""
        mixer, u, v = self._mixer(), self._input(8), self._input(6, seed=2)
        _, state = mixer(u, None, _mask(8, 3))
        ended = torch.tensor([[True], [False]]).expand(_BATCH, 6)
        _, later = mixer(v, state, ended)
        after, _, system = mixer.with_system(v, later)
        expected, _, own = mixer.with_system(v, state)
        _assert_close(after[1:], expected[1:], 1e-10)
        _assert_close(_log_modulus(system, 6)[1:], _log_modulus(own, 6)[1:], 1e-10)
        assert (Exact()(system).weights() > 0).all(), "a row that has ended is not a fresh start"
        _assert_close(mixer(u, None, torch.ones(_BATCH, 8, dtype=torch.bool))[0], mixer(u)[0], 1e-10)

    def test_padded_system_unrolls(self) -> None:
        """The identity holds at the real steps of a padded batch, from a fresh start and from a padded row's state."""
        mixer, u, mask = self._mixer(), self._input(_LENGTH), _mask(_LENGTH, 5)
        state = None
        for _ in range(2):
            y, after, system = mixer.with_system(u, state, mask)
            _assert_close(_unrolled(mixer, system, u)[mask], y[mask], 1e-10)
            state = after

    # the spectrum

    def test_eigenvalues_are_those_of_the_dense_matrix(self) -> None:
        """Closed forms, with multiplicity, against LAPACK on `dense()`; log-modulus and phase are the values' own."""
        system = self._mixer().with_system(self._input(5))[2]
        transition = system.transition
        count = transition.multiplicity()
        assert int(count.sum()) == transition.shape[-1], f"multiplicities are {count.tolist()}"
        dense = transition.dense()
        assert dense.shape == transition.shape
        written = getattr(system, "inputs", None)  # (…, n, r), of a system that holds its state
        assert written is None or written.shape[-2] == transition.shape[-1], "the state has another size than Λ"
        ours = transition.eigenvalues().detach().repeat_interleave(count, -1).flatten(0, -2)
        theirs = torch.linalg.eigvals(dense.detach()).flatten(0, -2)
        for a, b in zip(ours, theirs, strict=True):
            _assert_same_multiset(a.to(b.dtype), b, 1e-9)
        _assert_close(torch.polar(transition.log_modulus().exp(), transition.phase()), transition.eigenvalues(), 1e-12)

    def test_spectrum_has_every_block(self) -> None:
        """Axes (B|1, T|1, H, m): every head or independent block is there, none stands for the others."""
        system = self._mixer().with_system(self._input(5))[2]
        spectrum = Exact()(system)
        batch, time, heads, values = spectrum.log_modulus.shape
        assert batch in (1, _BATCH)
        assert time in (1, 5)
        assert heads == system.influence([0])[0].shape[2]
        assert values == len(spectrum.multiplicity)
        assert spectrum.phase.shape == spectrum.log_modulus.shape

    def test_eigenvalues_gradcheck(self) -> None:
        """Gradients of log-modulus and phase with respect to the input and every parameter, by finite differences."""
        mixer, u = self._mixer(), self._input(5).requires_grad_()

        def polar(*_: Tensor) -> tuple[Tensor, ...]:
            spectrum = Exact()(mixer.with_system(u)[2])
            return tuple(part for part in (spectrum.log_modulus, spectrum.phase) if part.requires_grad)

        assert polar(), "the spectrum has no gradient"
        assert _check(polar, (u, *mixer.parameters()))

    def test_gradients_reach_what_sets_the_spectrum(self) -> None:
        """Some parameter sets the spectrum, with a finite gradient, and so does every entry of a spectral one."""
        reached: dict[str, Tensor] = {}
        for shift in (0.0, -10.0):  # an activation may be linear where it starts: then here or moved
            mixer, u = self._mixer(), self._input(_LENGTH)
            with torch.no_grad():
                for parameter in mixer.spectral_parameters():
                    parameter.add_(shift)
            named = dict(mixer.named_parameters())
            total = self._weighted(Exact()(mixer.with_system(u)[2]))
            for name, gradient in zip(named, _gradients(total, list(named.values())), strict=True):
                assert torch.isfinite(gradient).all(), f"the gradient of {name} is not finite"
                reached[name] = reached.get(name, torch.tensor(False)) | (gradient.abs() > 1e-9)
        assert any(bool(entries.any()) for entries in reached.values()), "no parameter sets the spectrum"
        spectral = [name for name, p in named.items() if any(p is q for q in mixer.spectral_parameters())]
        assert len(spectral) == len(list(mixer.spectral_parameters())), "a spectral parameter is not the module's own"
        for name in spectral:
            assert reached[name].all(), f"{name} is declared spectral, but an entry of it sets no eigenvalue"

    def test_forward_gradcheck(self) -> None:
        """Gradients of output and next output with respect to the input and every parameter, by finite differences."""
        mixer, u, v = self._mixer(), self._input(5).requires_grad_(), self._input(3, seed=2)

        def outputs(*_: Tensor) -> tuple[Tensor, Tensor]:
            y, state = mixer(u)
            return y, mixer(v, state)[0]

        assert _check(outputs, (u, *mixer.parameters()))

    # what no gauge can change

    def test_influence_is_its_definition(self) -> None:
        """I(t, s) by impulses: one value at step s set to 1, all others 0, and the Frobenius norm of what is read at t.

        Values are (B, T, H, …, d); the d columns of a matrix state are alike, so the basis is that of the axes between.
        """
        system: Any = self._mixer().with_system(self._input(_LENGTH))[2]
        if getattr(system, "feedthrough", None) is not None:
            system = replace(system, feedthrough=None)
        influences = system.influence(range(_LENGTH))
        heads = influences[0].shape[2]
        for source in (0, 1, 6, _LENGTH - 1):
            for head in range(heads):
                for column in (0, -1):
                    responses = _impulse_responses(system, source, head, column)
                    for t in range(_LENGTH):
                        measured = responses[:, :, t].square().sum((0, -1)).sqrt()
                        lag = t - source
                        if lag < 0:
                            assert not measured.any()
                            continue
                        told = influences[lag]
                        told = told[:, 0 if told.shape[1] == 1 else source, head].expand(_BATCH)
                        _assert_close(told, measured, 1e-9)

    def test_influence_knows_its_lags(self) -> None:
        """A lag outside the sequence is refused, and the message says what is allowed."""
        system = self._mixer().with_system(self._input(4))[2]
        for lag in (-1, 4):
            try:
                system.influence([lag])
            except ValueError as error:
                assert str(lag) in str(error)
            else:
                raise AssertionError(f"lag {lag} of a sequence of 4 was not refused")

    def test_gauge_changes_no_output(self) -> None:
        """A regauged system has other eigenvalues and the same outputs, also from a state; the inverse undoes it."""
        mixer, u = self._mixer(), self._input(_LENGTH)
        y, _, system = mixer.with_system(u)
        rest = u[:, 4:]
        tail, _, later = mixer.with_system(rest, mixer(u[:, :4])[1])
        for part, inputs, output in ((system, u, y), (later, rest, tail)):
            gauge = self._gauge(part, inputs.shape[1])
            moved = part.regauged(gauge)
            _assert_close(_unrolled(mixer, moved, inputs), output, 1e-10)
            change = _log_modulus(moved, inputs.shape[1]) - _log_modulus(part, inputs.shape[1])
            _assert_close(change[:, 1:], gauge.diff(dim=1).unsqueeze(-1).expand_as(change[:, 1:]), 1e-9)
            back = moved.regauged(-gauge)
            _assert_close(_log_modulus(back, inputs.shape[1]), _log_modulus(part, inputs.shape[1]), 1e-9, 1e-9)

    def test_gauge_changes_no_influence(self) -> None:
        """Influence, its gradient included, is a property of the map from input to output."""
        mixer, u = self._mixer(), self._input(_LENGTH).requires_grad_()
        system = mixer.with_system(u)[2]
        moved = system.regauged(self._gauge(system, _LENGTH))
        lags = [0, 1, 5, _LENGTH - 1]
        ours, theirs = (list(s.influence(lags)) for s in (moved, system))
        for a, b in zip(ours, theirs, strict=True):
            _assert_close(a, b.expand_as(a), 1e-10)
        parameters = [u, *mixer.parameters()]
        sums = [
            sum(i.expand(_BATCH, _LENGTH - lag, -1).sum() for i, lag in zip(found, lags, strict=True))
            for found in (ours, theirs)
        ]
        for a, b in zip(*(_gradients(torch.as_tensor(total), parameters) for total in sums), strict=True):
            _assert_close(a, b, 1e-8, 1e-10)

    # numbers at the edge of their range

    def test_extreme_inputs_are_finite(self) -> None:
        """Outputs, spectrum, influence and gradients in float32 at inputs of every scale."""
        for scale in self.scales:
            u = (scale * self._input(70, torch.float32)).requires_grad_()
            self._assert_finite(self._mixer(torch.float32), u, f"at inputs scaled by {scale:g}")

    def test_extreme_eigenvalues_are_finite(self) -> None:
        """Outputs, spectrum and gradients in float32 as |λ| → 1 and → 0: each spectral parameter far to either side."""
        for shift in self.shifts:
            for index in range(len(list(self._mixer().spectral_parameters()))):
                mixer = self._mixer(torch.float32)
                with torch.no_grad():
                    list(mixer.spectral_parameters())[index].add_(shift)
                u = self._input(70, torch.float32).requires_grad_()
                self._assert_finite(mixer, u, f"with spectral parameter {index} moved by {shift:g}")

    def test_identity_holds_at_extreme_eigenvalues(self) -> None:
        """Unroll = forward in float64 with every spectral parameter far to either side."""
        for shift in self.shifts:
            mixer, u = self._mixer(), self._input(70)
            with torch.no_grad():
                for parameter in mixer.spectral_parameters():
                    parameter.add_(shift)
                y, _, system = mixer.with_system(u)
                _assert_close(_unrolled(mixer, system, u), y, 1e-10, 1e-300)

    def test_autocast(self) -> None:
        """Under bfloat16 autocast the output keeps its tolerance, and log λ is float32, not rounded on its way."""
        mixer, u = self._mixer(torch.float32), self._input(70, torch.float32)
        y, _, exact = mixer.with_system(u)
        rest = u[:, 40:]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, _, system = mixer.with_system(u)
            _, _, later = mixer.with_system(rest, mixer(u[:, :40])[1])
        _assert_close(rough.float(), y, self.autocast_tolerance)
        for found, part in ((system, slice(None)), (later, slice(40, None))):
            log_modulus = found.transition.log_modulus()
            assert log_modulus.dtype == torch.float32, f"log λ is {log_modulus.dtype} under autocast"
            values = log_modulus.unique()
            rounded = values == values.bfloat16().float()
            few = len(values) < 8  # one decay for all may well be a round number
            assert few or 2 * int(rounded.sum()) <= len(values), "log λ was rounded to bfloat16"
            length = u[:, part].shape[1]
            wanted = _log_modulus(exact, 70)[:, part]
            _assert_close(_log_modulus(found, length), wanted, self.autocast_tolerance, self.autocast_tolerance)
        _assert_close(_unrolled(mixer, system, u), y, self.autocast_tolerance)

    # how it runs

    def test_compiles_without_a_graph_break(self) -> None:
        """`torch.compile(fullgraph=True)` of forward and of `with_system`, gradient included."""
        mixer, u = self._mixer(), self._input(70).requires_grad_()

        def both(u: Tensor) -> tuple[Tensor, Tensor]:
            y, _, system = mixer.with_system(u)
            return y, system.transition.log_modulus()

        with _compilation():
            forward: Any = torch.compile(mixer, fullgraph=True, backend="eager", dynamic=False)
            compiled = torch.compile(both, fullgraph=True, backend="eager", dynamic=False)
            _assert_close(forward(u)[0], mixer(u)[0], 1e-12)
            results = [function(u) for function in (compiled, both)]
        inputs = [u, *mixer.parameters()]
        gradients = [_gradients(y.square().sum() + log_modulus.sum(), inputs) for y, log_modulus in results]
        for ours, theirs in (*zip(*results, strict=True), *zip(*gradients, strict=True)):
            _assert_close(ours, theirs, 1e-10, 1e-12)

    def test_save_and_load(self) -> None:
        """A state dictionary through safetensors into a fresh mixer gives the same bits."""
        mixer, u = self._mixer(), self._input(_LENGTH)
        other = self._mixer(seed=1)
        assert not torch.equal(other(u)[0], mixer(u)[0]), "two seeds give the same mixer"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mixer.safetensors"
            save_file({name: value.contiguous() for name, value in mixer.state_dict().items()}, path)
            other.load_state_dict(load_file(path))
        assert torch.equal(other(u)[0], mixer(u)[0])

    def test_forward_does_nothing_for_the_system(self) -> None:
        """Every operation of a forward pass contributes to its output or state: a system is free until asked for."""
        for state, mask in ((None, None), (self._state(), None), (None, _mask(70, 5))):
            mixer, u = self._mixer(torch.float32), self._input(70, torch.float32)
            with torch.no_grad(), Record() as forward:
                result = mixer(u, state, mask)
            wasted = forward.wasted(list(tensors(result)))
            assert not wasted, f"operations of forward that nothing uses: {', '.join(wasted)}"
            with torch.no_grad(), Record() as handing_out:
                mixer.with_system(u, state, mask)
            assert handing_out.names[: len(forward.names)] == forward.names, "with_system runs another forward pass"

    def test_deterministic(self) -> None:
        """Two calls give the same bits, gradient included, and leave torch's generator alone."""
        mixer = self._mixer(torch.float32)
        before = torch.get_rng_state()
        runs = []
        for _ in range(2):
            u = self._input(70, torch.float32).requires_grad_()
            y, _, system = mixer.with_system(u)
            runs.append([y, *_gradients(y.square().sum() + _log_modulus(system, 70).sum(), [u, *mixer.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        assert torch.equal(torch.get_rng_state(), before)

    # helpers

    def _mixer(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mixer: Any = self.make()
        return mixer.to(dtype).eval()

    def _input(self, length: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(_BATCH, length, self._mixer().d_model, dtype=torch.float64, generator=generator).to(dtype)

    def _gauge(self, system: LinearSystem, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        return torch.randn(_BATCH, length, system.transition.shape[2], dtype=torch.float64, generator=generator)

    def _weighted(self, spectrum: Spectrum) -> Tensor:
        """A sum in which no two eigenvalues weigh alike, so that no gradient telescopes away."""
        generator = torch.Generator().manual_seed(3)
        parts = [
            (torch.rand(part.shape, dtype=part.dtype, generator=generator) * part).sum()
            for part in (spectrum.log_modulus, spectrum.phase)
        ]
        return parts[0] + parts[1]

    def _state(self) -> Any:
        with torch.no_grad():
            return self._mixer(torch.float32)(self._input(9, torch.float32))[1]

    def _assert_finite(self, mixer: Any, u: Tensor, where: str) -> None:
        y, _, system = mixer.with_system(u)
        spectrum: Spectrum = Exact()(system)
        assert torch.isfinite(y).all(), f"the output is not finite {where}"
        log_timescale = spectrum.log_timescale
        assert torch.isfinite(log_timescale).all(), f"the spectrum is not finite {where}"
        influence = torch.stack([part.mean() for part in system.influence([0, 1, u.shape[1] - 1])]).sum()
        assert torch.isfinite(influence), f"the influence is not finite {where}"
        names = ["the input", *(name for name, _ in mixer.named_parameters())]
        for total in (y.mean(), (spectrum.weights() * log_timescale).sum() + spectrum.phase.mean(), influence):
            for name, gradient in zip(names, _gradients(total, [u, *mixer.parameters()]), strict=True):
                assert torch.isfinite(gradient).all(), f"the gradient of {name} is not finite {where}"


@contextmanager
def _compilation() -> Iterator[None]:
    """No compiled code from before, none left over; without the warning that dynamo gives itself."""
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # dynamo's own, others in each version
            yield
    finally:
        torch._dynamo.reset()


def _unrolled(mixer: MixerLike, system: LinearSystem, u: Tensor) -> Tensor:
    return mixer.readout(system.unroll(), u)


def _log_modulus(system: LinearSystem, length: int, batch: int = _BATCH) -> Tensor:
    """log |λ| with its batch and time axes written out, (B, T, H, m)."""
    log_modulus = system.transition.log_modulus()
    return log_modulus.expand(batch, length, *log_modulus.shape[2:])


def _impulse_responses(system: Any, source: int, head: int, column: int) -> Tensor:
    """What is read, (basis, B, T, ·), for each unit vector written by one head at one step."""
    empty = torch.zeros_like(system.values)
    basis = empty[0, 0, head, ..., 0].numel()
    responses = []
    for index in range(basis):
        values = empty.clone()
        values[:, source, head].view(_BATCH, basis, -1)[:, index, column] = 1
        responses.append(system.respond(values).detach())
    return torch.stack(responses)


def _mask(length: int, real: int) -> Tensor:
    """The first row whole, the second with `real` real steps."""
    return torch.arange(length) < torch.tensor([[length], [real]])


def _gradients(total: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)]


def _check(function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> bool:
    """Finite differences along random directions; `function` reads the very tensors that are perturbed."""
    return gradcheck(function, inputs, fast_mode=True)


def _assert_close(ours: Tensor, theirs: Tensor, relative: float, absolute: float = 0.0) -> None:
    """|a − b| ≤ relative · max|b| + absolute, everywhere: relative to the tensor's scale, as errors of sums are."""
    assert ours.shape == theirs.shape, f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ"
    assert ours.isfinite().all(), "a value is not finite"
    error = float((ours - theirs).detach().abs().max())
    bound = relative * float(theirs.detach().abs().max()) + absolute
    assert error <= bound, f"the error {error:.3g} is over the bound {bound:.3g}"


def _assert_same_multiset(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Each value has its partner: nearest first, each used once."""
    left = list(theirs.unbind())
    for value in ours.unbind():
        distances = [float((value - other).abs()) for other in left]
        nearest = min(range(len(left)), key=distances.__getitem__)
        assert distances[nearest] <= tolerance, f"eigenvalue {complex(value):.6g} is {distances[nearest]:.3g} off"
        left.pop(nearest)
