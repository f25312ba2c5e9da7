"""Hugging Face formats: tokenizers and weights, in and out; only here (and in export) is torch imported."""
