"""The check that PyTorch users will see the token ids that the encoder was trained on."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxbert.data.tokenizer import TextTokenizer


def compare_with_transformers(
    directory: Path, texts: Sequence[str], *, model_type: str = "bert", batch: int = 256
) -> list[tuple[str, list[int], list[int]]]:
    """The texts whose ids, with [CLS] and [SEP], differ between TextTokenizer and `transformers.AutoTokenizer`.

    Each difference is (text, our ids, their ids). A config.json can make AutoTokenizer choose another tokenizer class,
    so a folder without one is read as a copy with one that names `model_type`; an exported folder is read as it is.
    `split_special_tokens=True` makes it take special tokens in the text for text. Raises ImportError where transformers
    is not installed.
    """
    from transformers import AutoTokenizer

    ours = TextTokenizer.load(directory)
    with tempfile.TemporaryDirectory() as temporary:
        exported = directory
        if not (directory / "config.json").is_file():
            exported = Path(temporary) / "exported"
            shutil.copytree(directory, exported)
            (exported / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs = AutoTokenizer.from_pretrained(str(exported), split_special_tokens=True, local_files_only=True)
    differences = []
    for start in range(0, len(texts), batch):
        block = list(texts[start : start + batch])
        their_ids = theirs(block, verbose=False)["input_ids"]
        for text, (ids, _), other in zip(block, ours.encode(block), their_ids, strict=True):
            mine = [ours.cls_id, *ids.tolist(), ours.sep_id]
            if mine != other:
                differences.append((text, mine, other))
    return differences
