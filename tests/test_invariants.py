"""What no gauge can change: influence of every structure by its fast path, memory, half-life, profile, windows."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import specreg.models
from specreg.invariants import (
    effective_memory,
    half_life,
    influence_profile,
    lag_averaged_memory,
    log_spaced_lags,
    share_older,
    window_eigenvalues,
)
from specreg.models.mixer import Mixer
from specreg.operators import Dense, Diagonal, ScaledIdentity, StructuredOperator, decayed, lagged
from specreg.operators.chain import Chain
from specreg.operators.diagonal_plus import DiagonalPlusLowRank, DiagonalPlusRankOne
from specreg.operators.householder import HouseholderProduct, RankOneUpdate
from specreg.system import System
from specreg.testing.operators import assert_close, assert_same_values, naive_window

BATCH, STEPS, HEADS, SIZE = 2, 23, 2, 4


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


LEAD = (BATCH, STEPS, HEADS)
DECAY = -0.1 * normal(*LEAD, seed=1).abs()
DECAYS = -0.3 * normal(*LEAD, SIZE, seed=2).abs()
BETA = normal(*LEAD, seed=3).sigmoid()
CLOSED: dict[str, Callable[[], StructuredOperator]] = {
    "scalar": lambda: ScaledIdentity(DECAY, SIZE),
    "signed scalar": lambda: ScaledIdentity(DECAY, SIZE, sign=normal(*LEAD, seed=4).sign()),
    "constant scalar": lambda: ScaledIdentity(DECAY[:1, :1], SIZE),
    "diagonal": lambda: Diagonal(DECAYS),
    "signed diagonal": lambda: Diagonal(DECAYS, sign=normal(*LEAD, SIZE, seed=4).sign()),
    "complex diagonal": lambda: Diagonal(DECAYS, angle=normal(*LEAD, SIZE, seed=5)),
    "constant diagonal": lambda: Diagonal(DECAYS[:1, :1], angle=normal(1, 1, HEADS, SIZE, seed=5)),
    "growing diagonal": lambda: Diagonal(-DECAYS),
}
DELTA: dict[str, Callable[[], StructuredOperator]] = {
    "delta": lambda: RankOneUpdate(DECAY, BETA, unit(*LEAD, SIZE)),
    "signed delta": lambda: RankOneUpdate(DECAY, 2 * BETA, unit(*LEAD, SIZE), sign=normal(*LEAD, seed=4).sign()),
    "growing delta": lambda: RankOneUpdate(DECAY, BETA, 2 * normal(*LEAD, SIZE)),
    "delta product": lambda: HouseholderProduct(DECAY, normal(*LEAD, 3, seed=6).sigmoid(), unit(*LEAD, 3, SIZE)),
    "constant β": lambda: RankOneUpdate(DECAY, BETA[:, :1], unit(*LEAD, SIZE)),
}
WALKED: dict[str, Callable[[], StructuredOperator]] = {
    "dense": lambda: Dense(0.5 * normal(*LEAD, SIZE, SIZE)),
    "complex dense": lambda: Dense(0.4 * normal(*LEAD, SIZE, SIZE, dtype=torch.complex128)),
    "rwkv": lambda: DiagonalPlusRankOne(
        DECAYS, -unit(*LEAD, SIZE), unit(*LEAD, SIZE) * normal(*LEAD, SIZE, seed=7).sigmoid(), DECAY
    ),
    "chain": lambda: Chain((Diagonal(DECAYS), RankOneUpdate(DECAY, BETA, unit(*LEAD, SIZE)))),
    "constant low rank": lambda: DiagonalPlusLowRank.legs(SIZE, torch.full((1, 1, HEADS), -1.0).double()),
}
STRUCTURES = CLOSED | DELTA | WALKED


def system_of(operator: StructuredOperator, reads: int = 1, rank: int = 1, time: int = STEPS) -> System:
    size = operator.shape[-1]
    dtype = torch.complex128 if operator.dense().is_complex() else torch.float64
    return System(
        operator,
        normal(BATCH, time, HEADS, size, rank, seed=8, dtype=dtype),
        normal(1, time, 1, reads, size, seed=9, dtype=dtype),
        normal(BATCH, STEPS, HEADS, rank, 2, seed=10),
        log_gain=normal(BATCH, STEPS, HEADS, seed=11),
        log_readout_gain=normal(BATCH, STEPS, HEADS, seed=12),
    )


def influences(system: System) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(B, reader, source, H) by multiplying the matrices one after the other."""
    length, heads = system.length, system.values.shape[2]
    matrices = system.operator.dense().detach().expand(BATCH, length, heads, -1, -1).numpy()
    shape = (BATCH, length, heads, -1, -1)
    inputs, readouts = (x.detach().expand(shape).numpy() for x in (system.inputs, system.readouts))
    zero = torch.zeros(BATCH, length, heads)
    written, read = (zero if g is None else g for g in (system.log_gain, system.log_readout_gain))
    found = np.zeros((BATCH, length, length, heads))
    for source in range(length):
        state = inputs[:, source]
        for reader in range(source, length):
            state = matrices[:, reader] @ state if reader > source else state
            kernel = (readouts[:, reader] @ state).real
            size = np.sqrt((kernel**2).sum((-1, -2)))
            found[:, reader, source] = size * np.exp((written[:, source] + read[:, reader]).numpy())
    return found


def assert_influence(system: System) -> None:
    """Each value to 1e-10 relative: small ones too."""
    expected = influences(system)
    lags = range(system.length)
    for lag, told in zip(lags, system.influence(lags), strict=True):
        exact = np.stack([expected[:, t, t - lag] for t in range(lag, system.length)], 1)
        np.testing.assert_allclose(told.expand(exact.shape).detach().numpy(), exact, rtol=1e-10, atol=1e-14)


class TestInfluence:
    @pytest.mark.parametrize("name", STRUCTURES)
    @pytest.mark.parametrize(("reads", "rank"), [(1, 1), (3, 2)])
    @pytest.mark.parametrize("piece", [1, 4, 64])
    def test_is_the_product_of_the_matrices(
        self, name: str, reads: int, rank: int, piece: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In chunks and blocks of every size, that do and do not divide the sequence."""
        monkeypatch.setattr(lagged, "CHUNK", piece)
        monkeypatch.setattr(decayed, "BLOCK", piece * BATCH * HEADS * SIZE)
        assert_influence(system_of(STRUCTURES[name](), reads, rank))

    @pytest.mark.parametrize("name", ["scalar", "complex diagonal", "delta", "dense", "constant diagonal"])
    def test_constant_inputs_and_readouts(self, name: str) -> None:
        assert_influence(system_of(STRUCTURES[name](), time=1))

    @pytest.mark.parametrize("name", ["scalar", "diagonal", "delta", "delta product", "dense", "rwkv"])
    def test_a_step_that_erases_is_not_crossed(self, name: str) -> None:
        """exp(−∞) at one step: nothing older is read after it, and gradients are finite."""
        erased = torch.zeros(LEAD, dtype=torch.float64)
        erased[0, 9] = -torch.inf
        system = system_of(STRUCTURES[name]().scaled(erased))
        assert_influence(system)
        key = system.inputs.requires_grad_()
        (gradient,) = torch.autograd.grad(torch.stack([i.sum() for i in system.influence([0, 3, 20])]).sum(), key)
        assert bool(gradient.isfinite().all())

    @pytest.mark.parametrize("name", [*CLOSED, *DELTA, "dense", "rwkv"])
    def test_gradient(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """gradcheck with respect to the structure's fields, inputs and read-outs, in several chunks and blocks."""
        monkeypatch.setattr(lagged, "CHUNK", 3)
        monkeypatch.setattr(decayed, "BLOCK", 2 * SIZE)
        system = system_of(STRUCTURES[name](), 2, 2)
        operator = system.operator.map(lambda field: field[:1, :8, :1])
        fields = ("log_factor", "log_magnitude", "angle", "beta", "key", "keys", "matrix", "log_decay")
        names = [field for field in fields if getattr(operator, field, None) is not None]
        held = [getattr(operator, n).clone().requires_grad_() for n in names]
        parts = [part[:1, :8, :1].clone().requires_grad_() for part in (system.inputs, system.readouts)]

        def told(*values: Tensor) -> tuple[Tensor, ...]:
            moved = replace(operator, **dict(zip(names, values, strict=False)))
            plain = System(moved, values[-2], values[-1], system.values[:1, :8, :1])
            return tuple(plain.influence([0, 1, 2, 5, 7]))

        assert gradcheck(told, [*held, *parts], fast_mode=True)
        if name in ("diagonal", "complex diagonal", "delta"):
            assert gradgradcheck(told, [*held, *parts], fast_mode=True)

    @pytest.mark.parametrize("name", ["scalar", "complex diagonal", "delta"])
    def test_compiles(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """`fullgraph=True`, values and gradient."""
        monkeypatch.setattr(lagged, "CHUNK", 5)
        operator = STRUCTURES[name]()
        field = operator.log_factor if hasattr(operator, "log_factor") else operator.log_magnitude  # type: ignore[attr-defined]
        base = system_of(operator)

        def told(values: Tensor) -> list[Tensor]:
            key = "log_factor" if hasattr(operator, "log_factor") else "log_magnitude"
            return replace(base, operator=replace(operator, **{key: values})).influence([0, 1, 7])

        torch.compiler.reset()
        compiled: Any = torch.compile(told, fullgraph=True, backend="eager", dynamic=False)
        results = []
        for function in (compiled, told):
            values = field.clone().requires_grad_()
            parts = function(values)
            results.append([*parts, *torch.autograd.grad(torch.stack([p.sum() for p in parts]).sum(), values)])
        torch.compiler.reset()
        for one, other in zip(*results, strict=True):
            assert_close(one, other)

    @pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, at its first jvp
    @pytest.mark.parametrize("name", ["scalar", "complex diagonal", "delta"])
    def test_under_transforms(self, name: str) -> None:
        """`torch.func.grad` and `jvp` of a sum, against reverse mode."""
        base = system_of(STRUCTURES[name]())

        def total(inputs: Tensor) -> Tensor:
            return torch.stack([part.sum() for part in replace(base, inputs=inputs).influence([0, 2, 11])]).sum()

        leaf = base.inputs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total(leaf), leaf)
        assert_close(torch.func.grad(total)(base.inputs), gradient)
        tangent = torch.ones_like(base.inputs)
        change = torch.func.jvp(total, (base.inputs,), (tangent,))[1]
        assert_close(change, (gradient.conj() * tangent).real.sum())

    def test_real_inputs_of_a_complex_diagonal(self) -> None:
        """Those of a complex system without an imaginary part, values and gradients; several columns and one."""
        operator = Diagonal(-normal(2, 9, 2, 3).abs(), angle=normal(2, 9, 2, 3, seed=1))
        for columns in (1, 2):
            parts = [normal(2, 9, 2, 3, columns, seed=2), normal(2, 9, 2, columns, 3, seed=3)]
            found = []
            for dtype in (torch.float64, torch.complex128):
                leaves = [part.to(dtype).requires_grad_() for part in parts]
                influence = System(operator, *leaves, normal(2, 9, 2, columns, 1)).influence([0, 1, 4])
                gradients = torch.autograd.grad(torch.stack([part.sum() for part in influence]).sum(), leaves)
                found.append([*influence, *(g.real if g.is_complex() else g for g in gradients)])
            for one, other in zip(*found, strict=True):
                assert_close(one, other)

    @pytest.mark.parametrize("log_modulus", [-60.0, 60.0])
    def test_memory_of_what_no_number_holds(self, log_modulus: float) -> None:
        """e^±60 a step over 40 steps in float32: of the youngest or of the oldest all is read, gradients are finite."""
        logs = torch.full((1, 40, 1), log_modulus)
        one = torch.ones(1, 1, 1, 1, 1)
        for make in (lambda x: ScaledIdentity(x, 1), lambda x: Dense(x.exp()[..., None, None])):
            for figure in (effective_memory, half_life, lag_averaged_memory):
                leaf = logs.clone().requires_grad_()
                system = System(make(leaf), one, one, torch.zeros(1, 40, 1, 1, 1))
                found = figure(system)
                (gradient,) = torch.autograd.grad(found.sum(), leaf)
                assert bool(found.isfinite().all()) and bool(gradient.isfinite().all())
            share = effective_memory(system, list(range(40))).item()
            assert share == pytest.approx(0.0 if log_modulus < 0 else 1.0, abs=1e-6)

    def test_real_systems_with_complex_transitions_unroll(self) -> None:
        operator = Diagonal(-normal(2, 9, 2, 3).abs(), angle=normal(2, 9, 2, 3, seed=1))
        parts = normal(2, 9, 2, 3, 2, seed=2), normal(2, 9, 2, 2, 3, seed=3)
        values = normal(2, 9, 2, 2, 1, seed=4)
        whole = System(operator, *(part.to(torch.complex128) for part in parts), values).unroll()
        assert_close(System(operator, *parts, values).unroll(), whole)

    def test_nothing_large_is_kept_for_the_gradient(self) -> None:
        """T = 4096, 64 states, 24 lags: autograd keeps the system itself and its cumulative logs, not each lag."""
        length = 4096
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        logs = (-0.01 * normal(1, length, 1, 64).abs()).requires_grad_()
        vectors = normal(2, 1, length, 1, 64, 1, seed=1)
        system = System(Diagonal(logs), vectors[0], vectors[1].mT, normal(1, length, 1, 1, 1))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            effective_memory(system)
        assert sum(kept.values()) < 16 * 2**20

    def test_lags_may_come_in_any_order_and_twice(self) -> None:
        for name in ("delta", "diagonal"):
            system = system_of(STRUCTURES[name]())
            there, back = system.influence([20, 3, 3]), system.influence([3, 20])
            for one, other in zip(there, (back[1], back[0], back[0]), strict=True):
                assert_close(one, other)

    def test_single_precision(self) -> None:
        """float32 to 1e-4 of the largest, over several chunks, decays and growth beyond its range included."""
        keys = unit(1, 300, 1, 8)
        for log_alpha in (-1.0, 1.0):
            operator = RankOneUpdate(torch.full((1, 300, 1), log_alpha).double(), normal(1, 300, 1).sigmoid(), keys)
            gain = -log_alpha * torch.arange(300.0).double().view(1, 300, 1)
            system = System(
                operator, keys.unsqueeze(-1), unit(1, 300, 1, 1, 8, seed=3), normal(1, 300, 1, 1, 1), -gain * 0, gain
            )
            exact = replace(system, log_gain=-gain).influence([0, 5, 100, 299])
            moved = operator.map(lambda field: field.float())
            parts = (system.inputs.float(), system.readouts.float(), system.values.float())
            single = System(moved, *parts, -gain.float(), gain.float())
            for ours, theirs in zip(single.influence([0, 5, 100, 299]), exact, strict=True):
                assert ours.dtype == torch.float32
                torch.testing.assert_close(ours.double(), theirs, rtol=2e-3, atol=1e-5)


def mixers() -> Iterator[type[Mixer]]:
    for module in pkgutil.iter_modules(specreg.models.__path__, "specreg.models."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, Mixer) and not inspect.isabstract(member) and member.__module__ == module.name:
                yield member


def told_by(system: Any) -> list[Tensor]:
    return [
        *system.influence([0, 1, 5, STEPS - 1]),
        effective_memory(system),
        lag_averaged_memory(system),
        half_life(system),
        share_older(system, 3.5),
        influence_profile(system).influence,
    ]


class TestGauge:
    """Multiplying the state by any positive gauge: nothing here moves by more than 1e-10."""

    @pytest.mark.parametrize("mixer", list(mixers()), ids=lambda mixer: mixer.__name__)
    def test_of_every_mixer(self, mixer: type[Mixer]) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = mixer.example().double()
        system = model.with_system(normal(BATCH, STEPS, model.d_model))[2]
        heads = system.influence([0])[0].shape[2]
        gauge = 3 * normal(BATCH, STEPS, heads, seed=5)
        for ours, theirs in zip(told_by(system.regauged(gauge)), told_by(system), strict=True):
            torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("scale", [3.0, 300.0])
    @pytest.mark.parametrize("name", STRUCTURES)
    def test_of_every_structure(self, name: str, scale: float) -> None:
        """A gauge of e^±300 and more too, which no number holds over several steps."""
        if scale > 100 and "dense" in name:
            pytest.skip("a dense matrix holds entries, not logs: its gauge must be in the range of exp")
        system = system_of(STRUCTURES[name]())
        moved = system.regauged(scale * normal(BATCH, STEPS, HEADS, seed=5))
        for ours, theirs in zip(told_by(moved), told_by(system), strict=True):
            torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=1e-10, atol=1e-10)


class TestHalfLife:
    def test_is_its_definition(self) -> None:
        """Every lag: the mean over readers of the cumulative shares, reader by reader, and where it crosses ½."""
        system = system_of(STRUCTURES["delta"]())
        influence = influences(system)
        share = np.zeros((HEADS, STEPS))  # by lag
        for reader in range(1, STEPS):
            by_lag = influence[:, reader, reader::-1] if reader < STEPS - 1 else influence[:, reader, ::-1]
            share[:, : reader + 1] += (by_lag / by_lag.sum(1, keepdims=True)).sum(0).T
        cumulative = share.cumsum(-1) / (BATCH * (STEPS - 1))
        found, older = half_life(system, range(STEPS)), share_older(system, 2.5, range(STEPS))
        for head in range(HEADS):
            crossed = int((cumulative[head] < 0.5).sum())
            before = cumulative[head, crossed - 1] if crossed else 0.0
            part = (0.5 - before) / (cumulative[head, crossed] - before)
            assert found[head].item() == pytest.approx(crossed - 0.5 + part, rel=1e-12)
            assert older[head].item() == pytest.approx(1 - cumulative[head, 2], rel=1e-12)

    def test_of_a_geometric_decay(self) -> None:
        """I = λ^τ with equal inputs and read-outs: ½ is reached near log ½ / log λ, with few lags as with all."""
        operator = ScaledIdentity(torch.full((1, 1, 1), math.log(0.98)).double(), 1)
        ones = torch.ones(1, 1, 1, 1, 1).double()
        system = System(operator, ones, ones, torch.ones(1, 4000, 1, 1, 1).double())
        for lags in (None, range(4000)):
            assert half_life(system, lags).item() == pytest.approx(math.log(0.5) / math.log(0.98), rel=0.1)

    def test_edges(self) -> None:
        """All in lag 0 gives 0, nothing read gives 0 with a finite gradient, even reading half the mean past."""
        ones = torch.ones(1, 40, 1, 1, 1).double()
        erased = System(ScaledIdentity(torch.full((1, 40, 1), -torch.inf).double(), 1), ones, ones, ones)
        assert half_life(erased, range(40)).item() == pytest.approx(0.0, abs=1e-12)
        read = torch.zeros_like(ones).requires_grad_()
        silent = half_life(System(ScaledIdentity(torch.zeros(1, 40, 1).double(), 1), ones, read, ones))
        assert silent.item() == 0
        if silent.requires_grad:
            assert bool(torch.autograd.grad(silent.sum(), read)[0].isfinite().all())
        with pytest.raises(ValueError, match="age"):
            share_older(erased, -1.0)

    def test_shares_run_from_all_to_nothing(self) -> None:
        system = system_of(STRUCTURES["diagonal"]())
        shares = torch.stack([share_older(system, age) for age in (0.0, 0.5, 1.0, 3.3, 10.0, STEPS - 0.5, 1e6)])
        assert bool((shares.diff(dim=0) <= 1e-12).all())
        assert_close(shares[-2:], torch.zeros(2, HEADS).double())
        at_half = torch.stack([share_older(system, life.item())[head] for head, life in enumerate(half_life(system))])
        assert_close(at_half, torch.full((HEADS,), 0.5).double())

    @pytest.mark.parametrize("name", ["diagonal", "delta"])
    def test_has_a_gradient(self, name: str) -> None:
        operator = STRUCTURES[name]()
        field = "log_magnitude" if name == "diagonal" else "beta"
        base = system_of(operator)

        def lives(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            moved = replace(base, operator=replace(operator, **{field: values}))
            return half_life(moved), share_older(moved, 2.2), influence_profile(moved, [1, 4]).influence

        assert gradcheck(lives, [getattr(operator, field).clone().requires_grad_()], fast_mode=True)

    def test_padding_is_not_counted(self) -> None:
        """Masked readers leave no trace."""
        system = system_of(STRUCTURES["delta"]())
        mask = (torch.arange(STEPS) < 9).expand(BATCH, STEPS)
        short = replace(
            system,
            operator=system.operator.map(lambda field: field[:, :9]),
            **{
                name: getattr(system, name)[:, :9]
                for name in ("inputs", "readouts", "values", "log_gain", "log_readout_gain")
            },
        )
        masked = replace(system, mask=mask)
        assert_close(half_life(masked, range(STEPS)), half_life(short, range(9)))
        assert_close(influence_profile(masked, range(9)).influence, influence_profile(short).influence)


class TestProfile:
    def test_is_the_mean_over_readers(self) -> None:
        system = system_of(STRUCTURES["rwkv"]())
        profile = influence_profile(system)
        assert profile.lags.tolist() == log_spaced_lags(STEPS)
        expected = influences(system)
        for lag, mean in zip(profile.lags.tolist(), profile.influence, strict=True):
            readers = np.stack([expected[:, t, t - lag] for t in range(lag, STEPS)])
            np.testing.assert_allclose(mean.numpy(), readers.mean((0, 1)), rtol=1e-10)

    @pytest.mark.parametrize("lags", [[], [2, 2], [3, 1], [-1, 2], [0, 500]])
    def test_lags_are_checked(self, lags: list[int]) -> None:
        with pytest.raises(ValueError, match="lag"):
            influence_profile(system_of(STRUCTURES["scalar"]()), lags)


class TestWindows:
    @pytest.mark.parametrize("name", STRUCTURES)
    @pytest.mark.parametrize(("width", "stride"), [(1, 1), (3, 1), (6, 4), (STEPS, 1)])
    def test_are_the_products_eigenvalues(self, name: str, width: int, stride: int) -> None:
        """|λ|^{1/w} against LAPACK on the product, as multisets; phases as e^{i w phase}."""
        system = system_of(STRUCTURES[name]())
        spectrum = window_eigenvalues(system, width, stride)
        dense = system.operator.dense()
        constant = dense.shape[1] == 1
        product = torch.linalg.matrix_power(dense, width) if constant else naive_window(dense, width, stride)
        values = torch.polar((width * spectrum.log_modulus).exp(), (width * spectrum.phase).contiguous())
        assert_same_values(values.repeat_interleave(spectrum.multiplicity, -1), torch.linalg.eigvals(product), 1e-8)

    def test_exact_for_decays(self) -> None:
        """Means of log-moduli and of phases, also over more than a turn."""
        operator = Diagonal(DECAYS, angle=2.5 + 0 * DECAYS)
        spectrum = window_eigenvalues(system_of(operator), 5)
        assert_close(spectrum.log_modulus, DECAYS.unfold(1, 5, 1).mean(-1))
        assert_close(spectrum.phase, torch.full_like(spectrum.phase, 2.5))

    def test_a_bounded_gauge_changes_them_by_its_size_over_the_width(self) -> None:
        system = system_of(STRUCTURES["delta"]())
        gauge = normal(BATCH, STEPS, HEADS, seed=5)
        for width in (1, 4, 20):
            change = (
                window_eigenvalues(system.regauged(gauge), width).log_modulus
                - window_eigenvalues(system, width).log_modulus
            )
            assert float(change[:, 1:].abs().max()) <= 2 * float(gauge.abs().max()) / width + 1e-9

    def test_a_window_counts_if_its_steps_do(self) -> None:
        mask = torch.arange(STEPS).expand(BATCH, STEPS) % 7 > 0
        spectrum = window_eigenvalues(replace(system_of(STRUCTURES["delta"]()), mask=mask), 3, 2)
        assert spectrum.mask is not None
        expected = [all(t % 7 for t in range(start, start + 3)) for start in range(0, STEPS - 2, 2)]
        assert spectrum.mask[0].tolist() == expected
        assert spectrum.weights().sum().item() == pytest.approx(1.0)

    @pytest.mark.parametrize(("width", "stride"), [(0, 1), (STEPS + 1, 1), (2, 0)])
    def test_what_does_not_fit_is_refused(self, width: int, stride: int) -> None:
        system = system_of(STRUCTURES["delta"]())
        with pytest.raises(ValueError, match="window"):
            window_eigenvalues(system, width, stride)

    def test_have_a_gradient(self) -> None:
        operator = HouseholderProduct(DECAY[:1, :6], BETA[:1, :6].unsqueeze(-1), unit(1, 6, HEADS, 1, SIZE))
        base = replace(system_of(STRUCTURES["delta"]()), operator=operator)

        def means(keys: Tensor) -> Tensor:
            spectrum = window_eigenvalues(replace(base, operator=replace(operator, keys=keys)), 2)
            return (spectrum.multiplicity * spectrum.log_modulus**2).sum(-1)

        assert gradcheck(means, [operator.keys.clone().requires_grad_()], fast_mode=True)
