"""Conformance tests for members of specreg and for anybody's own."""
