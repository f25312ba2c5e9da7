"""jaxbert: bidirectional text encoders in JAX, from raw text to a folder that PyTorch users load."""

__version__ = "0.1.0"
