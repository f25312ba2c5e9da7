"""Encoders, one file an architecture; the only place that imports flax."""
