"""Near duplicates against exact Jaccard similarity on real documents with planted edits, and their speed.

    pip install -e ".[prepare,torch,bench]"      # without datasketch, the peer, its lines are left out
    python tools/bench_near_duplicates.py [--config=configs/demo_gl.py] [--documents=5000] [--json=FILE]

Documents are those of the recipe, cleaned and without exact duplicates, as many as asked for (in any language: the demo
has 4,500 in Galician), and as many copies of them again, each edited to be about 0.5 to 1 similar to its original:
words replaced, a passage cut out, or one of other documents put in. Truth is the Jaccard similarity of sets of word
5-grams, as tuples of strings, of all pairs: which documents have an earlier one that stays at 0.8 or more.

Recall: of these, how many we reject. False positives: of the others, how many we reject. Both of all documents, and of
copies by their similarity to the original. Speed: signatures, groups and comparison in one process, against
datasketch's MinHash (128 permutations, `update_batch`) and MinHashLSH, which compares signatures alone; in turn.
"""

import argparse
import dataclasses
import json
import random
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from bench_train import machine, measure, show

from jaxbert import config as recipes
from jaxbert import recipe_files
from jaxbert.data import clean, near, readers, stages

THRESHOLD, WORDS, LEAST_WORDS, ROUNDS = 0.8, 5, 8, 5
BINS = (0.5, 0.7, 0.78, 0.8, 0.82, 0.85, 0.9, 0.95, 1.01)


def real_documents(recipe: str, count: int) -> list[str]:
    """Cleaned texts of at least LEAST_WORDS words, none twice, evenly from the sources."""
    corpus = recipes.resolve(recipe_files.load(recipe)).corpus
    steps = dataclasses.replace(corpus.clean, identify_language=False, duplicates="document")
    corpus = dataclasses.replace(corpus, clean=steps)
    seen: set[str] = set()
    found = []
    for source in readers.sources(corpus):
        documents = (d for d in readers.read(source, corpus) if isinstance(d, readers.Document))
        for block in stages.blocks(documents):
            for cleaned in clean.clean_block(block, corpus):
                if cleaned.fate == "kept" and cleaned.own_hash not in seen and len(cleaned.text.split()) >= LEAST_WORDS:
                    found.append(cleaned.text)
                seen.add(cleaned.own_hash)
    taken = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))
    return [found[i] for i in taken]


def edited(text: str, others: list[str], choose: random.Random) -> str:
    """A copy that is about as similar as drawn, between 0.5 and 1."""
    similarity, words = choose.uniform(0.5, 1.0), text.split(" ")
    kind = choose.choice(("replace", "cut", "insert"))
    if kind == "replace":
        share = 1 - (2 * similarity / (1 + similarity)) ** (1 / WORDS)
        lexicon = choose.choice(others).split()
        return " ".join(choose.choice(lexicon) if choose.random() < share else word for word in words)
    if kind == "cut":
        length = round((1 - similarity) * len(words))
        start = choose.randint(0, len(words) - length)
        return " ".join(words[:start] + words[start + length :])
    foreign = " ".join(choose.sample(others, 3)).split(" ")[: round((1 / similarity - 1) * len(words))]
    start = choose.randint(0, len(words))
    return " ".join(words[:start] + foreign + words[start:])


def exact_sets(texts: list[str]) -> list[set[tuple[str, ...]]]:
    """Word 5-grams of each text; of a shorter one, all its words."""
    sets = []
    for text in texts:
        words = re.findall(r"[^\W_]+", text.lower())
        sets.append({tuple(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))} if words else set())
    return sets


def exact_rejections(sets: list[set[tuple[str, ...]]]) -> np.ndarray:
    """Whether each is at least THRESHOLD similar to an earlier one that stays: every pair, by common shingles."""
    rejected = np.zeros(len(sets), bool)
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)  # of a shingle, among those that stay
    for number, shingles in enumerate(sets):
        common: dict[int, int] = defaultdict(int)
        for shingle in shingles:
            for other in holders[shingle]:
                common[other] += 1
        rejected[number] = any(
            both / (len(shingles) + len(sets[other]) - both) >= THRESHOLD for other, both in common.items()
        )
        if not rejected[number]:
            for shingle in shingles:
                holders[shingle].append(number)
    return rejected


def ours(texts: list[str]) -> near.Found:
    """As prepare does it, in one process."""
    rows = near.rows_of_band(THRESHOLD)
    with tempfile.TemporaryDirectory() as folder:
        index = near.Index(Path(folder), THRESHOLD)
        number = 0
        for block in stages.blocks(texts):
            for signature in near.sign(block, rows):
                index.add(signature, str(number), False)
                number += 1
        found = index.find()
        index.close()
    return found


def datasketch(texts: list[str]) -> np.ndarray:
    """What people write: rejected are those that the index of the earlier ones that stay finds."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    rejected = np.zeros(len(texts), bool)
    for number, text in enumerate(texts):
        words = re.findall(r"[^\W_]+", text.lower())
        shingles = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
        signature = MinHash(num_perm=128)
        signature.update_batch([shingle.encode() for shingle in shingles])
        rejected[number] = bool(lsh.query(signature))
        if not rejected[number]:
            lsh.insert(number, signature)
    return rejected


def quality(name: str, rejected: np.ndarray, truth: np.ndarray, goals: bool) -> list[dict]:
    """Recall and the share of right ones among those that should stay (one minus false positives)."""
    recall, right = (rejected & truth).sum() / truth.sum(), (~rejected & ~truth).sum() / (~truth).sum()
    return [
        measure(f"{name}: recall, of {truth.sum():,} to reject", [float(recall)], "share", 0.95 if goals else None),
        measure(f"{name}: stay, of {(~truth).sum():,} to stay", [float(right)], "share", 0.99 if goals else None),
    ]


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/demo_gl.py")
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    choose = random.Random(flags.seed)
    originals = real_documents(flags.config, flags.documents)
    texts = originals + [edited(text, originals, choose) for text in originals]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(originals):,} documents and as many edited copies, {megabytes:.1f} MB")
    sets = exact_sets(texts)
    truth = exact_rejections(sets)
    seconds: dict[str, list[float]] = defaultdict(list)
    results = {}
    contestants = {"ours": lambda: ours(texts).near >= 0, "datasketch": lambda: datasketch(texts)}
    near.sign(["warm"], 5)  # tables
    for _ in range(flags.rounds):
        for name in list(contestants):
            start = time.perf_counter()
            try:
                results[name] = contestants[name]()
            except ImportError:
                print(f"{name} is not installed, so it is left out")
                del contestants[name]
                continue
            seconds[name].append(time.perf_counter() - start)
    lines = []
    for name, rejected in results.items():
        lines += quality(name, rejected, truth, name == "ours")
    half = len(originals)
    similarity = np.array([len(a & b) / len(a | b) for a, b in zip(sets[:half], sets[half:], strict=True)])
    # A copy whose original went, or which is like another document, too, is judged above.
    alone = ~truth[:half]
    for low, high in zip(BINS, BINS[1:], strict=False):
        which = alone & (similarity >= low) & (similarity < high)
        share = float(results["ours"][half:][which].mean()) if which.any() else float("nan")
        title = f"ours: copies {low:.2f} to {min(high, 1.0):.2f} similar to their original, {which.sum():,}: rejected"
        lines.append(measure(title, [share], "share", 0.95 if low >= THRESHOLD else None))
    for name, times in seconds.items():
        lines.append(measure(f"{name}: speed, one process", [megabytes / t for t in times], "MB/s"))
    if len(seconds) == 2:
        ratio = [b / a for a, b in zip(seconds["ours"], seconds["datasketch"], strict=True)]
        lines.append(measure("ours / datasketch", ratio, "ratio", 1.0))
    show(lines)
    if flags.json:
        flags.json.write_text(json.dumps({**machine(), "measures": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
