"""Eigenvalues with a gradient that is safe, and what else a matrix says of its transients."""

from specreg.eigen.dense import cluster_means, condition_numbers, eigenvalues
from specreg.eigen.extremal import spectral_abscissa, spectral_radius
from specreg.eigen.nonnormal import (
    Certified,
    henrici_departure,
    kreiss_constant,
    numerical_radius,
    pseudospectral_radius,
    spectral_norm,
)

__all__ = [
    "Certified",
    "cluster_means",
    "condition_numbers",
    "eigenvalues",
    "henrici_departure",
    "kreiss_constant",
    "numerical_radius",
    "pseudospectral_radius",
    "spectral_abscissa",
    "spectral_norm",
    "spectral_radius",
]
