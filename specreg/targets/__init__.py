"""Target spectra: one object initialises, penalises, constrains and is drawn."""

from specreg.targets.annular import Disk, HalfPlane, LogUniformTimescale, Ring, Sector, TwoCluster
from specreg.targets.base import Outline, Planar, Target, midpoints, spread_order
from specreg.targets.continuous import Bilinear, HippoLegS, S4DInv, S4DLin, S4DQuad
from specreg.targets.points import Empirical, FourierGrid, Points, PowerSpectrum, Signed

__all__ = [
    "Bilinear",
    "Disk",
    "Empirical",
    "FourierGrid",
    "HalfPlane",
    "HippoLegS",
    "LogUniformTimescale",
    "Outline",
    "Planar",
    "Points",
    "PowerSpectrum",
    "Ring",
    "S4DInv",
    "S4DLin",
    "S4DQuad",
    "Sector",
    "Signed",
    "Target",
    "TwoCluster",
    "midpoints",
    "spread_order",
]
