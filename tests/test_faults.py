"""Known faults of the released analysis of Rickenbach et al. 2025 (arXiv 2510.09379): each shown, and ours free of it.

Every test computes the faulty number, shows that it differs from the true one, and that ours is the true one.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import specreg.models
from specreg.estimators import Exact
from specreg.invariants import effective_memory, lag_averaged_memory, log_spaced_lags, modulus_shares
from specreg.models.backbone import Backbone
from specreg.models.linear_attention import LinearAttention
from specreg.models.lru import LRU
from specreg.models.mamba2 import Mamba2
from specreg.models.mixer import Mixer
from specreg.models.norm_attention import NormAttention
from specreg.models.softmax_attention import SoftmaxAttention
from specreg.penalties import PhaseDistance
from specreg.spectrum import Spectrum
from specreg.targets import Ring

LENGTH = 20


def members() -> Iterator[type[Mixer]]:
    for module in pkgutil.iter_modules(specreg.models.__path__, "specreg.models."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, Mixer) and not inspect.isabstract(member) and member.__module__ == module.name:
                yield member


def inputs(length: int = LENGTH, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(2, length, width, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def seeded(mixer: type[Mixer], **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mixer(**settings).double()


def softmax_scores(mixer: Any, u: Tensor) -> Tensor:
    """q_t·k_j/√d_h for all t and j, masked nowhere, (B, H, T, T), from the weights and with the convolution."""
    x = mixer.projection(u)
    if mixer.convolution is not None:
        x = mixer.convolution(x, None, None)[0]
    q, k = (x[..., part].unflatten(-1, (mixer.heads, -1)).transpose(1, 2) for part in (slice(0, 8), slice(8, 16)))
    return q @ k.mT / math.sqrt(q.shape[-1])


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def log_decay(log_normaliser: Tensor) -> Tensor:
    """log η_{t−1} − log η_t for t = 2 … T, (B, T − 1, H), from (B, H, T)."""
    return -log_normaliser.diff(dim=-1).transpose(1, 2)


def ours(mixer: Any, u: Tensor, mask: Tensor | None = None) -> Tensor:
    return mixer.with_system(u, None, mask)[2].transition.log_modulus()[:, 1:, :, 0].detach()


def assert_true_and_not_faulty(ours: Tensor, true: Tensor, faulty: Tensor) -> None:
    torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-9)
    assert (faulty - true).abs().max() > 1e-2 * true.abs().max(), "the fault makes no difference here: nothing is shown"


class TestWrongLayerInput:
    """Fault: λ from the layer's output, without its norm and its convolution."""

    def test_convolution_is_in(self) -> None:
        mixer, u = seeded(SoftmaxAttention, d_model=8, d_state=8, heads=2, convolution_width=4), inputs()
        true = softmax_scores(mixer, u).masked_fill(~causal(LENGTH), -torch.inf).logsumexp(-1)
        bare = mixer.projection(u)
        q, k = (bare[..., part].unflatten(-1, (2, -1)).transpose(1, 2) for part in (slice(0, 8), slice(8, 16)))
        faulty = (q @ k.mT / 2).masked_fill(~causal(LENGTH), -torch.inf).logsumexp(-1)
        assert_true_and_not_faulty(ours(mixer, u), log_decay(true), log_decay(faulty))

    @pytest.mark.parametrize("member", [SoftmaxAttention, LinearAttention, NormAttention, Mamba2])
    def test_layer_input_is_in(self, member: type[Mixer]) -> None:
        """In a stack, each layer's λ come from norm(residual stream), which a hook sees, and not from its output."""
        mixers = [seeded(member, d_model=8, d_state=8, heads=2, convolution_width=4) for _ in range(2)]
        model = Backbone(mixers, num_classes=3, max_length=LENGTH, channels=8).double()
        seen: list[Tensor] = []
        hooks = [block.norm.register_forward_hook(lambda _, __, output: seen.append(output)) for block in model.blocks]
        _, systems = model.with_systems(inputs())
        for hook in hooks:
            hook.remove()
        assert list(systems) == ["layers.0", "layers.1"]
        for mixer, u, system in zip(mixers, seen, systems.values(), strict=True):
            found = system.transition.log_modulus()[:, 1:, :, 0].detach()
            assert_true_and_not_faulty(found, ours(mixer, u), ours(mixer, mixer(u)[0]))


def test_masked_future_positions_are_not_counted() -> None:
    """Fault: scores are multiplied by the mask, so that each future position adds e^0 = 1 to η."""
    mixer, u = seeded(SoftmaxAttention, d_model=8, d_state=8, heads=2), inputs()
    scores = softmax_scores(mixer, u)
    true = scores.masked_fill(~causal(LENGTH), -torch.inf).logsumexp(-1)
    faulty = (scores * causal(LENGTH)).logsumexp(-1)
    assert_true_and_not_faulty(ours(mixer, u), log_decay(true), log_decay(faulty))
    torch.testing.assert_close(faulty[..., -1], true[..., -1])  # only the last position has no future


def test_scores_are_scaled() -> None:
    """Fault: the factor 1/√d_h is dropped from the scores behind η."""
    mixer, u = seeded(SoftmaxAttention, d_model=8, d_state=8, heads=2), inputs()
    scores = softmax_scores(mixer, u).masked_fill(~causal(LENGTH), -torch.inf)
    assert_true_and_not_faulty(
        ours(mixer, u), log_decay(scores.logsumexp(-1)), log_decay((math.sqrt(4) * scores).logsumexp(-1))
    )


@pytest.mark.parametrize("member", [SoftmaxAttention, LinearAttention, NormAttention, Mamba2])
def test_padding_is_not_counted(member: type[Mixer]) -> None:
    """Fault: steps after a sequence's end enter the average. Ours: the mean over what the rows alone have."""
    mixer, u = seeded(member, d_model=8, d_state=8, heads=2), inputs()
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [6]])
    spectrum = Exact()(mixer.with_system(u, None, mask)[2])
    mean = (spectrum.weights() * spectrum.log_modulus).sum()
    alone = [Exact()(mixer.with_system(row)[2]) for row in (u[:1], u[1:, :6])]
    values = [s.log_modulus[:, s.mask[0]] if s.mask is not None else s.log_modulus for s in alone]
    true = torch.cat([v.flatten() for v in values]).mean()
    faulty = spectrum.log_modulus.mean()
    torch.testing.assert_close(mean, true, rtol=1e-9, atol=0)
    assert ((faulty - true) / true).abs() > 1e-2
    shares = modulus_shares(spectrum, [0.5, 0.9, 1.0])
    kept = torch.cat([v.flatten() for v in values]).exp()
    counts = torch.stack([(kept < 0.5).sum(), ((kept >= 0.5) & (kept < 0.9)).sum(), ((kept >= 0.9) & (kept < 1)).sum()])
    torch.testing.assert_close(shares[:3], counts.double() / len(kept))


class TestBinsAreHalfOpen:
    """Fault: histogram bins closed at both ends count a value at an edge twice."""

    edges = (0.1, 0.5, 0.9, 1.0, 10.0, 100.0)

    def spectrum(self, modulus: Tensor, mask: Tensor | None = None) -> Spectrum:
        log_modulus = modulus.log().view(1, -1, 1, 1)
        return Spectrum(log_modulus, torch.zeros_like(log_modulus), torch.ones(1, dtype=torch.long), mask)

    def test_value_at_an_edge_counts_once(self) -> None:
        modulus = torch.tensor([0.3, 1.0, 1.0, 2.0], dtype=torch.double)  # λ_1 = 1 in every fresh attention
        shares = modulus_shares(self.spectrum(modulus))
        ends = [0.0, *self.edges, math.inf]
        closed = torch.stack([((modulus >= a) & (modulus <= b)).double().mean() for a, b in zip(ends, ends[1:])])  # noqa: B905, RUF007
        assert closed.sum() == 1.5
        torch.testing.assert_close(shares, torch.tensor([0, 0.25, 0, 0, 0.75, 0, 0], dtype=torch.double))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_every_value_is_in_one_bin(self, dtype: torch.dtype) -> None:
        modulus = torch.tensor([0.0, 1e-30, *self.edges, 1e30], dtype=dtype)
        shares = modulus_shares(self.spectrum(modulus))
        torch.testing.assert_close(shares.sum(), torch.ones((), dtype=dtype))
        expected = torch.tensor([2, 1, 1, 1, 1, 1, 2], dtype=dtype) / 9
        torch.testing.assert_close(shares, expected)

    def test_weights_are_the_spectrum_s(self) -> None:
        """Multiplicity and mask as everywhere: a masked step does not count."""
        log_modulus = torch.tensor([0.3, 0.7, 0.95], dtype=torch.double).log().view(1, 3, 1, 1)
        mask = torch.tensor([[True, True, False]])
        spectrum = Spectrum(log_modulus, torch.zeros_like(log_modulus), torch.tensor([5]), mask)
        torch.testing.assert_close(modulus_shares(spectrum)[:4], torch.tensor([0, 0.5, 0.5, 0], dtype=torch.double))

    @pytest.mark.parametrize("edges", [(), (0.5, 0.5), (0.9, 0.1), (0.0, 1.0)])
    def test_edges_are_checked(self, edges: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="moduli over 0 that increase"):
            modulus_shares(self.spectrum(torch.ones(2)), edges)


class NoDenseEigensolve(TorchDispatchMode):
    """Refuses every dense eigenvalue decomposition."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "linalg_eig" not in str(function), f"{function} was called for a structure with closed-form eigenvalues"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("member", list(members()), ids=lambda member: member.__name__)
def test_no_dense_eigensolve(member: type[Mixer]) -> None:
    """Fault: a dense eigensolve where the values are known: it moves eigenvalues of a matrix that is far from normal.

    Shown on a bidiagonal matrix whose only eigenvalue is ½; every structured transition is read in closed form.
    """
    jordan = 0.5 * torch.eye(24, dtype=torch.double) + torch.diag(torch.ones(23, dtype=torch.double), 1)
    jordan = jordan + 1e-16 * torch.ones(24, 24, dtype=torch.double)  # rounding, as any discretisation leaves it
    assert (torch.linalg.eigvals(jordan).abs() - 0.5).abs().max() > 0.1
    mixer = member.example().double()
    u = inputs(width=mixer.d_model).requires_grad_()
    with NoDenseEigensolve():
        spectrum = Exact()(mixer.with_system(u)[2])
        (spectrum.log_modulus.sum() + spectrum.phase.sum()).backward()
    with pytest.raises(AssertionError, match="was called"), NoDenseEigensolve():
        torch.linalg.eigvals(jordan)


@pytest.mark.parametrize("member", list(members()), ids=lambda member: member.__name__)
def test_every_block_is_in_the_spectrum(member: type[Mixer]) -> None:
    """Fault: one channel of d stands for all. Ours: changing any single block's values changes the spectrum's mean."""
    mixer = member.example().double()
    system = mixer.with_system(inputs(width=mixer.d_model))[2]
    spectrum = Exact()(system)
    heads, values = spectrum.log_modulus.shape[2:]
    assert heads == getattr(mixer, "heads", 1)
    assert heads * values == (mixer.d_state if isinstance(mixer, LRU) else mixer.heads)
    per_block = spectrum.log_modulus.detach().flatten(0, 1).mean(0).flatten()
    torch.testing.assert_close((Exact()(system.transition).weights() * spectrum.log_modulus).sum(), per_block.mean())
    assert (per_block[0] - per_block.mean()).abs() > 1e-6 * per_block.mean().abs(), "one block would have done"


def test_phase_is_used() -> None:
    """Fault: only moduli are looked at, so that decay and rotation are one. Ours keeps and penalises the phase."""
    slow, fast = (seeded(LRU, d_model=8, d_state=6, init=Ring(0.8, 0.9, max_phase=phase)) for phase in (0.1, 3.0))
    spectra = [Exact()(mixer.with_system(inputs())[2]) for mixer in (slow, fast)]
    torch.testing.assert_close(spectra[0].log_modulus, spectra[1].log_modulus)  # what the fault sees
    for mixer, spectrum in zip((slow, fast), spectra, strict=True):
        torch.testing.assert_close(spectrum.phase.flatten(), mixer.log_phase.exp())
        true = torch.polar((-mixer.log_rate.exp()).exp(), mixer.log_phase.exp())
        torch.testing.assert_close(spectrum.eigenvalues.flatten(), true)
    penalty = PhaseDistance(Ring(0.8, 0.9, max_phase=0.1))
    assert penalty(spectra[1]) > penalty(spectra[0]) + 1
    (gradient,) = torch.autograd.grad(penalty(spectra[1]), fast.log_phase)
    assert gradient.abs().min() > 0


def test_initial_spectra_are_measured_without_dropout() -> None:
    """Fault: the spectrum at initialisation is measured in training mode, so that it depends on dropout's draw."""
    torch.manual_seed(0)
    mixers = [SoftmaxAttention(8, 8, 2) for _ in range(2)]
    model = Backbone(mixers, num_classes=3, max_length=LENGTH, channels=8, dropout=0.3).double()
    u = inputs()

    def second_layer() -> Tensor:
        return model.with_systems(u)[1]["layers.1"].transition.log_modulus().detach()

    model.train()
    faulty = second_layer(), second_layer()
    assert (faulty[0] - faulty[1]).abs().max() > 1e-2
    model.eval()
    true = second_layer()
    assert torch.equal(second_layer(), true)
    for block in model.blocks:
        block.dropout = nn.Identity()
    model.train()
    torch.testing.assert_close(second_layer(), true)


class TestEffectiveMemory:
    """The invariant that stands beside the eigenvalues, because no gauge can change it."""

    def test_is_its_definition(self) -> None:
        """Every lag: the sums as written, reader by reader."""
        mixer, u = seeded(Mamba2, d_model=8, d_state=6, heads=2), inputs()
        system = mixer.with_system(u)[2]
        influence = torch.zeros(2, LENGTH, LENGTH, 2, dtype=torch.double)  # reader, lag
        for lag, values in enumerate(system.influence(range(LENGTH))):
            influence[:, lag:, lag] = values.detach()
        age = torch.arange(LENGTH, dtype=torch.double)
        mean = torch.einsum("btlh,l->bth", influence, age) / influence.sum(2)
        true = (mean[:, 1:] / age[1:].view(1, -1, 1)).mean((0, 1))
        torch.testing.assert_close(effective_memory(system, range(LENGTH)), true)
        count = LENGTH - age.view(-1, 1)
        profile = influence.sum(1) / count
        other = (profile.mean(0) * age.view(-1, 1)).sum(0) / profile.mean(0).sum(0)
        torch.testing.assert_close(lag_averaged_memory(system, range(LENGTH)), other)

    def test_even_reading_is_half_the_past(self) -> None:
        """Constant queries and keys: every reader attends to its past alike, exactly ½ with 24 lags at any length."""
        mixer = seeded(SoftmaxAttention, d_model=8, d_state=8, heads=2)
        for length in (2, 24, 25, 700):
            system = mixer.with_system(torch.ones(2, length, 8, dtype=torch.double))[2]
            torch.testing.assert_close(effective_memory(system), torch.full((2,), 0.5, dtype=torch.double))
            assert len(log_spaced_lags(length)) <= 24

    def test_few_lags_are_enough(self) -> None:
        for member in (LRU, Mamba2, LinearAttention, SoftmaxAttention):
            mixer = seeded(member, **({"d_model": 8, "d_state": 8} | ({} if member is LRU else {"heads": 2})))
            system = mixer.with_system(inputs(300))[2]
            every = effective_memory(system, range(300))
            torch.testing.assert_close(effective_memory(system), every, rtol=0.05, atol=0)

    def test_no_gauge_changes_it(self) -> None:
        mixer, u = seeded(LinearAttention, d_model=8, d_state=8, heads=2), inputs()
        system = mixer.with_system(u)[2]
        gauge = torch.randn(2, LENGTH, 2, dtype=torch.double)
        torch.testing.assert_close(effective_memory(system.regauged(gauge)), effective_memory(system))

    def test_padding_is_not_counted(self) -> None:
        """Two rows, one padded: the mean over all real readers."""
        for member in (SoftmaxAttention, Mamba2, LRU):
            mixer = seeded(member, **({"d_model": 8, "d_state": 8} | ({} if member is LRU else {"heads": 2})))
            u, mask = inputs(), torch.arange(LENGTH) < torch.tensor([[LENGTH], [6]])
            lags = range(LENGTH)
            padded = effective_memory(mixer.with_system(u, None, mask)[2], lags)
            whole = effective_memory(mixer.with_system(u[:1])[2], lags)
            short = effective_memory(mixer.with_system(u[1:, :6])[2], range(6))
            torch.testing.assert_close(padded, (whole * (LENGTH - 1) + short * 5) / (LENGTH + 4))

    def test_has_a_gradient(self) -> None:
        mixer = seeded(Mamba2, d_model=8, d_state=6, heads=2)

        def memory(*_: Tensor) -> Tensor:
            return effective_memory(mixer.with_system(inputs(30))[2])

        parameters = (mixer.log_rate, mixer.step_bias, mixer.step_projection.weight)
        assert torch.autograd.gradcheck(memory, parameters, fast_mode=True)

    @pytest.mark.parametrize("lags", [[], [1, 2], [0, 2, 2], [0, 500]])
    def test_lags_are_checked(self, lags: list[int]) -> None:
        system = seeded(Mamba2, d_model=8, d_state=6, heads=2).with_system(inputs())[2]
        with pytest.raises(ValueError, match="lag"):
            effective_memory(system, lags)
