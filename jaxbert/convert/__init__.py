"""Hugging Face formats: tokenizers and weights, in and out; only here (and in export) is torch imported."""

import importlib
import types

from jaxbert.errors import BadInput

# The first word of `model.name` → the module with HF_CLASS, masked_lm (key map), torch_shapes and to_hf_config.
EXPORTERS = {
    "bert": "jaxbert.convert.bert",
    "convbert": "jaxbert.convert.convbert",
    "gmlp": "jaxbert.convert.gmlp",
    "amlp": "jaxbert.convert.gmlp",
    "m2": "jaxbert.convert.m2",
    "hypermixer": "jaxbert.convert.hypermixer",
}


def exporter(name: str) -> types.ModuleType:
    """The module that knows how transformers names and stores the encoder `name` ("bert_mini" → jaxbert.convert.bert).

    Raises BadInput for an encoder that transformers has no class for.
    """
    first = name.split("_")[0]
    if first not in EXPORTERS:
        raise BadInput(f"model.name: {name!r} cannot be exported; encoders that can: {', '.join(EXPORTERS)}")
    return importlib.import_module(EXPORTERS[first])


def importer(name: str) -> types.ModuleType:
    """As `exporter`, for weights that come in: the module also has from_hf_config. Raises BadInput if it has not."""
    module = exporter(name)
    if not hasattr(module, "from_hf_config"):
        raise BadInput(
            f"{name.split('_')[0]} cannot be imported: nobody publishes weights of it; start a run from another one "
            "with model.initialize_from"
        )
    return module
