"""Spectra on disk: each layer's eigenvalues on one fixed held-out batch, as log-modulus and phase."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from specreg.estimators import Exact
from specreg.invariants import effective_memory
from specreg.models.backbone import Backbone
from specreg.spectrum import Spectrum
from specreg.system import LinearSystem
from specreg.targets import Target
from specreg.tasks.task import Batch

EXAMPLES = 64  # of the validation split
VALUES_A_HEAD = 1024  # kept on disk, evenly spaced over examples and steps
MEMORY_STEPS = 2**13  # in the batch that effective memory is taken from
GAUGE = "as applied"


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
    """Every layer's eigenvalues."""
    return {name: Exact()(system).detach() for name, system in systems.items()}


@torch.no_grad()
def memory_of(model: Backbone, batch: Batch) -> float:
    """Effective memory as a share of the past, averaged over layers and heads: what no change of gauge alters."""
    few = max(1, MEMORY_STEPS // batch.inputs.shape[1])
    part = Batch(batch.inputs[:few], batch.targets[:few], None if batch.mask is None else batch.mask[:few])
    memories = [effective_memory(system).mean() for system in systems_of(model, part).values()]
    return float(torch.stack(memories).mean())


def encode(spectra: Mapping[str, Spectrum], step: int) -> bytes:
    """A safetensors file: "<layer>.log_modulus" and "<layer>.phase", each ``(H, values)``."""
    tensors: dict[str, Tensor] = {}
    for name, spectrum in spectra.items():
        log_modulus, phase = counted_values(spectrum)
        tensors[f"{name}.log_modulus"] = log_modulus.float().cpu().contiguous()
        tensors[f"{name}.phase"] = phase.float().cpu().contiguous()
    metadata = {"step": str(step), "gauge": GAUGE, "layers": json.dumps(list(spectra))}
    return save(tensors, metadata)


def counted_values(spectrum: Spectrum) -> tuple[Tensor, Tensor]:
    """log-moduli and phases of the steps that count, ``(H, values)``, thinned to about `VALUES_A_HEAD`.

    Steps are drawn without replacement from all examples, by a fixed seed: every n-th of them would be the same place
    of every example, such as one column of an image. A step that is drawn keeps all its eigenvalues.
    """
    batch, steps, _, distinct = spectrum.log_modulus.shape
    mask = spectrum.mask
    keep = torch.ones(batch, steps, dtype=torch.bool) if mask is None or steps == 1 else mask.cpu().expand(batch, steps)
    places = keep.flatten().nonzero().squeeze(1)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(0), device="cpu")
    drawn = places[order[: max(1, VALUES_A_HEAD // distinct)].sort().values]
    log_modulus, phase = (
        field.cpu().flatten(0, 1)[drawn].transpose(0, 1).flatten(1) for field in (spectrum.log_modulus, spectrum.phase)
    )
    return log_modulus, phase


def decode(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The log-moduli and phases of each layer, ``(H, values)``, as `encode` wrote them."""
    with safe_open(path, framework="pt") as file:
        layers = json.loads(file.metadata()["layers"])
        return {name: (file.get_tensor(f"{name}.log_modulus"), file.get_tensor(f"{name}.phase")) for name in layers}


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
