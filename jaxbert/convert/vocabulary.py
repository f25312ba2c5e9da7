"""A new vocabulary on an old checkpoint: which old tokens' vectors the vector of each new token is made of.

Both vocabularies are read for what their entries stand for, whatever marks they write: `▁casa`, `Ġcasa` and WordPiece's
`casa` are the word's start "casa"; `ción` of the first two and `##ción` are the same text inside a word. A new token
that has an old one for the same is *shared* and takes its vector, in every method; special tokens go by role. The
others:

    copy        are drawn anew, as in a fresh table
    mean        the mean of the vectors of the pieces into which the old tokenizer cuts their text: Fast Vocabulary
                Transfer (Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression", EMNLP industry)
    similarity  the mean of shared tokens, weighted by sparsemax over the cosines of static vectors of the new corpus:
                FOCUS (Dobler & de Melo 2023, arXiv:2305.14481). Theirs are fastText's, ours static.py's, and what is
                shared is the same text and case, without their looser match

What no method has anything for is drawn anew and counted as fresh: bytes that the old vocabulary lacks, a lone space,
text that it reads as [UNK], under `similarity` tokens too rare for a static vector. The same rule holds for all that
has a row a token: the word table, the head's bias, an untied head's table.
"""

import dataclasses
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxbert.convert.static import neighbours, static_vectors
from jaxbert.data.tokenizer import BYTES, ROLES, SPACE, TextTokenizer, byte_alphabet, entries
from jaxbert.errors import BadInput

METHODS = ("copy", "mean", "similarity")
POSITION_METHODS = ("tile", "interpolate")


class Meaning(NamedTuple):
    """What an entry of a vocabulary stands for. `starts_word` None: inside a word and at its start alike."""

    kind: Literal["text", "bytes", "special"]
    text: str  # of bytes: their Latin-1 characters; of a special token: its role, or its name if it has none
    starts_word: bool | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Row i of `mixing_VU` says how much of each old token new token i takes; it sums to 1, or is empty: drawn anew."""

    mixing_VU: Any  # scipy.sparse.csr_array (new V, old V), float64
    shared: int  # new tokens, by what they are made of; the three sum to V
    composed: int
    fresh: int

    def table(self, old: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        """A new table of the shape of `fresh` (padded V, …), whose rows are those of `fresh` where nothing is mixed."""
        V, U = self.mixing_VU.shape
        mixed_VX = self.mixing_VU @ old[:U].reshape(U, -1).astype(np.float64)
        made_V = np.flatnonzero(np.diff(self.mixing_VU.indptr))
        new = fresh.copy()
        new[made_V] = mixed_VX[made_V].reshape(len(made_V), *old.shape[1:]).astype(new.dtype)
        return new


class _Marks(NamedTuple):
    """How a vocabulary tells a word's first piece from the others: by a mark on the first, or on the others."""

    mark: str
    on: Literal["first", "others", "none"]
    byte_level: bool = False
    punctuation: bool = False  # is a word of its own wherever it stands, as in BERT
    ideographs: bool = False  # likewise

    def stands_alone(self, character: str) -> bool:
        """Whether the pre-tokenizer makes a word of it wherever it stands."""
        if self.ideographs and unicodedata.name(character, "").startswith("CJK "):
            return True
        ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
        return self.punctuation and (ascii_symbol or unicodedata.category(character).startswith("P"))


def plan(old: TextTokenizer, new: TextTokenizer, method: str, corpus: Path = Path()) -> Plan:
    """What each of the new tokens is made of. `corpus`: prepared with the new tokenizer, for `similarity` alone.

    Raises BadInput for a tokenizer whose entries do not tell where words start, for a corpus that is missing or was
    prepared with another tokenizer, and where `similarity` has no shared token to start from.
    """
    from scipy import sparse  # jax brings it

    old_ids: dict[Meaning, int] = {}
    for i, meaning in enumerate(meanings(old, "--source")):
        if meaning is not None:
            old_ids.setdefault(meaning, i)
    new_meanings = meanings(new, "--tokenizer")
    found = {i: _find(meaning, old_ids) for i, meaning in enumerate(new_meanings) if meaning is not None}
    shared = {i: k for i, k in found.items() if k is not None}
    parts: dict[int, tuple[Sequence[int], Sequence[float]]] = {i: ([k], [1.0]) for i, k in shared.items()}
    others = [i for i in range(new.vocab_size) if i not in shared]
    if method == "mean":
        cut = _Cutter(old)
        for i in others:
            if ids := cut(new_meanings[i]):
                parts[i] = ids, [1 / len(ids)] * len(ids)
    elif method == "similarity":
        parts |= _similar(new, corpus, shared, new_meanings, others)
    rows = [i for i, (ids, _) in parts.items() for _ in ids]
    columns = [k for ids, _ in parts.values() for k in ids]
    values = [w for _, weights in parts.values() for w in weights]
    mixing_VU = sparse.csr_array((values, (rows, columns)), shape=(new.vocab_size, old.vocab_size), dtype=np.float64)
    return Plan(mixing_VU, len(shared), len(parts) - len(shared), new.vocab_size - len(parts))


def _find(meaning: Meaning, ids: dict[Meaning, int]) -> int | None:
    """The token with this meaning; where one side does not tell a word's start from its inside, either counts."""
    others = (False, True) if meaning.starts_word is None else (None,)
    same = (meaning, *(meaning._replace(starts_word=starts) for starts in others))
    return next((ids[m] for m in same if m in ids), None)


def _similar(
    new: TextTokenizer,
    corpus: Path,
    shared: dict[int, int],
    new_meanings: list[Meaning | None],
    others: list[int],
) -> dict[int, tuple[Sequence[int], Sequence[float]]]:
    if not (corpus / "tokens" / "train").is_dir():
        raise BadInput(
            f"--corpus: {corpus} is no prepared corpus (it has no tokens/train), and --method=similarity learns from "
            "one; give the folder that python -m jaxbert.prepare wrote, or --method=mean"
        )
    if TextTokenizer.load(corpus / "tokenizer").fingerprint != new.fingerprint:
        raise BadInput(
            f"--corpus: {corpus} was tokenized with another tokenizer than --tokenizer; give the corpus's own"
        )
    vectors_VD = static_vectors(corpus / "tokens" / "train", new.vocab_size)
    anchors_S = np.array([i for i in shared if new_meanings[i].kind == "text"], np.int64)
    if not len(anchors_S) or not vectors_VD[anchors_S].any():
        raise BadInput(
            f"--method=similarity: none of the tokens that both vocabularies share occurs in {corpus} often enough, so "
            "there is nothing to be similar to; take --method=mean"
        )
    found = neighbours(vectors_VD, anchors_S, np.array(others, np.int64))
    return {
        i: ([shared[int(s)] for s in chosen], weights.tolist())
        for i, (chosen, weights) in zip(others, found, strict=True)
        if len(chosen)
    }


# --- what entries stand for ---


def meanings(tokenizer: TextTokenizer, flag: str) -> list[Meaning | None]:
    """What each entry of a vocabulary stands for, by id; None: for no text (a hole in the ids, the lone mark of a
    space, BERT's `##.`, which no text gives).

    Raises BadInput naming `flag` for a tokenizer whose entries do not tell where words start.
    """
    pipeline = tokenizer.tokenizer
    layout = json.loads(pipeline.to_str())
    marks, added = _marks(layout, flag), pipeline.get_added_tokens_decoder()
    by_role = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    roles = dict(zip(by_role, ROLES, strict=True))
    alphabet = byte_alphabet()
    byte_pieces = {piece: byte for byte, piece in enumerate(BYTES)} if layout["model"].get("byte_fallback") else {}
    found: list[Meaning | None] = []
    for i, piece in enumerate(entries(pipeline)):
        if i in roles or i in tokenizer.special_ids:
            found.append(Meaning("special", roles.get(i, piece)))
        elif i in added:  # a user symbol
            found.append(Meaning("text", piece))
        elif piece in byte_pieces:
            found.append(Meaning("bytes", chr(byte_pieces[piece])))
        elif marks.byte_level and all(c in alphabet for c in piece):
            found.append(_of_bytes(bytes(alphabet[c] for c in piece)))
        else:
            found.append(_of_text(piece, marks))
    return found


def _marks(layout: dict[str, Any], flag: str) -> _Marks:
    model, normalizer = layout["model"], json.dumps(layout["normalizer"])
    parts = json.dumps([layout["pre_tokenizer"], layout["decoder"]], ensure_ascii=False)
    if model.get("end_of_word_suffix"):
        raise BadInput(
            f"{flag}: its tokenizer marks the ends of words ({model['end_of_word_suffix']!r}), not their starts, which "
            "is not supported; it must be one of kind unigram, bpe or wordpiece"
        )
    if prefix := model.get("continuing_subword_prefix"):
        alone = '"BertPreTokenizer"' in parts or '"Punctuation"' in parts
        return _Marks(prefix, "others", punctuation=alone, ideographs='"handle_chinese_chars": true' in normalizer)
    if '"ByteLevel"' in parts:
        return _Marks("Ġ", "first", byte_level=True)
    if SPACE in parts:
        return _Marks(SPACE, "first")
    if model["type"] == "WordLevel":
        return _Marks("", "none")
    raise BadInput(
        f"{flag}: its tokenizer's entries do not tell where words start, so they cannot be compared with another "
        "vocabulary's; it must be one of kind unigram, bpe or wordpiece"
    )


def _of_text(piece: str, marks: _Marks) -> Meaning | None:
    if marks.on == "none":
        return Meaning("text", piece) if piece else None
    marked = piece.startswith(marks.mark) and not (marks.on == "others" and piece == marks.mark)
    text = piece.removeprefix(marks.mark) if marked else piece
    if len(text) == 1 and marks.stands_alone(text):  # BERT has ##. too, which no text gives
        return None if marked else Meaning("text", text)
    return Meaning("text", text.replace(SPACE, " "), marked == (marks.on == "first")) if text else None


def _of_bytes(content: bytes) -> Meaning | None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return Meaning("bytes", content.decode("latin-1"))
    bare = text.removeprefix(" ")
    return Meaning("text", bare, bare != text) if bare else None


class _Cutter:
    """The old tokenizer's pieces of a new token's text, as it would cut it in its place: a word's start or inside.

    Where a WordPiece vocabulary has no piece for the text inside a word, the text is cut as a word of its own.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        pipeline = tokenizer.tokenizer
        self.normalizer, self.pre_tokenizer, self.model = pipeline.normalizer, pipeline.pre_tokenizer, pipeline.model
        self.marks = _marks(json.loads(pipeline.to_str()), "--source")
        self.left_out = {tokenizer.unk_id, *tokenizer.special_ids}

    def __call__(self, meaning: Meaning | None) -> list[int]:
        """Ids, without [UNK]; none for what is no text."""
        if meaning is None or meaning.kind != "text":
            return []
        text = self.normalizer.normalize_str(meaning.text) if self.normalizer else meaning.text
        words = [word for word, _ in self.pre_tokenizer.pre_tokenize_str(text)] if self.pre_tokenizer else [text]
        if not words:
            return []
        mark, on = self.marks.mark, self.marks.on
        first = words[0].removeprefix(mark) if on == "first" else words[0]
        if on == "others" and meaning.starts_word is False and not self.marks.stands_alone(first[0]):
            inside = self.model.tokenize(mark + first)  # the longest piece that begins with the mark comes first
            marked = bool(inside) and inside[0].value.startswith(mark) and inside[0].value != mark
            tokens = inside if marked else self.model.tokenize(first)
        else:
            tokens = self.model.tokenize(mark + first if on == "first" and meaning.starts_word else first)
        tokens += [token for word in words[1:] for token in self.model.tokenize(word)]
        return [token.id for token in tokens if token.id not in self.left_out]


# --- positions ---


def extend_positions(old_TD: np.ndarray, positions: int, method: str) -> np.ndarray:
    """A position table (T, D) of more rows: repeated from its start (`tile`: Beltagy et al. 2020, §5), or stretched,
    each new row the linear interpolation of the two old ones beside its place (`interpolate`).
    """
    T = len(old_TD)
    if method == "tile":
        return old_TD[np.arange(positions) % T]
    place_T = np.linspace(0.0, T - 1.0, positions)
    below_T = np.minimum(place_T.astype(np.int64), max(T - 2, 0))
    share_T1 = (place_T - below_T)[:, None]
    above_TD = old_TD[np.minimum(below_T + 1, T - 1)].astype(np.float64)
    return ((1 - share_T1) * old_TD[below_T] + share_T1 * above_TD).astype(old_TD.dtype)
