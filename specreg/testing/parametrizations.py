"""The conformance tests of a parametrisation, for our members and for anybody's.

A parametrisation passes when no unconstrained value leads out of the region and each value of the region can be
assigned. Plain assertions: any runner that calls methods named `test_…` will do.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.parametrize import register_parametrization

from specreg.testing.operators import assert_close

__all__ = ["ParametrizationConformance"]


class ParametrizationConformance(ABC):
    """The tests that every parametrisation passes: subclass it, give `make`, `inside`, `outside` and `contains`.

    Give `free` too where the map is one to one on a part of the free values only.
    """

    @abstractmethod
    def make(self) -> nn.Module:
        """The map, with `right_inverse`."""

    @abstractmethod
    def inside(self) -> Tensor:
        """Some values of the region, float64 or complex128, ``(n,)``, or matrices ``(n, k, k)``."""

    @abstractmethod
    def outside(self) -> list[Tensor]:
        """Values that cannot be assigned, one each, the edge of an open region among them."""

    @abstractmethod
    def contains(self, value: Tensor) -> Tensor:
        """Whether each value lies in the region."""

    def free(self) -> Tensor:
        """Free values at which the map is neither saturated nor has gone round, in the shape of `inside`."""
        return 3 * _free(self.inside())

    def test_assigning_is_exact(self) -> None:
        """forward(right_inverse(value)) is the value: 1e-12 in double precision, 1e-5 in single."""
        map_, value = self.make(), self.inside()
        assert_close(map_(_section(map_, value)), value, 1e-12)
        single = value.to(_single(value))
        assert_close(map_(_section(map_, single)), single, 1e-5)

    def test_free_values_come_back(self) -> None:
        """right_inverse(forward(x)) is x where the map is not saturated."""
        map_, free = self.make(), self.free()
        assert_close(_section(map_, map_(free)), free, 1e-8)

    def test_nothing_leaves_the_region(self) -> None:
        """Unconstrained values of up to 1e±30 lie inside, can be assigned again, and have finite gradients."""
        for dtype in (self.inside().dtype, _single(self.inside())):
            for scale in (0.0, 1e-30, 1.0, 20.0, 1e4, 1e10, 1e30):
                free = (scale * _free(self.inside())).to(dtype).requires_grad_()
                map_ = self.make()
                value = map_(free)
                assert bool(self.contains(value.detach()).all()), f"{value} for a free value of order {scale}"
                assert bool(_section(map_, value.detach()).isfinite().all())
                (gradient,) = torch.autograd.grad(value.abs().sum(), free)
                assert bool(gradient.isfinite().all())

    def test_other_values_are_refused(self) -> None:
        """Values outside, and NaN, raise a `ValueError` at assignment."""
        for value in (*self.outside(), torch.full_like(self.inside()[:1], torch.nan)):
            try:
                _section(self.make(), value)
            except ValueError:
                continue
            raise AssertionError(f"{value} was not refused")

    def test_gradient_is_that_of_finite_differences(self) -> None:
        """gradcheck and gradgradcheck in double precision."""
        free = _free(self.inside()).requires_grad_()
        assert gradcheck(self.make(), (free,))
        assert gradgradcheck(self.make(), (free,), fast_mode=True)

    def test_registered_on_a_parameter(self) -> None:
        """Assignment, a hundred optimiser steps against the edge, and a checkpoint keep the values inside."""
        value = self.inside()
        module = _holder(value, self.make())
        assert_close(module.value, value, 1e-12)
        optimiser = torch.optim.Adam(module.parameters(), lr=1.0)
        for _ in range(100):
            optimiser.zero_grad()
            torch.view_as_real(module.value.to(torch.complex128)).sum().neg().backward()
            optimiser.step()
            assert bool(self.contains(module.value.detach()).all())
        with tempfile.TemporaryDirectory() as folder:
            torch.save(module.state_dict(), Path(folder) / "checkpoint.pt")
            other = _holder(value, self.make())
            other.load_state_dict(torch.load(Path(folder) / "checkpoint.pt"))
        assert_close(other.value, module.value, 0.0)
        module.value = value
        assert_close(module.value, value, 1e-12)


class _Holder(nn.Module):
    value: Tensor


def _holder(value: Tensor, map_: nn.Module) -> _Holder:
    holder = _Holder()
    holder.register_parameter("value", nn.Parameter(value.clone()))
    register_parametrization(holder, "value", map_)
    return holder


def _section(map_: nn.Module, value: Tensor) -> Tensor:
    section = map_.right_inverse
    assert callable(section)
    free = section(value)
    assert isinstance(free, Tensor)
    return free


def _free(like: Tensor) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(1))


def _single(like: Tensor) -> torch.dtype:
    return torch.complex64 if like.is_complex() else torch.float32
