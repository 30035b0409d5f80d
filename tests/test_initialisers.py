"""Initialisation: in closed form, by a fit, and refused where no parameter sets the eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from specreg.estimators import Exact
from specreg.initialisers import FitError, fit, mean_distance
from specreg.models.linear_attention import LinearAttention
from specreg.models.lru import LRU
from specreg.models.mamba2 import Mamba2
from specreg.models.mixer import Mixer, UnreachableTargetError
from specreg.models.norm_attention import NormAttention
from specreg.models.pseudo_lti_mamba2 import PseudoLTIMamba2
from specreg.models.softmax_attention import SoftmaxAttention
from specreg.penalties import TimescaleDistance
from specreg.system import LinearSystem
from specreg.targets import LogUniformTimescale, Ring, Target, TwoCluster
from specreg.terms import Term
from specreg.testing.targets import spectrum_of

TARGETS: list[Target] = [Ring(0.9, 0.99), LogUniformTimescale(1, 1024), TwoCluster(0.25), Ring(0.0, 1.0)]
PHASED: list[Target] = [Ring(0.9, 0.99, max_phase=0.3), LogUniformTimescale(1, 1024, max_phase=math.pi)]
Builder = Callable[[Target | None], Mixer]

BUILDERS: dict[str, Builder] = {
    "lru": lambda init: LRU(8, d_state=64, init=init),
    "mamba2": lambda init: Mamba2(8, d_state=4, heads=16, init=init),
    "pseudo-lti-mamba2": lambda init: PseudoLTIMamba2(8, d_state=4, heads=16, init=init),
}


def inputs(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_distances(mixer: Mixer, target: Target, mask: Tensor | None = None) -> list[float]:
    """The distance to the target at each step and batch element alone: each eigenvalue of the layer once."""
    u = inputs(0, 3, 7, mixer.d_model)
    _, _, system = mixer.with_system(u, None, mask)
    spectrum = Exact()(system).detach()
    distances = []
    for b, t in [(b, t) for b in range(spectrum.log_modulus.shape[0]) for t in range(spectrum.log_modulus.shape[1])]:
        if mask is None or spectrum.log_modulus.shape[1] == 1 or mask[b, t]:
            alone = spectrum_of(spectrum.log_modulus[b, t].flatten(), spectrum.phase[b, t].flatten())
            distances.append(target.distance(alone).item())
    return distances


@pytest.mark.parametrize("target", TARGETS, ids=repr)
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_closed_forms_are_exact(build: Builder, target: Target) -> None:
    """What a real forward pass applied, at every step and for every input, is under 1e-5 from the target."""
    assert max(step_distances(build(target), target)) < 1e-5
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    assert max(step_distances(build(target), target, mask)) < 1e-5


@pytest.mark.parametrize("target", PHASED, ids=repr)
def test_complex_models_meet_phases_too(target: Target) -> None:
    assert max(step_distances(LRU(8, d_state=64, init=target), target)) < 1e-5


def test_a_target_without_phases_leaves_them() -> None:
    mixer = LRU(8, d_state=16)
    before = mixer.log_phase.detach().clone()
    mixer.initialise(Ring(0.9, 0.99))
    assert torch.equal(mixer.log_phase, before)


@pytest.mark.parametrize("name", ["mamba2", "pseudo-lti-mamba2"])
def test_real_models_refuse_phases_at_construction(name: str) -> None:
    with pytest.raises(UnreachableTargetError, match=r"positive real eigenvalues.*leave max_phase out.*lru"):
        BUILDERS[name](PHASED[0])


@pytest.mark.parametrize("mixer", [SoftmaxAttention, LinearAttention, NormAttention])
def test_attention_refuses_every_target(mixer: type[Mixer]) -> None:
    """With the reason and what to do: no parameter sets η_{t−1}/η_t."""
    for target in (*TARGETS, *PHASED):
        with pytest.raises(UnreachableTargetError, match=r"attention cannot be initialised to .*η.*leave init out"):
            mixer.example().initialise(target)


def gates(mixer: Mamba2) -> list[nn.Parameter]:
    assert isinstance(mixer.step_projection.weight, nn.Parameter)
    return [mixer.step_projection.weight, mixer.step_bias, mixer.log_rate]


def on(mixer: Mixer, u: Tensor) -> Callable[[], Mapping[str, LinearSystem]]:
    return lambda: {"layer": mixer.with_system(u)[2]}


@pytest.mark.parametrize("target", [Ring(0.9, 0.99), LogUniformTimescale(1, 1024)], ids=repr)
def test_a_short_fit_of_gates(target: Target) -> None:
    """Published random starts of Mamba-2, 8 heads, reach 0.05 in log-timescale; only the parameters given move."""
    for seed in range(3):
        torch.manual_seed(seed)
        mixer, u = Mamba2(16, d_state=4, heads=8), inputs(seed, 4, 64, 16)
        kept = {name: value.clone() for name, value in mixer.state_dict().items()}
        reached = fit(on(mixer, u), gates(mixer), target)
        assert reached < 0.05
        assert mean_distance(on(mixer, u)(), target).item() == pytest.approx(reached, rel=1e-5)
        moved = {name for name, value in mixer.state_dict().items() if not torch.equal(value, kept[name])}
        assert moved == {"step_projection.weight", "step_bias", "log_rate"}
        assert all(parameter.grad is None for parameter in mixer.parameters())


def test_fresh_batches_fit_the_law_of_the_inputs() -> None:
    """With another batch at every step the fit holds on inputs that it has not seen."""
    torch.manual_seed(0)
    mixer, target, draw = Mamba2(16, d_state=4, heads=8), LogUniformTimescale(1, 1024), torch.Generator().manual_seed(0)
    fit(lambda: on(mixer, torch.randn(4, 64, 16, generator=draw))(), gates(mixer), target)
    assert mean_distance(on(mixer, inputs(9, 16, 64, 16))(), target).item() < 0.05


def test_several_layers_are_fitted_together() -> None:
    """The distance is the mean over layers."""
    torch.manual_seed(0)
    mixers, u = [Mamba2(16, d_state=4, heads=8) for _ in range(2)], inputs(0, 4, 64, 16)
    parameters = [parameter for mixer in mixers for parameter in gates(mixer)]
    target = Ring(0.9, 0.99)
    reached = fit(lambda: {str(i): mixer.with_system(u)[2] for i, mixer in enumerate(mixers)}, parameters, target)
    alone = [mean_distance(on(mixer, u)(), target).item() for mixer in mixers]
    assert reached == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert reached < 0.05


def test_a_miss_says_how_near_and_what_to_do() -> None:
    """Biases alone give 8 atoms, 0.22 from a law over 6.9 log steps; the best parameters and held gradients stay."""
    torch.manual_seed(0)
    mixer, u, target = Mamba2(16, d_state=4, heads=8), inputs(0, 4, 64, 16), LogUniformTimescale(1, 1024)
    nn.init.zeros_(mixer.step_projection.weight)
    held = torch.ones_like(mixer.step_bias)
    mixer.step_bias.grad = held
    with pytest.raises(FitError, match=r"reached a distance of 0\.2.* in 200 steps, not 0\.05: give it more steps"):
        fit(on(mixer, u), [mixer.step_bias], target)
    assert 0.2 < mean_distance(on(mixer, u)(), target).item() < 0.3
    assert mixer.step_bias.grad is held


def test_the_best_parameters_stay_where_a_fit_diverges() -> None:
    """A learning rate of 100 makes everything worse: the start is put back."""
    mixer, u, target = Mamba2(16, d_state=4, heads=8, init=Ring(0.9, 0.99)), inputs(0, 4, 64, 16), Ring(0.9, 0.99)
    before = mean_distance(on(mixer, u)(), target).item()
    reached = fit(on(mixer, u), gates(mixer), target, steps=3, learning_rate=100.0, tolerance=1.0)
    assert reached <= before
    assert mean_distance(on(mixer, u)(), target).item() == pytest.approx(reached, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": []}, "needs parameters"),
        ({"steps": 0}, "at least one step, got 0"),
        ({"target": PHASED[0]}, "leave max_phase out"),
        ({"parameters": [nn.Parameter(torch.zeros(2), requires_grad=False)]}, "leave frozen ones out"),
        ({"parameters": [nn.Parameter(torch.zeros(2))]}, "none of the parameters reaches the spectrum"),
        ({"systems": dict}, "at least one system"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: dict[str, object], message: str) -> None:
    mixer = Mamba2.example()
    setting = {"systems": on(mixer, inputs(0, 1, 4, 8)), "parameters": gates(mixer), "target": TARGETS[0], **change}
    with pytest.raises(ValueError, match=message):
        fit(**setting)  # type: ignore[arg-type]


def test_a_batch_without_counted_steps_is_refused() -> None:
    mixer, mask = Mamba2.example(), torch.zeros(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"no step of 'layer' counts"):
        fit(lambda: {"layer": mixer.with_system(inputs(0, 1, 4, 8), None, mask)[2]}, gates(mixer), TARGETS[0])


@pytest.mark.parametrize(
    "build", [lambda: LRU(16, d_state=64, init=TARGETS[0]), lambda: Mamba2(16, d_state=4, heads=8, init=TARGETS[0])]
)
def test_training_with_a_term_reaches_another_spectrum(build: Callable[[], Mixer]) -> None:
    """From a ring to log-uniform timescales, spectral rate 0.05 beside 3e-3: a tenth within 200 steps."""
    torch.manual_seed(0)
    mixer = build()
    term = Term("memory", Exact(), TimescaleDistance(LogUniformTimescale(1, 1024)))
    spectral = list(mixer.spectral_parameters())
    rest = [parameter for parameter in mixer.parameters() if all(parameter is not other for other in spectral)]
    optimiser = torch.optim.Adam([{"params": spectral, "lr": 0.05}, {"params": rest, "lr": 3e-3}])
    distances = []
    for step in range(100):
        loss = term({"layer": mixer.with_system(inputs(step, 4, 64, 16))[2]}).loss
        distances.append(loss.item())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert distances[-1] < distances[0] / 10
