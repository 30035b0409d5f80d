"""Eigenvalues with a gradient that is safe, and what else a matrix says of its transients."""
