"""Static vectors of a new vocabulary's tokens, from the tokens of a prepared corpus, and the weights made of them.

Vectors: positive pointwise mutual information of tokens in a window, factorised (Levy & Goldberg 2014, "Neural Word
Embedding as Implicit Matrix Factorization": what skip-gram with negative sampling factorises). Settings are those of
Levy, Goldberg & Dagan 2015, §3: a window whose weight falls with the distance, contexts smoothed with 0.75, singular
values to the power ½. It is a few matrix products, the same on every run, and needs no training library.
"""

from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data.packing import TokenFile

WINDOW = 5  # tokens on each side; weight 1, 4/5, … 1/5
SMOOTHING = 0.75  # power of the contexts' frequencies
WIDTH = 256  # of the vectors
LEAST = 5  # occurrences of a token that gets a vector
MOST_TOKENS = 10_000_000  # of the corpus that are read, from its start: pairs take 120 bytes a token or less
_BLOCK = 1 << 20  # tokens counted at a time
_OVERSAMPLING, _ITERATIONS = 16, 4  # of the randomised factorisation
_ROWS = 256  # similarities computed at a time


def static_vectors(tokens_dir: Path, vocab_size: int) -> np.ndarray:
    """Unit vectors, (V, width) float64; zero for a token that is too rare. `tokens_dir`: a corpus's tokens/train.

    Raises BadInput where the token files are missing or damaged.
    """
    counts_VV, seen_V = _pairs(tokens_dir, vocab_size)
    information_VV = _positive_information(counts_VV)
    vectors_VD = _left_factor(information_VV, min(WIDTH, vocab_size))
    vectors_VD[seen_V < LEAST] = 0.0
    length_V = np.linalg.norm(vectors_VD, axis=1, keepdims=True)
    return np.divide(vectors_VD, length_V, out=np.zeros_like(vectors_VD), where=length_V > 1e-9)


def _pairs(tokens_dir: Path, vocab_size: int) -> tuple[Any, np.ndarray]:
    """Weighted counts of two tokens in a window of one document (V, V), symmetric and sparse; occurrences (V,)."""
    from scipy import sparse  # jax brings it

    file = TokenFile(tokens_dir, vocab_size)
    counts_VV = sparse.csr_array((vocab_size, vocab_size), dtype=np.float64)
    seen_V = np.zeros(vocab_size, np.int64)
    for start in range(0, min(len(file.tokens), MOST_TOKENS), _BLOCK):
        ids_T = (file.tokens[start : start + _BLOCK] >> 1).astype(np.int64)
        document_T = np.searchsorted(file.offsets, np.arange(start, start + len(ids_T)), side="right")
        seen_V += np.bincount(ids_T, minlength=vocab_size)
        left, right, weight = [], [], []
        for distance in range(1, min(WINDOW, len(ids_T) - 1) + 1):
            same_T = document_T[:-distance] == document_T[distance:]
            left.append(ids_T[:-distance][same_T])
            right.append(ids_T[distance:][same_T])
            weight.append(np.full(len(left[-1]), (WINDOW - distance + 1) / WINDOW))
        if left:
            pairs = np.concatenate(left), np.concatenate(right)
            counts_VV = counts_VV + sparse.csr_array((np.concatenate(weight), pairs), shape=counts_VV.shape)
    return (counts_VV + counts_VV.T).tocsr(), seen_V


def _positive_information(counts_VV: Any) -> Any:
    """max(0, log p(a, b) / (p(a) p(b)^α)) of every pair that was seen, sparse; α = SMOOTHING."""
    pairs = counts_VV.tocoo()
    token_V = np.asarray(counts_VV.sum(axis=1), np.float64).reshape(-1)
    context_V = token_V**SMOOTHING
    chance = token_V[pairs.row] * context_V[pairs.col] / max(context_V.sum(), 1e-300)
    pairs.data = np.maximum(0.0, np.log(pairs.data / chance))
    information_VV = pairs.tocsr()
    information_VV.eliminate_zeros()
    return information_VV


def _left_factor(matrix_VV: Any, width: int) -> np.ndarray:
    """U √S of the largest `width` singular values, (V, width): randomised (Halko et al. 2011, 4.4), seeded."""
    columns = min(width + _OVERSAMPLING, matrix_VV.shape[1])
    basis = np.linalg.qr(matrix_VV @ np.random.default_rng(0).standard_normal((matrix_VV.shape[1], columns)))[0]
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix_VV.T @ basis)[0]
        basis = np.linalg.qr(matrix_VV @ basis)[0]
    inner, values, _ = np.linalg.svd((matrix_VV.T @ basis).T, full_matrices=False)
    return basis @ (inner[:, :width] * np.sqrt(values[:width]))


def neighbours(vectors_VD: np.ndarray, anchors_S: np.ndarray, wanted_R: np.ndarray) -> list[tuple[np.ndarray, Any]]:
    """For each token of `wanted_R` the anchors that it is made of and their weights, which sum to 1; none, if it has
    no vector. Weights: sparsemax of the cosines with all anchors (Dobler & de Melo 2023, §3.2). Ids are of new tokens.
    """
    anchors_S = anchors_S[np.any(vectors_VD[anchors_S] != 0, axis=1)]
    found: list[tuple[np.ndarray, Any]] = []
    for start in range(0, len(wanted_R), _ROWS):
        rows_RD = vectors_VD[wanted_R[start : start + _ROWS]]
        if len(anchors_S):
            weights_RS = sparsemax(rows_RD @ vectors_VD[anchors_S].T)
        else:
            weights_RS = np.zeros((len(rows_RD), 0))
        for row_D, weights_S in zip(rows_RD, weights_RS, strict=True):
            chosen_S = np.flatnonzero(weights_S) if row_D.any() else np.zeros(0, np.int64)
            found.append((anchors_S[chosen_S], weights_S[chosen_S]))
    return found


def sparsemax(scores_RS: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex to each row (Martins & Astudillo 2016, arXiv:1602.02068, algorithm 1)."""
    sorted_RS = -np.sort(-scores_RS, axis=1)
    total_RS = np.cumsum(sorted_RS, axis=1) - 1.0
    number_S = np.arange(1, scores_RS.shape[1] + 1)
    size_R = np.sum(sorted_RS * number_S > total_RS, axis=1)
    threshold_R = total_RS[np.arange(len(size_R)), size_R - 1] / size_R
    return np.maximum(scores_RS - threshold_R[:, None], 0.0)
