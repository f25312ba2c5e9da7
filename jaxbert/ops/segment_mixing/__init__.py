"""HyperMixer's token mixing, within segments: api.py is the call, reference.py the specification."""
