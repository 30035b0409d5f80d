"""Spectra on disk: each layer's eigenvalues on one fixed held-out batch, how well they are known, what it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from specreg.estimators import Exact
from specreg.invariants import effective_memory, half_life, influence_profile, log_spaced_lags
from specreg.models.backbone import Backbone
from specreg.operators import StructuredOperator
from specreg.spectrum import Spectrum
from specreg.system import LinearSystem
from specreg.targets import Target
from specreg.tasks.task import Batch

EXAMPLES = 64  # of the validation split
VALUES_A_HEAD = 1024  # kept on disk, evenly spaced over examples and steps
MEMORY_STEPS = 2**13  # in the batch that influence and memory are taken from
GAUGE = "as applied"
CLOSED_FORM, DENSE_SOLVE = "closed form", "dense solve"  # certificates: how a layer's eigenvalues are known


@dataclass(frozen=True, eq=False)
class Memory:
    """What a layer reads of its past, by head: none of it altered by a change of gauge."""

    lags: Tensor  # (k,), steps
    influence: Tensor  # (k, H), mean over the readers that reach back so far
    half_life: Tensor  # (H,), steps
    effective_memory: Tensor  # (H,), share of the past


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer as a file holds it."""

    log_modulus: Tensor  # (H, values)
    phase: Tensor  # (H, values), radians
    condition: Tensor | None  # (H, values), κ; None, as the certificate: written by an earlier version
    certificate: str | None
    memory: Memory | None  # None: written by an earlier version


@dataclass(frozen=True, eq=False)
class Known(Spectrum):
    """A layer's eigenvalues, and how they are known."""

    certificate: str = DENSE_SOLVE


@dataclass(frozen=True, eq=False)
class Read(LinearSystem):
    """A system whose influence at some lags is known, for the figures that are all made of it."""

    system: LinearSystem
    mask: Tensor | None
    known: Mapping[int, tuple[Tensor, Tensor]]  # by lag, size and log of a factor

    @classmethod
    def of(cls, system: LinearSystem) -> Read:
        """At the lags that `specreg.invariants` takes where none are given."""
        lags = log_spaced_lags(system.length)
        return cls(system, system.mask, dict(zip(lags, system.influence_logs(lags), strict=True)))

    @property
    def transition(self) -> StructuredOperator:
        return self.system.transition

    @property
    def length(self) -> int:
        return self.system.length

    def unroll(self) -> Tensor:
        return self.system.unroll()

    def respond(self, values: Tensor, initial: Tensor | None = None) -> Tensor:
        return self.system.respond(values, initial)

    def influence(self, lags: Sequence[int]) -> list[Tensor]:
        return [size * log.exp() for size, log in self.influence_logs(lags)]

    def influence_logs(self, lags: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        return [self.known[lag] for lag in lags]

    def regauged(self, log_gauge: Tensor, before: Tensor | None = None) -> Read:
        return replace(self, system=self.system.regauged(log_gauge, before))


@torch.no_grad()
def systems_of(model: Backbone, batch: Batch) -> dict[str, LinearSystem]:
    """What each layer applies to a batch, in evaluation mode: no dropout, so that start and end are comparable."""
    training = model.training
    model.eval()
    try:
        return model.with_systems(batch.inputs, batch.mask)[1]
    finally:
        model.train(training)


def spectra_of(systems: Mapping[str, LinearSystem]) -> dict[str, Spectrum]:
    """Every layer's eigenvalues, κ and certificate."""
    return {name: known(system) for name, system in systems.items()}


def known(system: LinearSystem) -> Known:
    """The eigenvalues of one layer: the parameters' own where the transition is normal by its structure."""
    certificate = CLOSED_FORM if system.transition.normal else DENSE_SOLVE
    return Known(**vars(Exact()(system).detach()), certificate=certificate)


@torch.no_grad()
def memories_of(model: Backbone, batch: Batch) -> dict[str, Memory]:
    """What every layer reads of its past, from a few of a batch's examples."""
    few = max(1, MEMORY_STEPS // int(batch.lengths.max()))
    part = Batch(batch.inputs[:few], batch.targets[:few], None if batch.mask is None else batch.mask[:few])
    return {name: memory_of(system) for name, system in systems_of(model, part).items()}


def memory_of(system: LinearSystem) -> Memory:
    """Influence by lag, half-life and effective memory of each head, from one pass over the system."""
    read = Read.of(system)
    profile = influence_profile(read)
    return Memory(profile.lags, profile.influence, half_life(read), effective_memory(read))


def mean_memory(memories: Mapping[str, Memory]) -> float:
    """Effective memory as a share of the past, averaged over layers and heads."""
    return float(torch.stack([memory.effective_memory.mean() for memory in memories.values()]).mean())


def encode(spectra: Mapping[str, Spectrum], memories: Mapping[str, Memory], step: int) -> bytes:
    """A safetensors file of tensors "<layer>.<field>", the fields those of `Layer` and of `Memory`."""
    tensors: dict[str, Tensor] = {}
    for name, spectrum in spectra.items():
        log_modulus, phase = counted_values(spectrum)
        found: dict[str, Tensor] = {"log_modulus": log_modulus, "phase": phase}
        if spectrum.condition is not None and certificate(spectrum) != CLOSED_FORM:
            found["condition"] = taken(spectrum.condition.expand_as(spectrum.log_modulus), counted_places(spectrum))
        if name in memories:
            found |= vars(memories[name])
        tensors |= {f"{name}.{field}": tensor.float().cpu().contiguous() for field, tensor in found.items()}
    certificates = {name: certificate(spectrum) for name, spectrum in spectra.items()}
    layers = {"layers": json.dumps(list(spectra)), "certificates": json.dumps(certificates)}
    return save(tensors, {"step": str(step), "gauge": GAUGE, **layers})


def certificate(spectrum: Spectrum) -> str:
    """How eigenvalues are known: as a `Known` spectrum says, else by a solve if κ is given."""
    if isinstance(spectrum, Known):
        return spectrum.certificate
    return CLOSED_FORM if spectrum.condition is None else DENSE_SOLVE


def counted_values(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """log-moduli and phases of the steps that count, ``(H, values)``, thinned to about `VALUES_A_HEAD`."""
    places = counted_places(spectrum)
    return taken(spectrum.log_modulus, places), taken(spectrum.phase, places)


def taken(field: Tensor, places: Tensor) -> Tensor:  # (B|1, T|1, H, m), (k,)
    """A spectrum's field at places of its batch and time axes together: ``(H, k·m)``."""
    return field.cpu().flatten(0, 1)[places].transpose(0, 1).flatten(1)


def counted_places(spectrum: Spectrum) -> Tensor:
    """Places of the batch and time axes together whose eigenvalues are kept, ``(k,)``.

    Steps are drawn without replacement from all examples, by a fixed seed: every n-th of them would be the same place
    of every example, such as one column of an image. A step that is drawn keeps all its eigenvalues.
    """
    batch, steps, _, distinct = spectrum.log_modulus.shape
    mask = spectrum.mask
    keep = torch.ones(batch, steps, dtype=torch.bool) if mask is None or steps == 1 else mask.cpu().expand(batch, steps)
    places = keep.flatten().nonzero().squeeze(1)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0), device="cpu")
    return places[order[: max(1, VALUES_A_HEAD // distinct)].sort().values]


def decode(path: Path) -> dict[str, Layer]:
    """Each layer as `encode` wrote it, or an earlier version of it."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        names, certificates = json.loads(metadata["layers"]), json.loads(metadata.get("certificates", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    return {name: layer(name, tensors, certificates.get(name)) for name in names}


def layer(name: str, tensors: Mapping[str, Tensor], certificate: str | None) -> Layer:
    """One layer from a file's tensors; κ is 1 where the eigenvalues are a normal transition's own parameters."""
    log_modulus, condition = tensors[f"{name}.log_modulus"], tensors.get(f"{name}.condition")
    if certificate == CLOSED_FORM:
        condition = torch.ones_like(log_modulus)
    memory = None
    if f"{name}.lags" in tensors:
        memory = Memory(*(tensors[f"{name}.{field.name}"] for field in fields(Memory)))
    return Layer(log_modulus, tensors[f"{name}.phase"], condition, certificate, memory)


def weighted_quantiles(values: Tensor, weights: Tensor, probabilities: Sequence[float]) -> list[Tensor]:
    """The smallest value at which the share of smaller or equal ones reaches each probability."""
    ordered, order = torch.broadcast_to(values, weights.shape).flatten().sort()
    cumulative = weights.flatten()[order].double().cumsum(0)
    wanted = torch.tensor(probabilities, dtype=torch.float64, device=cumulative.device) * cumulative[-1]
    places = torch.searchsorted(cumulative, wanted - 1e-12).clamp_max(len(ordered) - 1)
    return list(ordered[places].unbind())


def statistics(spectra: Mapping[str, Spectrum], target: Target | None) -> dict[str, float]:
    """Figures that a study can relate to a score: pooled over layers, each counted step and head alike."""
    pooled: dict[str, list[float]] = {}
    for spectrum in spectra.values():
        weights = spectrum.weights()
        modulus = spectrum.modulus
        lower, median, upper = weighted_quantiles(spectrum.log_timescale, weights, (0.25, 0.5, 0.75))
        figures = {
            "median_log_timescale": median,  # not the mean: attention's |λ| ≥ 1 have no timescale to average
            "spread_log_timescale": upper - lower,
            "share_below_0.1": (weights * (modulus < 0.1)).sum(),
            "share_above_0.9": (weights * (modulus >= 0.9)).sum(),
            "share_above_1": (weights * (modulus > 1)).sum(),
            "mean_phase": (weights * spectrum.folded_phase).sum(),
        }
        if target is not None:
            figures["spectral_distance"] = target.distance(spectrum)
        for name, value in figures.items():
            pooled.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in pooled.items()}
