"""Sequence mixers, their scans and the backbone that puts them in blocks."""
