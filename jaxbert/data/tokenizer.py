"""From text to token ids: training a tokenizer, and the one tokenizer that everything uses at run time.

SentencePiece trains `unigram` and `bpe`, the `tokenizers` library trains `wordpiece`; whatever trained it, the result
is one `tokenizer.json`, which preparation, training, evaluation and export (and PyTorch users, through
`transformers.AutoTokenizer`) read. Text is brought into one form by the normalizer inside that file, and the trainer
is fed through the same normalizer, so what is learned is what is seen later: NFC, optional lower case with accents
kept, every run of white space one space.
"""

import dataclasses
import hashlib
import heapq
import io
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Pipeline

from jaxbert import config
from jaxbert.errors import BadInput

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4 of every tokenizer trained here
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # their names in Hugging Face's files
REPORT = "training_report.json"  # what `train` returns, kept in the folder for a preparation that goes on later
SPACE = "▁"  # how SentencePiece writes a space inside a piece
SPACES = rf"[\s{SPACE}]{{2,}}|[^\S ]|{SPACE}"  # what the normalizer turns into one space
MOST_KNOWN, LONGEST_KNOWN = 200_000, 40  # words whose ids are kept, about 50 MB; characters of one
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type in sentencepiece_model.proto
NEVER = -1e6  # score of pieces that the best segmentation of plain text must not use: specials, reserved, bytes
LONGEST_LINE = 4192  # bytes; SentencePiece skips longer lines without an error
SKIPPED_BY_SENTENCEPIECE = ("\0", "▅")  # a line with one of these is left out: the latter is its own boundary mark
MAX_LENGTH = 512  # tokens; what tokenizer_config.json says until an export writes its model's positions
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclasses.dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A finished tokenizer folder, open. Arrays indexed by token id have the true vocabulary size V.

    `special_ids` holds specials and reserved entries: never masked, never put in as a random replacement. Byte pieces
    and user symbols are ordinary tokens. `unk_id` is None for a folder whose tokenizer needs none (byte-level BPE).
    """

    directory: Path
    tokenizer: Pipeline
    fingerprint: str  # SHA-256 of tokenizer.json
    vocab_size: int
    pad_id: int
    unk_id: int | None
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: frozenset[int]
    starts_word_V: np.ndarray | None  # bool; None: only the pre-tokenizer can tell
    characters_V: np.ndarray  # int32
    words_apart: bool  # white space alone separates words, so that each is encoded by itself
    known: dict[str, list[int]] = dataclasses.field(default_factory=dict, repr=False)  # words met → ids

    @classmethod
    def load(cls, directory: Path, *, threads: bool = True) -> "TextTokenizer":
        """Open a folder that `train` wrote. BadInput if it is none.

        `threads=False` is for worker processes: there one core each is enough, and `tokenizers` must start no threads.
        """
        if not threads:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        directory = Path(directory)
        pipeline, roles = _read_folder(directory)
        pipeline.encode_special_tokens = True  # "[MASK]" in a document is text; the file cannot store this switch
        added = pipeline.get_added_tokens_decoder()
        pieces_V = entries(pipeline)
        special = {i for i, token in added.items() if token.special}
        special |= {i for i, piece in enumerate(pieces_V) if re.fullmatch(r"\[unused\d+\]", piece)}
        vocabulary = pipeline.get_vocab(with_added_tokens=True)
        ids = {role: vocabulary[token] for role, token in roles.items()}
        layout = json.loads(pipeline.to_str())
        return cls(
            directory=directory,
            tokenizer=pipeline,
            fingerprint=hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest(),
            vocab_size=len(pieces_V),
            pad_id=ids["pad_token"],
            unk_id=ids.get("unk_token"),
            cls_id=ids["cls_token"],
            sep_id=ids["sep_token"],
            mask_id=ids["mask_token"],
            special_ids=frozenset(special | set(ids.values())),
            starts_word_V=_starts_word(layout, pieces_V, {i for i in added if i not in special}),
            characters_V=_characters(layout, pieces_V, special | set(ids.values()), ids.get("unk_token")),
            words_apart=_words_apart(layout),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path: a pickled pipeline would lose `encode_special_tokens`."""
        return TextTokenizer.load, (self.directory,)

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids (int32) and "this token starts a word" (bool) of each text, without [CLS] and [SEP].

        A word is a pre-token: what white space separates, for WordPiece and byte-level BPE also at punctuation; a user
        symbol is a word. Special tokens written in the text are text. Threads of `tokenizers` share the batch.
        """
        if self.starts_word_V is None:
            return [self._encode_by_pretokens(e) for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]
        if self.words_apart:
            ids = self._encode_by_word(texts)
        else:
            encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ids = [np.array(encoding.ids, np.int32) for encoding in encoded]
        return [(ids_T, self.starts_word_V[ids_T]) for ids_T in ids]

    def _encode_by_word(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The pipeline's ids, but each word goes through it once while it is known: several times as fast."""
        split = [self.tokenizer.normalizer.normalize_str(text).split(" ") for text in texts]
        if len(self.known) > MOST_KNOWN:
            self.known.clear()
        new = list(dict.fromkeys(word for words in split for word in words if word not in self.known))
        encoded = self.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        self.known.update((word, encoding.ids) for word, encoding in zip(new, encoded, strict=True))
        ids = [np.fromiter(itertools.chain.from_iterable(map(self.known.__getitem__, w)), np.int32) for w in split]
        for word in new:
            if len(word) > LONGEST_KNOWN:
                del self.known[word]
        return ids

    @staticmethod
    def _encode_by_pretokens(encoding: Any) -> tuple[np.ndarray, np.ndarray]:
        words = np.array([-1] + encoding.word_ids, np.int32)
        return np.array(encoding.ids, np.int32), words[1:] != words[:-1]

    def encode_with_places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `encode` (int32), and at which character of `text` each token begins (int64)."""
        encoding = self.tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return np.array(encoding.ids, np.int32), np.array([begin for begin, _ in encoding.offsets], np.int64)

    def encode_with_masks(self, text: str) -> np.ndarray:
        """[CLS] text [SEP] as int32 ids in which a written [MASK] is the mask token, as transformers reads it."""
        self.tokenizer.encode_special_tokens = False
        try:
            mask = self.tokenizer.id_to_token(self.mask_id) or SPECIAL[4]  # a folder may call it <mask>
            return np.array(self.tokenizer.encode(text.replace(SPECIAL[4], mask)).ids, np.int32)
        finally:
            self.tokenizer.encode_special_tokens = True

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of token ids; special tokens are shown."""
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def characters(self, ids: np.ndarray) -> np.ndarray:
        """How many characters of (normalized) text each token stands for, int32 of the same shape.

        A leading ▁ is a space and counts one, also at the start of a text, where it is added; so does the space before
        a WordPiece piece that is not a continuation. Of a character spelled in bytes the first byte counts one, the
        others none. [UNK] counts one, other specials and reserved entries none.
        """
        return self.characters_V[ids]


def _words_apart(layout: dict[str, Any]) -> bool:
    """Whether the pipeline is one that `train` makes of a SentencePiece model, without user symbols: after its
    normalizer there are single spaces alone, and no piece reaches across one."""
    before, normal = layout["pre_tokenizer"] or {}, (layout["normalizer"] or {}).get("normalizers", [])
    return (
        layout["model"]["type"] in ("Unigram", "BPE")
        and (before.get("type"), before.get("prepend_scheme"), before.get("split")) == ("Metaspace", "first", True)
        and [step["type"] for step in normal[-2:]] == ["Replace", "Strip"]
        and normal[-2]["pattern"] == {"Regex": SPACES}
        and all(token["special"] for token in layout["added_tokens"])
    )


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
            normalizer = _normalizer(tokenizer)
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


def _normalizer(tokenizer: config.Tokenizer) -> normalizers.Sequence:
    """NFC, lower case, white space: the same object feeds the trainer and goes into tokenizer.json."""
    steps: list[Any] = [normalizers.NFC()]
    if tokenizer.lowercase:  # Unicode lowers İ to i and a combining dot, which would make "İstanbul" a word of its own
        steps += [normalizers.Replace("İ", "i"), normalizers.Lowercase()]
    # Only what has to change is matched, which is faster than every space. A ▁ in the text would be read as a space.
    # A leading space stays (the pre-tokenizer would add one): after [MASK] the text goes on, with or without a space.
    spaces = normalizers.Replace(Regex(SPACES), " ")
    return normalizers.Sequence([*steps, spaces, normalizers.Strip(left=False, right=True)])


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


def _read_folder(folder: Path) -> tuple[Pipeline, dict[str, str]]:
    """A folder's pipeline, cutting and padding nothing, and its special tokens by role (unk_token may be absent)."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BadInput(
            f"{folder}: holds no tokenizer.json; a tokenizer of another format is converted by "
            'transformers.AutoTokenizer.from_pretrained("…").save_pretrained("…")'
        )
    try:
        pipeline = Pipeline.from_file(str(file))
        declared: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                declared |= json.loads((folder / name).read_text(encoding="utf-8"))
    except Exception as error:  # `tokenizers` raises bare Exceptions
        raise BadInput(f"{folder}: is no readable tokenizer: {error}") from None
    pipeline.no_truncation()
    pipeline.no_padding()
    roles = {}
    for role, usual in zip(ROLES, SPECIAL, strict=True):
        token = declared.get(role) or usual
        token = token["content"] if isinstance(token, dict) else token
        if pipeline.token_to_id(token) is not None:
            roles[role] = token
        elif role != "unk_token":
            raise BadInput(
                f"{folder}: its tokenizer has no {role} ({token!r} is not in its vocabulary); masked language "
                "modelling needs pad, cls, sep and mask tokens: name them in its tokenizer_config.json, or train one"
            )
    return pipeline, roles


def _copy_folder(tokenizer: config.Tokenizer, directory: Path) -> dict[str, Any]:
    """Copy an existing tokenizer, repaired where it would cut text or read special tokens out of plain text."""
    defaults = config.Tokenizer()
    for field in ("lowercase", "split_digits", "user_symbols", "reserved"):
        if getattr(tokenizer, field) != getattr(defaults, field):
            raise BadInput(f"tokenizer.{field}: an existing tokenizer (kind 'folder') is used as it is; leave it out")
    source = Path(tokenizer.folder)
    pipeline, roles = _read_folder(source)
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


def entries(pipeline: Pipeline) -> list[str]:
    """Every entry by id; an id that no entry has (some published vocabularies have holes) is ""."""
    vocabulary = pipeline.get_vocab(with_added_tokens=True)
    pieces = [""] * (max(vocabulary.values()) + 1)
    for piece, i in vocabulary.items():
        pieces[i] = piece
    return pieces


def _parts(layout: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The members of a Sequence in tokenizer.json, or the one part itself."""
    return [] if layout is None else layout[key] if layout["type"] == "Sequence" else [layout]


def _starts_word(layout: dict[str, Any], pieces_V: list[str], symbols: set[int]) -> np.ndarray | None:
    """For each entry whether it is always the first token of its pre-token; None where the entry does not tell.

    User symbols, and what follows one, are pre-tokens of their own, so with any of them only an encoding can tell.
    """
    parts = [part["type"] for part in _parts(layout["pre_tokenizer"], "pretokenizers")]
    model = layout["model"]
    if symbols:
        return None
    if model["type"] == "WordPiece" and parts[:1] == ["BertPreTokenizer"]:  # it isolates #: no word starts with ##
        prefix = model["continuing_subword_prefix"]
        return np.array([not piece.startswith(prefix) for piece in pieces_V])
    if parts == ["Metaspace"] and model.get("byte_fallback") and SPACE in pieces_V:  # so no [UNK] swallows a ▁
        metaspace = _parts(layout["pre_tokenizer"], "pretokenizers")[0]
        if metaspace["split"] and metaspace["prepend_scheme"] != "never":
            return np.array([piece.startswith(SPACE) for piece in pieces_V])
    return None


def _characters(layout: dict[str, Any], pieces_V: list[str], special: set[int], unk: int | None) -> np.ndarray:
    """Characters that each entry stands for, int32 (V,)."""
    model, names = layout["model"], json.dumps([layout["pre_tokenizer"], layout["decoder"]])
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        counts = [len(p) - len(prefix) if p.startswith(prefix) else len(p) + 1 for p in pieces_V]
    elif '"ByteLevel"' in names:
        alphabet = byte_alphabet()
        counts = [sum(alphabet.get(c, 0) & 0xC0 != 0x80 for c in p) for p in pieces_V]
    else:
        counts = [len(p) for p in pieces_V]
        if model.get("byte_fallback"):
            byte = {piece: int(value & 0xC0 != 0x80) for value, piece in enumerate(BYTES)}
            counts = [byte.get(p, count) for p, count in zip(pieces_V, counts, strict=True)]
    counts_V = np.array(counts, np.int32)
    counts_V[sorted(special)] = 0
    if unk is not None:
        counts_V[unk] = 1
    return counts_V


def byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's characters: printable Latin-1 stands for itself, the other bytes for U+0100 onwards (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
