"""Repetitious documents: the filters of Rae et al. 2021 (arXiv:2112.11446), appendix A.1.1 and table A1.

Where the paper leaves a choice: a line or n-gram is a duplicate from its second occurrence on; the most frequent n-gram
counts from two occurrences on, as in short documents every n-gram is a large share; words are what white space divides,
as they are written, and characters are those of words. The paper's limits for paragraphs are those for lines, and a
line of a cleaned document is a paragraph, so that there is one pair of them.

Off unless asked for: the limits were set for web pages, and of the demo's 4,831 Galician documents they reject 1,010,
mostly sound lists of functions, options and messages (kept: 3,443 instead of 4,221).
"""

from collections import Counter

import numpy as np

from jaxbert.config import Repetition

TOP, DUPLICATE = range(2, 5), range(5, 11)  # the n of "most frequent n-gram" and of "duplicate n-grams"


def measure(text: str) -> dict[str, float]:
    """By the names of `config.Repetition`'s fields: the shares of a text that they limit, 0 to 1 (`top` may pass 1)."""
    lines = text.split("\n")
    seen = Counter(lines)
    repeated = sum(count - 1 for count in seen.values())
    characters = sum((count - 1) * len(line) for line, count in seen.items())
    shares = {
        "duplicate_lines": repeated / len(lines),
        "duplicate_line_characters": characters / max(1, sum(map(len, lines))),
    }
    words = text.split()
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    ends = np.cumsum([0, *map(len, words)])
    grams, total = ids, max(1, int(ends[-1]))
    shares |= {f"top_{n}_gram": 0.0 for n in TOP} | {f"duplicate_{n}_grams": 0.0 for n in DUPLICATE}
    for n in (*TOP, *DUPLICATE):
        # Numbers of the n-grams, from those of the (n−1)-grams that they begin with and their last words.
        pairs = grams[:-1] * len(numbers) + ids[n - 1 :]
        _, first, grams, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        if len(first) == len(pairs):  # all different, and longer ones then too
            break
        if n in TOP:
            top = int(counts.argmax())
            shares[f"top_{n}_gram"] = int(counts[top] * (ends[first[top] + n] - ends[first[top]])) / total
        else:
            again = np.ones(len(grams), bool)
            again[first] = False
            covered = np.zeros(len(words) + 1, np.int64)  # changes of how many duplicates lie over a word
            np.add.at(covered, np.flatnonzero(again), 1)
            np.add.at(covered, np.flatnonzero(again) + n, -1)
            shares[f"duplicate_{n}_grams"] = int(np.diff(ends)[np.cumsum(covered[:-1]) > 0].sum()) / total
    return shares


def reason(text: str, limits: Repetition) -> str:
    """The first share that is over its limit, with its value, or ""."""
    for name, share in measure(text).items():
        if share > getattr(limits, name):
            return f"{name} {share:.2f}"
    return ""
