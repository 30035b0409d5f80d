"""Initialisation by a short fit, once and before training, where no parameter is an eigenvalue but some steer it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from specreg.estimators import Exact
from specreg.system import LinearSystem
from specreg.targets import Target


class FitError(RuntimeError):
    """A fit that ended further from its target than was asked for."""


def fit(
    systems: Callable[[], Mapping[str, LinearSystem]],
    parameters: Iterable[nn.Parameter],
    target: Target,
    steps: int = 200,
    learning_rate: float = 0.05,
    tolerance: float = 0.05,
) -> float:
    """Moves `parameters` until the timescales on a calibration batch are the target's; returns the distance reached.

    Minimises the mean over layers of `target.timescale_distance`, in log steps, by Adam with a learning rate that falls
    linearly to 0, and leaves the best parameters seen. `systems` runs the model and hands out its layers, as in
    ``lambda: model.with_systems(batch)[1]``; it is called before each step, and drawing another batch each time fits
    the law of the inputs instead of one batch's (Mamba-2 with 8 heads, 512 steps a batch, to timescales of 1 to 1024:
    0.03 on other inputs, against 0.05 to 0.4). Gradients that parameters hold are left as they are.

    Raises `FitError` where the distance stays at `tolerance` or above, with the best parameters in place all the same,
    and `ValueError` for a target with a law of phases, which gates do not move, for parameters that do not reach the
    spectrum, and for a batch in which no step counts.
    """
    moved = list(parameters)
    _check(moved, target, steps)
    held = [parameter.grad for parameter in moved]
    optimiser = torch.optim.Adam(moved, lr=learning_rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    best, values = float("inf"), [parameter.detach().clone() for parameter in moved]
    try:
        for step in range(steps + 1):
            loss = mean_distance(systems(), target)
            if loss.item() < best:
                best, values = loss.item(), [parameter.detach().clone() for parameter in moved]
            if step < steps:
                _set_gradients(loss, moved)
                optimiser.step()
                falling.step()
    finally:
        with torch.no_grad():
            for parameter, value, gradient in zip(moved, values, held, strict=True):
                parameter.copy_(value)
                parameter.grad = gradient
    if not best < tolerance:
        raise FitError(
            f"the fit to {target} reached a distance of {best:.3g} in log-timescale in {steps} steps, "
            f"not {tolerance:g}: give it more steps or another learning rate, add parameters that steer gates (input "
            "projections spread timescales over time, biases only over heads), or choose a nearer target"
        )
    return best


def mean_distance(systems: Mapping[str, LinearSystem], target: Target) -> Tensor:
    """The mean over layers of the 1-Wasserstein distance between the laws of log τ, scalar."""
    if not systems:
        raise ValueError("a fit needs at least one system: give a callable that returns a mapping from layer to system")
    distances = []
    for name, system in systems.items():
        spectrum = Exact()(system)
        if not bool(spectrum.weights().any()):
            raise ValueError(f"no step of {name!r} counts in the batch: give longer sequences or mask fewer steps")
        distances.append(target.timescale_distance(spectrum))
    return torch.stack(distances).mean()


def _check(parameters: Sequence[nn.Parameter], target: Target, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a fit takes at least one step, got {steps}")
    if not parameters:
        raise ValueError("a fit needs parameters to move, such as a step projection and its bias")
    if not all(parameter.requires_grad for parameter in parameters):
        raise ValueError("a fit moves parameters that require a gradient: leave frozen ones out")
    if target.max_phase is not None:
        raise ValueError(f"a fit moves timescales only and cannot meet the phases of {target}: leave max_phase out")


def _set_gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    gradients: Sequence[Tensor | None] = (None,)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = cast("Sequence[Tensor | None]", found)
    if all(gradient is None for gradient in gradients):
        raise ValueError("none of the parameters reaches the spectrum: give those that steer gates, not under no_grad")
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
