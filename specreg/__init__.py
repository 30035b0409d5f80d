"""Spectra of sequence models: differentiable, penalised, initialised, constrained and searched."""

__version__ = "0.1.0"
