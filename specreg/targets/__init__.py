"""Target spectra: one object initialises, penalises, constrains and is drawn."""

from specreg.targets.annular import LogUniformTimescale, Ring, TwoCluster
from specreg.targets.base import Target, midpoints, spread_order

__all__ = ["LogUniformTimescale", "Ring", "Target", "TwoCluster", "midpoints", "spread_order"]
