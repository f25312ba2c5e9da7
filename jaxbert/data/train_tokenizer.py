"""Training a tokenizer, or taking an existing one over.

SentencePiece trains `unigram` and `bpe`, the `tokenizers` library trains `wordpiece`; the result is a folder that
tokenizer.py reads. Text is brought into one form by the normalizer inside its tokenizer.json, and the trainer is fed
through the same normalizer, so what is learned is what is seen later: NFC, optional lower case with accents kept, every
run of white space one space.
"""

import hashlib
import heapq
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Pipeline

from jaxbert import config
from jaxbert.data.tokenizer import (
    BYTES,
    REPORT,
    ROLES,
    SPACE,
    SPECIAL,
    TextTokenizer,
    entries,
    read_folder,
    text_normalizer,
)
from jaxbert.errors import BadInput

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type in sentencepiece_model.proto
NEVER = -1e6  # score of pieces that the best segmentation of plain text must not use: specials, reserved, bytes
LONGEST_LINE = 4192  # bytes; SentencePiece skips longer lines without an error
SKIPPED_BY_SENTENCEPIECE = ("\0", "▅")  # a line with one of these is left out: the latter is its own boundary mark
MAX_LENGTH = 512  # tokens; what tokenizer_config.json says until an export writes its model's positions


def train(texts: Iterator[str], tokenizer: config.Tokenizer, directory: Path) -> dict[str, Any]:
    """Train a tokenizer on documents (or check and copy an existing folder) and write its folder, whole or not at all.

    The folder gets tokenizer.json, tokenizer_config.json, special_tokens_map.json, the trainer's own model file and the
    report, which is also returned: kind, vocab_size, what the trainer saw and what it skipped, and a SHA-256 of pieces
    and scores. At most `tokenizer.train_megabytes` of text are used, the documents with the smallest hashes.
    Same texts, recipe and number of threads → same bytes, except for `wordpiece`, whose trainer is not reproducible
    (huggingface/tokenizers issue 1794); `report["reproducible"]` says so.

    Raises BadInput for a vocabulary that the text does not support or that has no room for its fixed entries, for no
    text, for symbols that cannot be tokens, and for an existing folder without [MASK], [CLS], [SEP] or [PAD].
    """
    if directory.exists():
        raise BadInput(f"{directory}: exists already; delete it to train another tokenizer there")
    for leftover in directory.parent.glob(f"{directory.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(leftover)
    temporary = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        if tokenizer.kind == "folder":
            report = _copy_folder(tokenizer, temporary)
        else:
            normalizer = text_normalizer(tokenizer.lowercase)
            symbols = _user_symbols(tokenizer, normalizer)
            lines, seen = _training_lines(texts, tokenizer, normalizer)
            trainer = _train_wordpiece if tokenizer.kind == "wordpiece" else _train_sentencepiece
            pipeline, details = trainer(lines, tokenizer, normalizer, symbols, temporary)
            _finish(pipeline, tokenizer, symbols)
            pipeline.save(str(temporary / "tokenizer.json"))
            _write_configuration(temporary, dict(zip(ROLES, SPECIAL, strict=True)), MAX_LENGTH)
            report = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, **details, **seen}
        (temporary / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _user_symbols(tokenizer: config.Tokenizer, normalizer: normalizers.Sequence) -> list[str]:
    symbols = [normalizer.normalize_str(symbol) for symbol in tokenizer.user_symbols]
    fixed = set(SPECIAL + BYTES) | set(_reserved(tokenizer))
    for written, symbol in zip(tokenizer.user_symbols, symbols, strict=True):
        if not symbol or " " in symbol or symbol in fixed or symbols.count(symbol) > 1:
            problem = "repeated" if symbols.count(symbol) > 1 else "an entry that every tokenizer has"
            problem = "empty or holds white space" if not symbol or " " in symbol else problem
            raise BadInput(f"tokenizer.user_symbols: {written!r} is {problem}; leave it out")
    return symbols


def _reserved(tokenizer: config.Tokenizer) -> list[str]:
    return [f"[unused{i}]" for i in range(tokenizer.reserved)]


def _training_lines(
    texts: Iterator[str], tokenizer: config.Tokenizer, normalizer: normalizers.Sequence
) -> tuple[list[str], dict[str, Any]]:
    """The normalized lines that the trainer gets, by their documents' hashes, and the counts for the report."""
    chosen: list[tuple[int, int, str]] = []  # a heap: the document with the largest hash goes first
    size, limit, documents = 0, round(tokenizer.train_megabytes * 1e6), 0
    for documents, text in enumerate(texts, 1):
        content = text.encode()
        heapq.heappush(chosen, (-int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()), documents, text))
        size += len(content)
        while size > limit and len(chosen) > 1:
            size -= len(heapq.heappop(chosen)[2].encode())
    lines, skipped = [], Counter({"longer_than_4192_bytes": 0, "reserved_character": 0})
    for _, _, text in sorted(chosen):
        for paragraph in text.split("\n"):
            for line in _cut(normalizer.normalize_str(paragraph).strip()):
                if len(line.encode()) > LONGEST_LINE:
                    skipped["longer_than_4192_bytes"] += 1
                elif tokenizer.kind != "wordpiece" and any(c in line for c in SKIPPED_BY_SENTENCEPIECE):
                    skipped["reserved_character"] += 1
                elif line:
                    lines.append(line)
    if not lines:
        raise BadInput(f"tokenizer.kind: {tokenizer.kind!r} needs text to train on, and no line of it is left")
    counts = {"documents": documents, "documents_used": len(chosen), "bytes_used": size, "lines": len(lines)}
    return lines, {**counts, "skipped_lines": dict(skipped)}


def _cut(paragraph: str) -> Iterator[str]:
    """A paragraph in parts of at most LONGEST_LINE bytes, cut at spaces; a longer word stays whole."""
    if len(paragraph) * 4 <= LONGEST_LINE or len(paragraph.encode()) <= LONGEST_LINE:
        yield paragraph
        return
    part: list[str] = []
    size = 0
    for word in paragraph.split(" "):
        length = len(word.encode()) + 1
        if part and size + length > LONGEST_LINE:
            yield " ".join(part)
            part, size = [], 0
        part.append(word)
        size += length
    yield " ".join(part)


def _train_sentencepiece(
    lines: list[str], tokenizer: config.Tokenizer, normalizer: normalizers.Sequence, symbols: list[str], directory: Path
) -> tuple[Pipeline, dict[str, Any]]:
    import sentencepiece

    fixed = (*SPECIAL, *_reserved(tokenizer), *BYTES)
    # A fixed entry with an unknown character would be the cheapest way to read itself in plain text, so all characters
    # of those that normalized text can contain are made known.
    required = sorted({c for entry in fixed if normalizer.normalize_str(entry) == entry for c in entry})
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            num_threads=tokenizer.threads,
            normalization_rule_name="identity",
            byte_fallback=True,
            split_digits=tokenizer.split_digits,
            max_sentence_length=LONGEST_LINE,
            required_chars="".join(required),
            control_symbols=[SPECIAL[4], *_reserved(tokenizer)],
            user_defined_symbols=symbols,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=SPECIAL[0],
            unk_piece=SPECIAL[1],
            bos_piece=SPECIAL[2],
            eos_piece=SPECIAL[3],
            minloglevel=2,  # errors
        )
    except RuntimeError as error:
        raise _vocabulary_error(str(error), tokenizer.vocab_size) from None
    (directory / "sentencepiece.model").write_bytes(model.getvalue())
    return _from_sentencepiece(model.getvalue(), tokenizer.kind, symbols, normalizer)


def _vocabulary_error(message: str, vocab_size: int) -> BadInput:
    """SentencePiece's message in the recipe's terms."""
    if most := re.search(r"Vocabulary size too high .*<= (\d+)", message):
        return _too_large(vocab_size, int(most[1]))
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return _too_small(vocab_size, int(least[1]))
    return BadInput(f"tokenizer.vocab_size: {vocab_size} does not work with this text; SentencePiece says: {message}")


def _too_large(vocab_size: int, most: int) -> BadInput:
    return BadInput(
        f"tokenizer.vocab_size: {vocab_size} is more than the text supports; the largest that works is {most} "
        f"(--config.tokenizer.vocab_size={most}), or give more text"
    )


def _too_small(vocab_size: int, least: int) -> BadInput:
    return BadInput(
        f"tokenizer.vocab_size: {vocab_size} has no room for special tokens, bytes, reserved entries, user symbols and "
        f"the characters of the text; the smallest that works is {least}"
    )


def _from_sentencepiece(
    model: bytes, kind: str, symbols: list[str], normalizer: normalizers.Sequence
) -> tuple[Pipeline, dict[str, Any]]:
    """The same segmentation as a `tokenizers` pipeline, built from the model, and details for the report.

    Two differences are left: of segmentations with exactly the same score SentencePiece may take the other one (1 or 2
    lines of 25,091 of Galician), and it puts a lone ▁ before a user symbol that begins the text. The model is read
    through the processor: the proto's Python module asks for a newer protobuf than Apache Beam allows.
    """
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    entries = [
        (processor.IdToPiece(i), processor.GetScore(i), _type(processor, i, symbols))
        for i in range(processor.GetPieceSize())
    ]
    if kind == "unigram":
        scores = [(piece, score if type == NORMAL else NEVER) for piece, score, type in entries]
        pipeline = Pipeline(models.Unigram(scores, unk_id=processor.unk_id(), byte_fallback=True))
    else:
        merges = _merges({piece: (-score, i) for i, (piece, score, type) in enumerate(entries) if type == NORMAL})
        ids = {piece: i for i, (piece, _, _) in enumerate(entries)}
        pipeline = Pipeline(models.BPE(ids, merges, unk_token=SPECIAL[1], fuse_unk=True, byte_fallback=True))
    pipeline.normalizer = normalizer
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first")
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # The model file names its training settings, so its hash says less than that of pieces and scores.
    digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
    trainer = f"sentencepiece {sentencepiece.__version__}"
    return pipeline, {"trainer": trainer, "reproducible": True, "pieces_sha256": digest}


def _type(processor: Any, id: int, symbols: list[str]) -> int:
    for type, is_it in (
        (UNKNOWN, processor.IsUnknown),
        (CONTROL, processor.IsControl),
        (UNUSED, processor.IsUnused),
        (BYTE, processor.IsByte),
    ):
        if is_it(id):
            return type
    return USER_DEFINED if processor.IdToPiece(id) in symbols else NORMAL


def _merges(rank: dict[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """BPE merges from pieces and their ranks: every way to split a piece into two pieces, in the order of training."""
    merges = []
    for piece, order in rank.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in rank and right in rank:
                merges.append((order[0], rank[left][1], rank[right][1], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _train_wordpiece(
    lines: list[str], tokenizer: config.Tokenizer, normalizer: normalizers.Sequence, symbols: list[str], directory: Path
) -> tuple[Pipeline, dict[str, Any]]:
    import tokenizers

    pipeline = Pipeline(models.WordPiece(unk_token=SPECIAL[1]))
    pipeline.normalizer = normalizer
    split: list[Any] = [pre_tokenizers.BertPreTokenizer()]
    split += [pre_tokenizers.Digits(individual_digits=True)] if tokenizer.split_digits else []
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(split)
    pipeline.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=tokenizer.vocab_size,
        limit_alphabet=1000,  # rarer characters become [UNK]; a text in several scripts has thousands
        special_tokens=[*SPECIAL, *_reserved(tokenizer), *symbols],  # first in the vocabulary, in this order
        show_progress=False,
    )
    pipeline.train_from_iterator(lines, trainer, length=len(lines))
    pieces = entries(pipeline)
    if len(pieces) != tokenizer.vocab_size:
        wrong = _too_large if len(pieces) < tokenizer.vocab_size else _too_small
        raise wrong(tokenizer.vocab_size, len(pieces))
    # Training has added the trainer's special tokens, all alike; `_finish` adds them with what differs between them.
    fresh = Pipeline(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token=SPECIAL[1]))
    fresh.normalizer, fresh.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    fresh.decoder = pipeline.decoder
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    digest = hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
    note = "the WordPiece trainer is not reproducible: another run on the same text gives another vocabulary"
    trainer_name = f"tokenizers {tokenizers.__version__}"
    return fresh, {"trainer": trainer_name, "reproducible": False, "note": note, "pieces_sha256": digest}


def _finish(pipeline: Pipeline, tokenizer: config.Tokenizer, symbols: list[str]) -> None:
    """Added tokens and BERT's templates: [CLS] A [SEP] B [SEP] with token types 0 and 1."""
    size = pipeline.get_vocab_size()
    for name in (*SPECIAL, *_reserved(tokenizer)):  # [MASK] takes the space before it: "O [MASK] foi" has no stray ▁
        pipeline.add_special_tokens([AddedToken(name, special=True, normalized=False, lstrip=name == SPECIAL[4])])
    pipeline.add_tokens([AddedToken(symbol, special=False, normalized=True) for symbol in symbols])
    _set_template(pipeline, SPECIAL[2], SPECIAL[3])
    if pipeline.get_vocab_size() != size:
        raise RuntimeError(f"added tokens that the vocabulary of {size} lacks")


def _set_template(pipeline: Pipeline, cls: str, sep: str) -> None:
    pipeline.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, pipeline.token_to_id(token)) for token in (cls, sep)],
    )


def _write_configuration(directory: Path, roles: dict[str, str], max_length: int) -> None:
    """What transformers needs beside tokenizer.json. Without this class name it rebuilds the pipeline, wrongly."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **roles,
    }
    for name, content in (("tokenizer_config.json", settings), ("special_tokens_map.json", roles)):
        (directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_folder(tokenizer: config.Tokenizer, directory: Path) -> dict[str, Any]:
    """Copy an existing tokenizer, repaired where it would cut text or read special tokens out of plain text."""
    defaults = config.Tokenizer()
    for field in ("lowercase", "split_digits", "user_symbols", "reserved"):
        if getattr(tokenizer, field) != getattr(defaults, field):
            raise BadInput(f"tokenizer.{field}: an existing tokenizer (kind 'folder') is used as it is; leave it out")
    source = Path(tokenizer.folder)
    pipeline, roles = read_folder(source)
    missing = sorted(set(roles.values()) - _added(pipeline))  # in the vocabulary, but not declared as added tokens
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    layout = json.loads(pipeline.to_str())
    for token in layout["added_tokens"]:
        token["special"] |= token["content"] in roles.values()
    if layout["model"]["type"] == "Unigram":
        names = {token["content"] for token in layout["added_tokens"] if token["special"]} | set(BYTES)
        layout["model"]["vocab"] = [[p, NEVER if p in names else score] for p, score in layout["model"]["vocab"]]
    pipeline = Pipeline.from_str(json.dumps(layout))
    if pipeline.encode("").ids != [pipeline.token_to_id(roles[role]) for role in ("cls_token", "sep_token")]:
        _set_template(pipeline, roles["cls_token"], roles["sep_token"])
    pipeline.save(str(directory / "tokenizer.json"))
    max_length = MAX_LENGTH
    if (source / "tokenizer_config.json").is_file():
        settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
        max_length = min(settings.get("model_max_length") or MAX_LENGTH, 2**31 - 1)
    _write_configuration(directory, roles, max_length)
    loaded = TextTokenizer.load(directory)
    for token in sorted(_added(pipeline)):
        if loaded.special_ids & set(loaded.encode([token])[0][0].tolist()) - {loaded.unk_id}:
            raise BadInput(f"{source}: reads {token!r} in a document as a special token; use another tokenizer")
    digest = hashlib.sha256((source / "tokenizer.json").read_bytes()).hexdigest()
    report = {"kind": "folder", "vocab_size": loaded.vocab_size, "folder": str(source), "reproducible": True}
    return {**report, "source_sha256": digest}


def _added(pipeline: Pipeline) -> set[str]:
    return {token.content for token in pipeline.get_added_tokens_decoder().values()}
