"""PyTorch classes that exports carry: plain files, copied into the exported folder; importing them needs torch."""
