"""Gradients that are right once and must not be differentiated again unnoticed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def first_order_only(gradient: Tensor, *sources: Tensor) -> Tensor:
    """The gradient, with a backward pass that raises `RuntimeError` instead of taking it for a constant of `sources`.

    `once_differentiable` does not do that: if the loss is linear in a function's value it lets zero pass.
    """
    if not torch.is_grad_enabled():
        return gradient
    return _Once.apply(gradient, *sources)  # type: ignore[no-any-return, no-untyped-call]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "this quantity has first derivatives only: take no second ones through it (`create_graph=True`, Hessians), "
            "or put a smooth one in its place"
        )
