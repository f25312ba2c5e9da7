"""Tokenizers of others: a run's folder from theirs, and the check that PyTorch users will see the same ids."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, BertWordPieceTokenizer
from tokenizers import Tokenizer as Pipeline

from jaxbert import config
from jaxbert.data.tokenizer import REPORT, TextTokenizer
from jaxbert.data.train_tokenizer import train
from jaxbert.errors import BadInput

ROLES_FILES = ("tokenizer_config.json", "special_tokens_map.json")


def import_tokenizer(source: Path, directory: Path, vocab_size: int | None) -> int:
    """Write a run's tokenizer folder from a Hugging Face one; returns how many reserved entries were added.

    `vocab_size`: rows of the model's table, None where the table is made for the tokenizer. Where it has more than
    there are tokens (published tables are often padded) the rest become [unused…] entries, so that no row is lost. A
    folder with vocab.txt alone gets BERT's WordPiece, with the options of its tokenizer_config.json. Raises BadInput if
    there is no tokenizer, if it lacks a special token, or if it has more tokens than the table has rows.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = source
        if not (source / "tokenizer.json").is_file() and (source / "vocab.txt").is_file():
            folder = Path(temporary)
            _wordpiece(source).save(str(folder / "tokenizer.json"))
            for name in ROLES_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        train(iter(()), config.Tokenizer(kind="folder", folder=str(folder)), directory)
    tokens = TextTokenizer.load(directory).vocab_size
    report = json.loads((directory / REPORT).read_text(encoding="utf-8")) | {"folder": source.name}
    vocab_size = tokens if vocab_size is None else vocab_size
    if tokens > vocab_size:
        raise BadInput(
            f"--tokenizer: {source} has {tokens:,} tokens, the weights have {vocab_size:,} rows; give the tokenizer "
            "that the model was trained with"
        )
    if tokens < vocab_size:
        _reserve(directory / "tokenizer.json", vocab_size - tokens)
        report["vocab_size"] = TextTokenizer.load(directory).vocab_size
    (directory / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if report["vocab_size"] != vocab_size:
        raise BadInput(
            f"--tokenizer: {source} has holes in its ids, so its entries cannot be counted up to the table's"
        )
    return vocab_size - tokens


def _wordpiece(source: Path) -> Any:
    """BERT's tokenizer of a vocab.txt, with transformers' defaults for what tokenizer_config.json does not say."""
    given: dict[str, Any] = {}
    if (source / "tokenizer_config.json").is_file():
        given = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    return BertWordPieceTokenizer(
        str(source / "vocab.txt"),
        lowercase=given.get("do_lower_case", True),
        strip_accents=given.get("strip_accents"),
        handle_chinese_chars=given.get("tokenize_chinese_chars", True),
    )


def _reserve(file: Path, count: int) -> None:
    """Add `count` entries [unusedN] under names that the tokenizer does not have."""
    pipeline = Pipeline.from_file(str(file))
    have = set(pipeline.get_vocab(with_added_tokens=True))
    unused = (name for number in itertools.count() if (name := f"[unused{number}]") not in have)
    names = itertools.islice(unused, count)
    pipeline.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    pipeline.save(str(file))


def compare_with_transformers(
    directory: Path,
    texts: Sequence[str],
    *,
    model_type: str = "bert",
    batch: int = 256,
    trust_remote_code: bool = False,
) -> list[tuple[str, list[int], list[int]]]:
    """The texts whose ids, with [CLS] and [SEP], differ between TextTokenizer and `transformers.AutoTokenizer`.

    Each difference is (text, our ids, their ids). A config.json can make AutoTokenizer choose another tokenizer class,
    so a folder without one is read as a copy with one that names `model_type`; an exported folder is read as it is,
    with `trust_remote_code` if it carries its own classes. `split_special_tokens=True` makes it take special tokens in
    the text for text. Raises ImportError where transformers is not installed.
    """
    from transformers import AutoTokenizer

    ours = TextTokenizer.load(directory)
    with tempfile.TemporaryDirectory() as temporary:
        exported = directory
        if not (directory / "config.json").is_file():
            exported = Path(temporary) / "exported"
            shutil.copytree(directory, exported)
            (exported / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs = AutoTokenizer.from_pretrained(
            str(exported), split_special_tokens=True, local_files_only=True, trust_remote_code=trust_remote_code
        )
    differences = []
    for start in range(0, len(texts), batch):
        block = list(texts[start : start + batch])
        their_ids = theirs(block, verbose=False)["input_ids"]
        for text, (ids, _), other in zip(block, ours.encode(block), their_ids, strict=True):
            mine = [ours.cls_id, *ids.tolist(), ours.sep_id]
            if mine != other:
                differences.append((text, mine, other))
    return differences


def compare_apart(directory: Path, texts: Sequence[str]) -> list[tuple[str, list[int], list[int]]]:
    """The same, in a process where torch is not to be found: transformers would import it, which takes longer than all
    else and which a tokenizer never uses. One thread. Raises ImportError where transformers is not installed."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "TOKENIZERS_PARALLELISM": "false",  # threads of a batch wait for each other, spinning, where cores are taken
        "TRANSFORMERS_VERBOSITY": "error",  # it would say that there is no torch
    }
    command = [sys.executable, "-m", "jaxbert.convert.tokenizer", str(directory)]
    done = subprocess.run(command, input=json.dumps(list(texts)).encode(), capture_output=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
    found = json.loads(done.stdout)
    if found is None:
        raise ImportError("transformers is not installed")
    return [(text, mine, other) for text, mine, other in found]


def _compare_stdin(directory: str) -> None:
    """The process of `compare_apart`: texts as a JSON list → their differences, or null without transformers."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # to Python, and so to transformers: not installed
    try:
        differences = compare_with_transformers(Path(directory), json.load(sys.stdin.buffer))
    except ImportError:
        differences = None
    json.dump(differences, sys.stdout)


if __name__ == "__main__":
    _compare_stdin(sys.argv[1])
