"""1-Wasserstein distances between a weighted sample and a law, on the line and on the circle; differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def wasserstein(values: Tensor, weights: Tensor, quantile: Callable[[Tensor], Tensor]) -> Tensor:
    """Σ_i w_i |x_(i) − Q(p_i)| with p_i the middle of the i-th value's share of probability; scalar.

    The optimal coupling on the line is monotone, so this is the distance to the law represented by one value for
    each share: exact for a law with atoms at those values, and within half a quantile step for a continuous one.
    """
    weights, values = torch.broadcast_tensors(weights, values)
    ordered, order = values.flatten().sort()
    share = weights.flatten()[order]
    middle = share.double().cumsum(0) - 0.5 * share.double()
    target = quantile(middle.clamp(0, 1)).to(ordered)
    counted = share > 0
    return (share * torch.where(counted, ordered - target, 0.0).abs()).sum()


def circular_wasserstein(values: Tensor, weights: Tensor, quantile: Callable[[Tensor], Tensor]) -> Tensor:
    """min over α of ∫ |F(θ) − G(θ) − α| dθ over one turn; scalar, radians.

    F is the law of `values` (radians), G the target's, represented by one point for each share as in `wasserstein`.
    The best α is the median of F − G (Delon, Salomon, Sobolevski 2010, arXiv 0906.5499); where it sits does not depend
    on the values to first order, so the gradient flows through the gaps between points alone.
    """
    weights, values = torch.broadcast_tensors(weights, values)
    own, order = torch.remainder(values.flatten(), 2 * math.pi).sort()
    share = weights.flatten()[order].double()
    middle = share.cumsum(0) - 0.5 * share
    theirs = torch.remainder(quantile(middle.clamp(0, 1)), 2 * math.pi).to(own)
    points, order = torch.cat((own, theirs)).sort()
    gaps = torch.cat((points.diff(), points[:1] + 2 * math.pi - points[-1:]))
    difference = torch.cat((share, -share))[order].cumsum(0)
    excess = (difference - _weighted_median(difference, gaps.detach().double())).abs()
    return (gaps * excess.to(gaps)).sum()


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    ordered, order = values.sort()
    cumulative = weights[order].cumsum(0)
    return ordered[torch.searchsorted(cumulative, cumulative[-1:] / 2).clamp_max(len(ordered) - 1)]
