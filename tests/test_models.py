"""Every mixer in the package conforms, and gives what its formula says, output and gradient.

Members are found by walking the package: a new model file is tested without a line here.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import specreg.models
from specreg.estimators import Exact
from specreg.models.backbone import Backbone
from specreg.models.linear_attention import LinearAttention, feature_map
from specreg.models.lru import LRU
from specreg.models.mamba2 import Mamba2
from specreg.models.mixer import Mixer, UnreachableTargetError, log_softplus
from specreg.models.norm_attention import LOG_NORMALISERS, Normaliser, NormAttention
from specreg.models.pseudo_lti_mamba2 import PseudoLTIMamba2
from specreg.models.scans import decayed_attention, diagonal_scan, two_pass_scan
from specreg.models.softmax_attention import FlashAttention, SoftmaxAttention, attend
from specreg.penalties import Band
from specreg.targets import LogUniformTimescale, Ring
from specreg.terms import Term
from specreg.testing.mixers import MixerConformance

SMALL = {"d_model": 8, "d_state": 8, "heads": 2}
LENGTHS = (1, 2, 31, 32, 33, 63, 64, 65, 130, 1000)

# η = e^z, softplus z and σ(z) have no bound from below: 1/η at inputs of 10⁴ is e^3000 and truly out of range
UNBOUNDED = {"exp", "softplus", "sigmoid"}


def mixers() -> Iterator[type[Mixer]]:
    """Every concrete mixer defined in a module of the package."""
    for module in pkgutil.iter_modules(specreg.models.__path__, "specreg.models."):
        for _, member in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(member, Mixer) and not inspect.isabstract(member) and member.__module__ == module.name:
                yield member


def variants(mixer: type[Mixer]) -> Iterator[dict[str, Any]]:
    """Settings of a small mixer: each named choice, once bare and once with gate and convolution."""
    parameters = inspect.signature(mixer).parameters
    hints = get_type_hints(mixer.__init__)
    small = {name: value for name, value in SMALL.items() if name in parameters}
    named = {name: get_args(hints[name]) for name in parameters if get_origin(hints[name]) is Literal}
    extras: list[dict[str, Any]] = [{}, {"gate": True, "convolution_width": 4}]
    for extra, choice in itertools.product(extras, itertools.product(*named.values())):
        yield small | dict(zip(named, choice, strict=True)) | {k: v for k, v in extra.items() if k in parameters}


def conformance(mixer: type[Mixer], settings: dict[str, Any]) -> type[MixerConformance]:
    """The conformance tests of one variant, as a class that pytest collects."""
    words = [str(value) for name, value in settings.items() if name not in SMALL and isinstance(value, str)]
    name = "_".join(["Test" + mixer.__name__, *words, "gated" if settings.get("gate") else "bare"])
    body: dict[str, Any] = {"make": lambda self: mixer(**settings), "__module__": __name__}
    if settings.get("normaliser") in UNBOUNDED:
        body["scales"] = (0.0, 1e-4, 10.0)
    return type(name, (MixerConformance,), body)


for found in mixers():
    for chosen in variants(found):
        member = conformance(found, chosen)
        globals()[member.__name__] = member
del found, chosen, member


def test_members_are_found() -> None:
    expected = {LRU, Mamba2, PseudoLTIMamba2, LinearAttention, NormAttention, SoftmaxAttention}
    assert expected <= set(mixers())
    assert {settings["normaliser"] for settings in variants(NormAttention)} == set(LOG_NORMALISERS)


@pytest.mark.parametrize("mixer", list(mixers()), ids=lambda mixer: mixer.__name__)
def test_example(mixer: type[Mixer]) -> None:
    """The example is small, has a state, and counts its operations."""
    model = mixer.example()
    y, _ = model(torch.randn(2, 5, model.d_model))
    assert y.shape == (2, 5, model.d_model)
    assert 0 < model.core_macs(5) < model.core_macs(10)


@pytest.mark.parametrize("mixer", list(mixers()), ids=lambda mixer: mixer.__name__)
def test_systems_are_compared_by_identity(mixer: type[Mixer]) -> None:
    """They hold tensors, whose == is not a truth value; so do a term's evaluations."""
    model = mixer.example()
    systems = [model.with_system(torch.ones(2, 5, model.d_model))[2] for _ in range(2)]
    evaluations = [Term("band", Exact(), Band(0.5, 0.9))({"layer": system}) for system in systems]
    for one, other in (systems, evaluations):
        assert one == one and one != other and len({one, other}) == 2


@pytest.mark.parametrize("mixer", list(mixers()), ids=lambda mixer: mixer.__name__)
def test_targets_are_met_or_refused(mixer: type[Mixer]) -> None:
    """After `initialise` the measured spectrum is the target's to 1e-5; a mixer that cannot says so in words."""
    model, target = mixer.example(), LogUniformTimescale(2, 500)
    try:
        model.initialise(target)
    except UnreachableTargetError as error:
        assert "cannot be initialised" in str(error)
        return
    _, _, system = model.with_system(torch.randn(2, 7, model.d_model))
    measured = Exact()(system).log_modulus.flatten(0, 1).mean(0).flatten().double().sort().values
    torch.testing.assert_close(measured, target.quantiles(len(measured))[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("mixer", [Mamba2, PseudoLTIMamba2])
def test_real_mixers_refuse_phases(mixer: type[Mixer]) -> None:
    with pytest.raises(UnreachableTargetError, match="positive real"):
        mixer.example().initialise(Ring(0.5, 0.9, max_phase=1.0))


def test_sizes_that_do_not_fit_are_refused() -> None:
    for build in (
        lambda: SoftmaxAttention(8, 8, heads=3),
        lambda: Mamba2(8, heads=3),
        lambda: LRU(8, d_state=0),
        lambda: LRU(0),
        lambda: LinearAttention(8, 8, 2, convolution_width=-1),
    ):
        with pytest.raises(ValueError, match="got"):
            build()
    with pytest.raises(ValueError, match="must be one of exp, softplus"):
        NormAttention(8, normaliser="softmax")  # type: ignore[arg-type]


@pytest.mark.parametrize("member", [SoftmaxAttention, LinearAttention, NormAttention])
def test_first_decay_of_attention_does_not_exist(member: type[Mixer]) -> None:
    """λ_1 = η_0/η_1 counts only where a state has an η_0; padding never counts."""
    mixer, u = member(8, 8, 2), torch.randn(2, 6, 8)
    _, state, fresh = mixer.with_system(u)
    later, mask = mixer.with_system(u, state)[2], torch.arange(6) < torch.tensor([[6], [3]])
    assert fresh.mask is not None
    assert fresh.mask.tolist() == [[False] + 5 * [True]]
    assert later.mask is None
    padded = mixer.with_system(u, None, mask)[2].mask
    assert padded is not None
    assert torch.equal(padded, mask & fresh.mask)


def test_feature_map_keeps_its_precision() -> None:
    """1 + elu(x) to full relative precision in float32 where it is small, and differentiable at 0."""
    x = torch.tensor([-80.0, -30.0, -5.0, 0.0, 2.0], dtype=torch.double).requires_grad_()
    torch.testing.assert_close(feature_map(x.float()).double(), torch.where(x > 0, 1 + x, x.exp()), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(feature_map(x).sum(), x)
    torch.testing.assert_close(gradient, torch.where(x > 0, 1.0, x.exp()).detach())


def test_log_softplus_is_finite_everywhere() -> None:
    """z where e^z is small, log z where z is large; gradients too."""
    z = torch.tensor([-1e4, -200.0, -15.1, -14.9, 0.0, 20.0, 1e4]).requires_grad_()
    value = log_softplus(z)
    exact = torch.log1p(z.detach().double().exp()).log()
    exact = torch.where(z < -30, z.double(), torch.where(z > 30, z.double().log(), exact)).detach()
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    slope = torch.sigmoid(z.double()) / F.softplus(z.double())
    torch.testing.assert_close(gradient.double(), torch.where(z < -30, 1.0, slope).detach(), rtol=1e-5, atol=0)


def backbone(**settings: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone([SoftmaxAttention(8, 8, 2), LRU(8, 4)], num_classes=3, max_length=6, vocab_size=5, **settings)


def test_a_mask_is_right_padding() -> None:
    """Anything else is refused, with the first row at fault: left padding would give silently wrong attention."""
    model, tokens = backbone(), torch.zeros(3, 6, dtype=torch.long)
    right = torch.arange(6) < torch.tensor([[6], [2], [0]])
    assert torch.equal(model(tokens, right), model.with_systems(tokens, right)[0])
    gap = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]], dtype=torch.bool)
    for run in (model, model.with_systems):
        for mask, message in (
            (right.flip(1), "row 1 of the mask"),
            (gap, "row 2 of the mask has a real step after padding"),
            (right.float(), r"bool of shape \(3, 6\), got torch.float32"),
            (right[:, :5], r"got torch.bool of shape \(3, 5\)"),
        ):
            with pytest.raises(ValueError, match=message):
                run(tokens, mask)


def test_a_masked_backbone_compiles() -> None:
    """The look at the mask's values is no graph break."""
    model, tokens = backbone(), torch.zeros(2, 6, dtype=torch.long)
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # dynamo's own, others in each version
        torch.testing.assert_close(compiled(tokens, mask), model(tokens, mask))
    torch._dynamo.reset()


# bfloat16


@pytest.mark.parametrize(
    "mixer", [Mamba2(8, 8, 2), *(NormAttention(8, 8, 2, normaliser=name) for name in get_args(Normaliser))]
)
def test_gates_keep_their_digits_under_autocast(mixer: Mixer) -> None:
    """log λ of a projection of the input is that without autocast to 1e-5: bfloat16 would leave 1e-2."""
    u = torch.randn(2, 70, 8, generator=torch.Generator().manual_seed(0))
    exact = mixer.with_system(u)[2].transition.log_modulus()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixer.with_system(u)[2].transition.log_modulus()
        mixer(u.bfloat16())  # what a layer before it may hand over
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_long_sums_do_not_stop_under_autocast() -> None:
    """49,152 equal steps sum to 49,152 times one of them; in bfloat16 a sum stands still from 256 equal terms on."""
    torch.manual_seed(0)
    mixer, length = NormAttention(8, 8, 2), 49_152
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, one = mixer(torch.ones(1, 1, 8))
        _, state = mixer(torch.ones(1, length, 8))
        _, state = mixer(torch.ones(1, 64, 8), state)
    assert state.sums.dtype == torch.float32
    assert float(state.sums.norm() / one.sums.norm()) == pytest.approx(length + 64, rel=0.01)


@pytest.mark.parametrize("log_decay", [None, torch.full((1, 1, 2), -0.1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decayed_attention_carries_float32(log_decay: Tensor | None, dtype: torch.dtype) -> None:
    """Whatever comes in and whatever autocast does, the state is float32 and right to bfloat16's products."""
    for length in (5, 300):
        q, k, v, initial = (x.detach().to(dtype) for x in attention_inputs(length))
        _, wanted = attention_loop(q.double(), k.double(), v.double(), log_decay, initial.double())
        for rounded, bound in ((False, 1e-5), (True, 0.01)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
                _, state = decayed_attention(q, k, v, log_decay, initial)
            assert state.dtype == torch.float32
            assert (state - wanted).abs().max() <= bound * wanted.abs().max()


# what the formulas say


def assert_same(
    ours: Callable[[], Tensor], theirs: Callable[[], Tensor], inputs: list[Tensor], bound: float = 1e-10
) -> None:
    """Two functions of the same leaves agree in value and in gradient, relative to the largest entry."""
    a, b = ours(), theirs()
    weight = torch.randn_like(b)
    gradients = (torch.autograd.grad(torch.real(weight * x).sum(), inputs) for x in (a, b))
    for x, y in [(a, b), *zip(*gradients, strict=True)]:
        assert (x - y).abs().max() <= bound * y.abs().max() + 1e-14


def drawn(mixer: Mixer, length: int = 70) -> tuple[Any, Tensor]:
    torch.manual_seed(5)
    return mixer.double(), torch.randn(2, length, mixer.d_model, dtype=torch.double, requires_grad=True)


def heads_of(mixer: Any, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values (B, H, T, ·) of an attention without a convolution, straight from the weights."""
    x = u @ mixer.projection.weight.mT + mixer.projection.bias
    parts = x.split((mixer.d_state, mixer.d_state, mixer.width), -1)
    q, k, v = (part.unflatten(-1, (mixer.heads, -1)).transpose(1, 2) for part in parts)
    return q, k, v


def assert_core(mixer: Any, u: Tensor, core: Callable[[], Tensor], log_normaliser: Callable[[], Tensor]) -> None:
    """The mixer's output and log λ against an explicit core (B, H, T, d) and log η (B, H, T)."""
    inputs = [u, *(p for n, p in mixer.named_parameters() if not n.startswith("output"))]

    def explicit() -> Tensor:
        return torch.cat((mixer.readout(core().transpose(1, 2).flatten(2), u), log_decay(log_normaliser())), -1)

    def log_decay(log_eta: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(log_eta[..., :1]), -log_eta.diff(dim=-1)), -1).transpose(1, 2)

    def ours() -> Tensor:
        y, _, system = mixer.with_system(u)
        return torch.cat((y, system.transition.log_modulus().squeeze(-1)), -1)

    assert_same(ours, explicit, inputs)


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def test_softmax_attention_is_masked_softmax() -> None:
    mixer, u = drawn(SoftmaxAttention(8, 8, 2))

    def scores() -> Tensor:
        q, k, _ = heads_of(mixer, u)
        return (q @ k.mT / math.sqrt(4)).masked_fill(~causal(70), -torch.inf)

    assert_core(mixer, u, lambda: scores().softmax(-1) @ heads_of(mixer, u)[2], lambda: scores().logsumexp(-1))


def test_linear_attention_is_explicit_attention() -> None:
    mixer, u = drawn(LinearAttention(8, 8, 2))

    def scores() -> Tensor:
        q, k, _ = heads_of(mixer, u)
        return ((1 + F.elu(q)) @ (1 + F.elu(k)).mT) * causal(70)

    def core() -> Tensor:
        return scores() @ heads_of(mixer, u)[2] / scores().sum(-1, keepdim=True)

    assert_core(mixer, u, core, lambda: scores().sum(-1).log())


NORMALISERS: dict[str, Callable[[Tensor], Tensor]] = {  # η itself, as the two papers write it
    "exp": torch.exp,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tli_exp": lambda z: 1 / torch.exp(-torch.exp(z)),
    "tli_elu": lambda z: 1 / torch.exp(-F.elu(z)),
    "tli_softplus": lambda z: 1 / torch.exp(-F.softplus(z)),
    "tli_sigmoid": lambda z: 1 / torch.exp(-torch.sigmoid(z)),
}


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_norm_attention_is_explicit_attention(normaliser: Any) -> None:
    mixer, u = drawn(NormAttention(8, 8, 2, normaliser=normaliser))

    def eta() -> Tensor:
        return NORMALISERS[normaliser](u @ mixer.norm.weight.mT + mixer.offset).transpose(1, 2)

    def core() -> Tensor:
        q, k, v = heads_of(mixer, u)
        return (q @ k.mT / math.sqrt(4) * causal(70)) @ v / eta().unsqueeze(-1)

    assert_core(mixer, u, core, lambda: eta().log())


def test_lru_is_its_loop() -> None:
    mixer, u = drawn(LRU(8, 6))
    inputs = [u, *mixer.parameters()]

    def loop() -> Tensor:
        decay = torch.exp(torch.complex(-mixer.log_rate.exp(), mixer.log_phase.exp()))
        b = torch.complex(*mixer.input_matrix.unbind(1)) * mixer.log_gain.exp().unsqueeze(-1)
        c = torch.complex(*mixer.output_matrix.unbind(1))
        state, outputs = torch.zeros(2, 6, dtype=torch.cdouble), []
        for x in u.unbind(1):
            state = decay * state + x.to(torch.cdouble) @ b.mT
            outputs.append((state @ c.mT).real + mixer.skip * x)
        return F.gelu(torch.stack(outputs, 1)) @ mixer.output.weight.mT + mixer.output.bias

    assert_same(lambda: mixer(u)[0], loop, inputs)


@pytest.mark.parametrize("invariant", [False, True])
def test_mamba2_is_its_loop(invariant: bool) -> None:
    mixer, u = drawn((PseudoLTIMamba2 if invariant else Mamba2)(8, 6, 2))
    inputs = [u, *mixer.parameters()]

    def loop() -> Tensor:
        projected = u @ mixer.projection.weight.mT + mixer.projection.bias
        x, b, c = projected.split((16, 6, 6), -1)
        x = x.unflatten(-1, (2, 8))
        step = F.softplus(u @ mixer.step_projection.weight.mT + mixer.step_bias)
        rate = F.softplus(mixer.log_rate).expand_as(step) if invariant else mixer.log_rate.exp() * step
        state, outputs = torch.zeros(2, 2, 6, 8, dtype=torch.double), []
        for t in range(70):
            written = step[:, t, :, None, None] * b[:, t, None, :, None] * x[:, t, :, None, :]
            state = (-rate[:, t]).exp()[..., None, None] * state + written
            outputs.append(torch.einsum("bn,bhnp->bhp", c[:, t], state) + mixer.skip.unsqueeze(-1) * x[:, t])
        core = torch.stack(outputs, 1).flatten(2)
        core = core * (core.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * mixer.norm.weight
        return core @ mixer.output.weight.mT + mixer.output.bias

    assert_same(lambda: mixer(u)[0], loop, inputs)


# the scans


def scan_loop(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    state, states = initial, []
    for t in range(inputs.shape[1]):
        state = decay[:, t if decay.shape[1] != 1 else 0] * state + inputs[:, t]
        states.append(state)
    return torch.stack(states, 1)


def scan_inputs(length: int, kind: str, batch: int = 2, channels: int = 3) -> list[Tensor]:
    """A decay inside the unit disc, inputs and an initial state; `kind` names dtype and variation."""
    dtype = torch.cdouble if "complex" in kind else torch.double
    shape = (1, 1, channels) if "invariant" in kind else (batch, length, channels)
    generator = torch.Generator().manual_seed(length)
    decay = torch.randn(shape, dtype=dtype, generator=generator)
    decay = decay / (1.01 * decay.abs() + 0.05)
    inputs = torch.randn(batch, length, channels, dtype=dtype, generator=generator)
    initial = torch.randn(batch, channels, dtype=dtype, generator=generator)
    return [x.requires_grad_() for x in (decay, inputs, initial)]


KINDS = ("real invariant", "real varying", "complex invariant", "complex varying")


@pytest.mark.parametrize("kind", KINDS)
def test_diagonal_scan_is_its_loop(kind: str) -> None:
    for length in LENGTHS:
        inputs = scan_inputs(length, kind)
        assert_same(lambda x=inputs: diagonal_scan(*x), lambda x=inputs: scan_loop(*x), inputs, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_diagonal_scan_derivatives(kind: str) -> None:
    """First and second derivatives, on both sides of a chunk's end."""
    for length in (1, 3, 34):
        inputs = tuple(scan_inputs(length, kind))
        assert torch.autograd.gradcheck(diagonal_scan, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(diagonal_scan, inputs, fast_mode=True)
    small = tuple(scan_inputs(3, kind, batch=1, channels=2))
    assert torch.autograd.gradcheck(diagonal_scan, small)
    assert torch.autograd.gradgradcheck(diagonal_scan, small)


@pytest.mark.parametrize("kind", KINDS)
def test_diagonal_scan_chunks_have_no_effect(kind: str) -> None:
    inputs = [x.detach() for x in scan_inputs(130, kind)]
    whole = scan_loop(*inputs)
    for chunk in (1, 2, 7, 64, 129, 130, 131):
        torch.testing.assert_close(two_pass_scan(*inputs, chunk=chunk), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_diagonal_scan_under_vmap(kind: str) -> None:
    """One scan for each example, value and gradient: per-sample gradients by `torch.func`."""
    many = [torch.stack([x.detach(), 0.5 * x.detach()]) for x in scan_inputs(40, kind)]

    def energy(*inputs: Tensor) -> Tensor:
        return diagonal_scan(*inputs).abs().square().sum()

    torch.testing.assert_close(
        torch.vmap(diagonal_scan)(*many), torch.stack([scan_loop(*one) for one in zip(*many, strict=True)])
    )
    found = torch.vmap(torch.func.grad(energy, argnums=(0, 1, 2)))(*many)
    alone = [torch.func.grad(energy, argnums=(0, 1, 2))(*one) for one in zip(*many, strict=True)]
    for ours, theirs in zip(found, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs))


def test_diagonal_scan_ignores_strides() -> None:
    """Rows in any memory order: transposed, expanded, every second step."""
    decay, inputs, initial = (x.detach() for x in scan_inputs(80, "complex varying"))
    wanted = diagonal_scan(decay, inputs, initial)
    permuted = inputs.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    torch.testing.assert_close(diagonal_scan(decay, permuted, initial), wanted)
    strided = torch.stack((inputs, inputs), 2).flatten(1, 2)[:, ::2]
    torch.testing.assert_close(diagonal_scan(decay, strided, initial), wanted)


def attention_loop(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, initial: Tensor) -> tuple[Tensor, Tensor]:
    state, outputs = initial, []
    for t in range(v.shape[1]):
        if log_decay is not None:
            state = log_decay[:, t if log_decay.shape[1] != 1 else 0].exp()[..., None, None] * state
        state = state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1), state


def attention_inputs(length: int, heads: int = 2, shared: bool = False, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.double, generator=generator).requires_grad_()

    own = 1 if shared else heads
    return [draw(2, length, own, 3), draw(2, length, own, 3), draw(2, length, heads, 4), draw(2, heads, 3, 4)]


def joined(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in outputs])


@pytest.mark.parametrize("decays", ["none", "invariant", "varying", "shared by the batch"])
@pytest.mark.parametrize("shared", [False, True])
def test_decayed_attention_is_its_loop(decays: str, shared: bool) -> None:
    for length in LENGTHS:
        q, k, v, initial = inputs = attention_inputs(length, shared=shared)
        shapes = {"invariant": (1, 1, 2), "varying": (2, length, 2), "shared by the batch": (1, length, 2)}
        log_decay = None
        if decays != "none":
            log_decay = (-torch.rand(shapes[decays], dtype=torch.double)).requires_grad_()
        leaves = inputs if log_decay is None else [*inputs, log_decay]
        assert_same(
            lambda: joined(decayed_attention(q, k, v, log_decay, initial)),  # noqa: B023
            lambda: joined(attention_loop(q, k, v, log_decay, initial)),  # noqa: B023
            leaves,
        )


@pytest.mark.parametrize("extreme", [-1e4, -1e30, -torch.inf])
def test_decayed_attention_with_decays_that_forget_everything(extreme: float) -> None:
    """λ = 0, however it is written: later steps forget exactly, keep their precision, and have finite gradients."""
    q, k, v, initial = inputs = attention_inputs(130)
    log_decay = torch.full((2, 130, 2), -0.1, dtype=torch.double)
    log_decay[:, [0, 40, 63, 64, 100]] = extreme
    log_decay.requires_grad_()
    ours = joined(decayed_attention(q, k, v, log_decay, initial))
    theirs = joined(attention_loop(q, k, v, log_decay, initial))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), [*inputs, log_decay]),
        torch.autograd.grad(theirs.sum(), [*inputs, log_decay]),
        strict=True,
    ):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, torch.nan_to_num(b), rtol=1e-9, atol=1e-9)


def test_decayed_attention_keeps_float32() -> None:
    """Strong and weak decays side by side: 1e-5 relative in float32, where plain cumulative sums lose more."""
    q, k, v, initial = (x.detach() for x in attention_inputs(1000))
    log_decay = torch.where(torch.rand(2, 1000, 2, dtype=torch.double) < 0.1, -300.0, -1e-3)
    wanted, _ = attention_loop(q, k, v, log_decay, initial)
    got, _ = decayed_attention(*(x.float() for x in (q, k, v, log_decay, initial)))
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_decayed_attention_derivatives() -> None:
    log_decay = -torch.rand(2, 5, 2, dtype=torch.double).requires_grad_()
    q, k, v, initial = attention_inputs(5)

    def chunked(*x: Tensor) -> tuple[Tensor, Tensor]:
        return decayed_attention(*x, chunk=2)

    assert torch.autograd.gradcheck(chunked, (q, k, v, log_decay, initial), fast_mode=True)
    assert torch.autograd.gradgradcheck(chunked, (q, k, v, log_decay, initial), fast_mode=True)


def test_decayed_attention_chunks_have_no_effect() -> None:
    q, k, v, initial = (x.detach() for x in attention_inputs(70))
    log_decay = -torch.rand(2, 70, 2, dtype=torch.double)
    wanted = joined(attention_loop(q, k, v, log_decay, initial))
    for chunk in (1, 3, 64, 70, 71):
        torch.testing.assert_close(joined(decayed_attention(q, k, v, log_decay, initial, chunk)), wanted)


# softmax's normaliser


def explicit_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = (q @ k.mT).masked_fill(~causal(q.shape[-2]), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@pytest.mark.parametrize(("width", "value_width"), [(4, 4), (4, 7), (7, 4), (16, 16)])
@pytest.mark.parametrize("length", [1, 5, 130])
def test_flash_attention_differentiates_its_normaliser(width: int, value_width: int, length: int) -> None:
    """Output and log-sum-exp, each alone and together, against the explicit form."""
    torch.manual_seed(6)
    q, k = torch.randn(2, 2, 3, length, width, dtype=torch.double).requires_grad_().unbind()
    v = torch.randn(2, 3, length, value_width, dtype=torch.double).requires_grad_()
    for use in (slice(0, 1), slice(1, 2), slice(0, 2)):
        used = [
            torch.cat([x.flatten() for x in found[use]])
            for found in (FlashAttention.apply(q, k, v), explicit_attention(q, k, v))
        ]
        assert_same(lambda x=used[0]: x, lambda x=used[1]: x, [q, k, v][: 2 if use == slice(1, 2) else 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-8, 1e8])
def test_flash_attention_at_any_ratio_of_its_two_cotangents(size: float, dtype: torch.dtype) -> None:
    """The output's cotangent may be zero in some rows, or tiny or huge against that of the log-sum-exp."""
    torch.manual_seed(8)
    q, k, v, grad_out = torch.randn(4, 2, 1, 20, 4, dtype=torch.double).to(dtype).unbind()
    grad_out, grad_log_eta = size * grad_out, torch.randn(2, 1, 20, dtype=torch.double).to(dtype)
    grad_out[:, :, ::3] = 0.0
    found, wanted = [], []
    forms = ((FlashAttention.apply, found, dtype), (explicit_attention, wanted, torch.double))
    for attention, gradients, kind in forms:
        leaves = [x.to(kind).requires_grad_() for x in (q, k, v)]
        gradients.extend(torch.autograd.grad(attention(*leaves), leaves, [grad_out.to(kind), grad_log_eta.to(kind)]))
    for a, b in zip(found, wanted, strict=True):
        tolerance = 1e3 * torch.finfo(dtype).eps * b.abs().max().item() + 1e-28
        torch.testing.assert_close(a.double(), b, rtol=0.0, atol=tolerance)


def test_attend_ignores_strides() -> None:
    """The kernel reads rows as contiguous: inputs in any memory order give the same."""
    torch.manual_seed(7)
    q, k, v = torch.randn(3, 2, 40, 3, 4, dtype=torch.double)
    wanted = attend(q, k, v, None, fresh=True)
    moved = [x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0) for x in (q, k, v)]
    for a, b in zip(attend(*moved, None, fresh=True), wanted, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(attend(q, k, v, None, fresh=False), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_a_tied_backbone_answers_with_its_embedding() -> None:
    """One matrix embeds tokens and scores them: no parameter of a head, gradients from both ends, the same work."""
    torch.manual_seed(0)
    tied, free = (
        Backbone([LRU(8, 4)], num_classes=5, max_length=6, vocab_size=5, per_position=True, tied=tied)
        for tied in (True, False)
    )
    tokens = torch.tensor([[0, 1, 2, 3]])
    features: list[Tensor] = []
    tied.norm.register_forward_hook(lambda module, inputs, output: features.append(output))
    torch.testing.assert_close(tied(tokens), features[0] @ tied.embedding.weight.T)
    tied(tokens)[0, 0, 4].backward()
    assert tied.embedding.weight.grad is not None and bool(tied.embedding.weight.grad[4].any())  # 4 is never read
    assert not any("head" in name for name, _ in tied.named_parameters())
    assert tied.macs(6) == free.macs(6)
    with pytest.raises(ValueError, match="one class a token, got 3 classes and vocab_size 5"):
        Backbone([LRU(8, 4)], num_classes=3, max_length=6, vocab_size=5, tied=True)
