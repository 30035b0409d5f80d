"""Recording: κ and certificates as the structure of a transition has them, and one pass over what is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specreg.invariants import effective_memory, half_life, influence_profile
from specreg.operators import Dense, DiagonalPlusRankOne, HouseholderProduct, RankOneUpdate, StructuredOperator
from specreg.studies.recording import CLOSED_FORM, DENSE_SOLVE, decode, encode, memory_of, spectra_of
from specreg.system import System


def system(operator: StructuredOperator) -> System:
    draw = torch.Generator().manual_seed(1)
    batch, length, heads, size, _ = operator.shape
    inputs, readouts = torch.randn(2, batch, length, heads, size, 1, dtype=torch.float64, generator=draw)
    return System(operator, inputs, readouts.mT, torch.zeros(batch, length, heads, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("member", [Dense, DiagonalPlusRankOne, HouseholderProduct, RankOneUpdate])
def test_conditions_of_a_structure_are_written_and_read(member: type[StructuredOperator], tmp_path: Path) -> None:
    """Those of the operator itself; 1 and "closed form" where the map is normal by its structure."""
    operator = member.example()
    (tmp_path / "file").write_bytes(encode(spectra_of({"layer": system(operator)}), {}, 0))
    layer = decode(tmp_path / "file")["layer"]
    assert layer.certificate == (CLOSED_FORM if member is RankOneUpdate else DENSE_SOLVE)
    assert layer.condition is not None and layer.condition.shape == layer.log_modulus.shape
    known = operator.conditioned()[2]
    assert known is not None
    torch.testing.assert_close(layer.condition.amax(-1).double(), known.amax((0, 1, 3)), rtol=1e-6, atol=0)


class Counted(System):
    """Counts how often its influence is asked for."""

    asked = 0

    def influence_logs(self, lags: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        Counted.asked += 1
        return super().influence_logs(lags)


def test_influence_is_found_once() -> None:
    """The three figures of a layer are those of the invariants, from one pass over the system."""
    plain = system(RankOneUpdate.example())
    counted, Counted.asked = Counted(**vars(plain)), 0
    memory = memory_of(replace(counted, mask=torch.arange(7).expand(2, 7) < 6))
    assert Counted.asked == 1
    masked = replace(plain, mask=torch.arange(7).expand(2, 7) < 6)
    assert torch.equal(memory.influence, influence_profile(masked).influence)
    assert torch.equal(memory.half_life, half_life(masked))
    assert torch.equal(memory.effective_memory, effective_memory(masked))
