"""config.json of transformers. Read, a field is translated, known to be without effect, or refused by its name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxbert.errors import BadInput

ACTIVATIONS = {  # theirs → ours; gelu_new and gelu_pytorch_tanh are one function
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# Fields that change nothing of what an encoder computes: names and versions, tokens, labels, other heads, generation.
WITHOUT_EFFECT = frozenset(
    """
    architectures auto_map model_type transformers_version dtype torch_dtype name_or_path _name_or_path tokenizer_class
    vocab_size pad_token_id bos_token_id eos_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    id2label label2id num_labels _num_labels problem_type classifier_dropout finetuning_task task_specific_params
    directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    use_cache gradient_checkpointing return_dict output_past output_attentions output_hidden_states torchscript
    chunk_size_feed_forward attn_implementation _attn_implementation_autoset
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
    typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
    """.split()
)


def translate(
    given: Mapping[str, Any],
    fields: Mapping[str, tuple[str, Any]],
    *,
    values: Mapping[str, Mapping[Any, Any]] = {"hidden_act": ACTIVATIONS},
    fixed: Mapping[str, Sequence[Any]] = {},
) -> dict[str, Any]:
    """Our fields from their configuration.

    Args:
      given: config.json.
      fields: their name → (our name, what an absent field means; its type is the field's).
      values: of fields whose values have other names here: their name → (their value → ours).
      fixed: fields that may only have certain values, or be absent.

    Raises BadInput naming every field that has another type or a value that we have nothing for, and every one that is
    not known here; one that is off (null, false, 0 or empty) may have any name.
    """
    ours, problems = {}, []
    for name, (our_name, default) in fields.items():
        value, wanted = given.get(name, default), type(default)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not wanted:
            problems.append(f"{name}={value!r} is no {wanted.__name__}")
        elif wanted is int and value < 1:
            problems.append(f"{name}={value!r} is not positive")
        elif name in values and value not in values[name]:
            problems.append(f"{name}={value!r} (here: {', '.join(map(str, values[name]))})")
        else:
            ours[our_name] = values[name][value] if name in values else value
    for name, value in given.items():
        if name in fixed and value is not None and value not in fixed[name]:
            problems.append(f"{name}={value!r} (here: {', '.join(map(repr, fixed[name]))})")
        elif value and name not in fields and name not in fixed and name not in WITHOUT_EFFECT:
            problems.append(f"{name}={value!r} (not known here)")
    if problems:
        raise BadInput(f"config.json: not supported: {'; '.join(problems)}")
    return ours


def auto_map(modeling: str, name: str) -> dict[str, str]:
    """Which class of the PyTorch file `modeling` each of transformers' Auto classes takes; they begin with `name`."""
    module = modeling.removesuffix(".py")
    suffixes = {
        "AutoConfig": "Config",
        "AutoModel": "Model",
        "AutoModelForMaskedLM": "ForMaskedLM",
        "AutoModelForSequenceClassification": "ForSequenceClassification",
        "AutoModelForTokenClassification": "ForTokenClassification",
    }
    return {auto: f"{module}.{name}{suffix}" for auto, suffix in suffixes.items()}


def nearest_size(sizes: Mapping[str, Mapping[str, Any]], fields: Mapping[str, Any]) -> str:
    """The named size whose numbers are nearest to those of `fields`, as ratios; of equal ones the last."""

    def distance(name: str) -> float:
        pairs = [(value, fields.get(field)) for field, value in sizes[name].items() if field in fields]
        numbers = [(a, b) for a, b in pairs if type(a) in (int, float) and type(b) in (int, float) and a > 0 and b > 0]
        return sum(abs(math.log(a / b)) for a, b in numbers) + sum(a != b for a, b in pairs if (a, b) not in numbers)

    return min(reversed(list(sizes)), key=distance)
