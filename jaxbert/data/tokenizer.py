"""From text to token ids: the one tokenizer that everything uses at run time.

Whatever trained it (train_tokenizer.py), it is one `tokenizer.json`, which preparation, training, evaluation and export
(and PyTorch users, through `transformers.AutoTokenizer`) read.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, normalizers
from tokenizers import Tokenizer as Pipeline

from jaxbert.errors import BadInput

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4 of every tokenizer trained here
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")  # their names in Hugging Face's files
REPORT = "training_report.json"  # what `train` returns, kept in the folder for a preparation that goes on later
SPACE = "▁"  # how SentencePiece writes a space inside a piece
# What `str.split` takes for white space and the normalizer does not, and what is white space to the normalizer alone.
_SPLIT_ELSEWHERE = ("\x1c", "\x1d", "\x1e", "\x1f", SPACE)
MOST_KNOWN = 800_000  # ids of words met that are kept: of about 250,000 words, 50 MB
_WORDS_AT_ONCE = 1024  # that are one text to the pipeline
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
    known: "KnownWords" = dataclasses.field(default_factory=lambda: KnownWords(), repr=False)

    @classmethod
    def load(cls, directory: Path, *, threads: bool = True) -> "TextTokenizer":
        """Open a folder that `train` wrote. BadInput if it is none.

        `threads=False` is for worker processes: there one core each is enough, and `tokenizers` must start no threads.
        """
        if not threads:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        directory = Path(directory)
        pipeline, roles = read_folder(directory)
        pipeline.encode_special_tokens = True  # "[MASK]" in a document is text; the file cannot store this switch
        added = pipeline.get_added_tokens_decoder()
        pieces_V = entries(pipeline)
        special = {i for i, token in added.items() if token.special}
        reserved = re.compile(r"\[unused\d+\]").fullmatch
        special |= {i for i, piece in enumerate(pieces_V) if piece[:1] == "[" and reserved(piece)}
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
        """The pipeline's ids, but each word goes through it once while it is known: 2.5 times as fast.

        A text is split as it is, before the normalizer: NFC composes nothing across white space and makes none, lower
        case is by character, and white space of any kind and length ends as one ▁. Where `str.split` and the
        normalizer do not agree about white space the text goes through the pipeline whole.
        """
        whole = [i for i, text in enumerate(texts) if any(map(text.__contains__, _SPLIT_ELSEWHERE))]
        split = [text.split() for text in texts]
        for i in whole:
            split[i] = []
        ids = self.known.ids_of(split, self._encode_words)
        encoded = self.tokenizer.encode_batch_fast([texts[i] for i in whole], add_special_tokens=False)
        for i, encoding in zip(whole, encoded, strict=True):
            ids[i] = np.array(encoding.ids, np.int32)
        return ids

    def _encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of words without white space, one word after another, int32; how many of each, int64)."""
        assert self.starts_word_V is not None
        joined = [" ".join(words[i : i + _WORDS_AT_ONCE]) for i in range(0, len(words), _WORDS_AT_ONCE)]
        encoded = self.tokenizer.encode_batch_fast(joined, add_special_tokens=False)
        ids = np.concatenate([np.zeros(0, np.int32), *(np.array(encoding.ids, np.int32) for encoding in encoded)])
        starts = np.flatnonzero(self.starts_word_V[ids])
        assert len(starts) == len(words)
        return ids, np.diff(starts, append=len(ids))

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


Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # words → (ids, int32; how many of each, int64)


class KnownWords:
    """Words that were met and their ids, which lie one after another: of word n `ids[ends[n] : ends[n + 1]]`.

    Beam runs the works of a process in threads, which share these; one at a time looks and adds.
    """

    def __init__(self) -> None:
        """None yet."""
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.number = collections.defaultdict[str, int](itertools.count().__next__)  # a new word gets the next number
        self.ids, self.ends = np.zeros(0, np.int32), np.zeros(1, np.int64)

    def ids_of(self, split: Sequence[Sequence[str]], encode: Encode) -> list[np.ndarray]:
        """The ids of each text, int32, given as its words. `encode` is asked for words that are new."""
        words = list(itertools.chain.from_iterable(split))
        with self._lock:
            known, begin_W, length_W = self._look(words, encode)
        end_W = np.cumsum(length_W)
        # Of each id: where it lies among the known, which is as far behind the word's first id as here.
        place_T = np.arange(length_W.sum()) + np.repeat(begin_W - (end_W - length_W), length_W)
        bounds = np.r_[0, end_W][np.cumsum([0, *map(len, split)])]
        ids_T = known[place_T]
        return [ids_T[begin:end] for begin, end in itertools.pairwise(bounds.tolist())]

    def _look(self, words: Sequence[str], encode: Encode) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(`ids`, where those of each word begin in them, how many they are), after new words were added."""
        if len(self.ids) > MOST_KNOWN or len(self.ends) != len(self.number) + 1:  # the last `encode` raised
            self._forget()
        before = len(self.number)
        number_W = np.fromiter(map(self.number.__getitem__, words), np.int64, len(words))
        new = list(itertools.islice(reversed(self.number), len(self.number) - before))[::-1]
        if new:
            ids, lengths = encode(new)
            self.ids = np.concatenate((self.ids, ids))
            self.ends = np.concatenate((self.ends, self.ends[-1] + np.cumsum(lengths)))
        return self.ids, self.ends[number_W], np.diff(self.ends)[number_W]


def text_normalizer(lowercase: bool) -> normalizers.Sequence:
    """NFC, lower case, white space: of every tokenizer trained here, and of what its trainer is fed."""
    steps: list[Any] = [normalizers.NFC()]
    if lowercase:  # Unicode lowers İ to i and a combining dot, which would make "İstanbul" a word of its own
        steps += [normalizers.Replace("İ", "i"), normalizers.Lowercase()]
    # Only what has to change is matched, which is faster than every space. A ▁ in the text would be read as a space.
    # A leading space stays (the pre-tokenizer would add one): after [MASK] the text goes on, with or without a space.
    spaces = normalizers.Replace(Regex(rf"[\s{SPACE}]{{2,}}|[^\S ]|{SPACE}"), " ")
    return normalizers.Sequence([*steps, spaces, normalizers.Strip(left=False, right=True)])


def _words_apart(layout: dict[str, Any]) -> bool:
    """Whether the pipeline is one that `train` makes of a SentencePiece model, without user symbols: `text_normalizer`
    leaves single spaces alone, and no piece reaches across one."""
    before = layout["pre_tokenizer"] or {}
    return (
        layout["model"]["type"] in ("Unigram", "BPE")
        and (before.get("type"), before.get("prepend_scheme"), before.get("split")) == ("Metaspace", "first", True)
        and layout["normalizer"]
        in [json.loads(text_normalizer(lowercase).__getstate__()) for lowercase in (False, True)]
        and all(token["special"] for token in layout["added_tokens"])
    )


def read_folder(folder: Path) -> tuple[Pipeline, dict[str, str]]:
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
