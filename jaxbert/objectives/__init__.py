"""What a run learns. `make` is the one place that maps `objective.name` to code."""

from typing import Any

from jaxbert.config import Config
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput


def make(config: Config, **arguments: Any) -> Any:
    """The objective of a resolved recipe; `arguments` are those of its class (for mlm: vocab_size and special ids)."""
    if config.objective.name != "mlm":
        raise BadInput(f"objective.name: no objective {config.objective.name!r}; there is: mlm")
    from jaxbert.objectives.mlm import MaskedLanguageModelling

    return MaskedLanguageModelling(config, **arguments)


def for_tokenizer(config: Config, tokenizer: TextTokenizer) -> Any:
    """The objective of a resolved recipe on text of this tokenizer."""
    return make(config, vocab_size=tokenizer.vocab_size, mask_id=tokenizer.mask_id, special_ids=tokenizer.special_ids)
