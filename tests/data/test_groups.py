"""The group-by on disk: equal keys come together in the order of the corpus, whatever the ranges and the parts."""

import numpy as np
import pytest

from jaxbert.data import groups


def grouped(tmp_path, parts: list[np.ndarray], of: int) -> list[list[tuple[int, int, int]]]:
    """Runs of equal keys as (part, index, owner), of all ranges."""
    paths = [tmp_path / str(i) for i in range(len(parts))]
    for path, keys in zip(paths, parts, strict=True):
        groups.write_keys(path, keys.astype(np.uint64), np.arange(len(keys)) // 2)
    runs: list[list[tuple[int, int, int]]] = []
    for number in range(of):
        found = groups.group(paths, number, of)
        for begins, *place in zip(found.begins, found.part, found.index, found.owner, strict=True):
            if begins:
                runs.append([])
            runs[-1].append(tuple(map(int, place)))
    return runs


@pytest.mark.parametrize("of", [1, 2, 7])
def test_equal_keys_come_together_in_the_order_of_parts_whatever_the_ranges(tmp_path, of):
    draw = np.random.default_rng(0)
    values = draw.integers(0, 2**64, (30, 2), np.uint64, endpoint=False)
    values[:2, 0] = 0, 2**64 - 1
    parts = [values[draw.integers(0, 30, size)] for size in (50, 0, 1, 70)]
    runs = grouped(tmp_path, parts, of)
    assert sorted(place[:2] for run in runs for place in run) == [
        (p, i) for p, k in enumerate(parts) for i in range(len(k))
    ]
    keys = [{tuple(parts[p][i]) for p, i, _ in run} for run in runs]
    assert all(len(k) == 1 for k in keys) and len(set.union(*keys)) == len(runs)
    assert all(run == sorted(run) for run in runs)
    assert all(owner == i // 2 for run in runs for _, i, owner in run)


def test_keys_that_are_half_equal_are_not_equal(tmp_path):
    keys = np.array([[5, 1], [5, 2], [5, 1], [5, 2], [4, 2]])
    assert grouped(tmp_path, [keys], 1) == [[(0, 4, 2)], [(0, 0, 0), (0, 2, 1)], [(0, 1, 0), (0, 3, 1)]]


def test_ranges_are_as_many_as_their_size_needs():
    assert [groups.ranges(n) for n in (0, 1, groups.LARGEST, groups.LARGEST + 1)] == [1, 1, 1, 2]


def test_no_keys_are_no_groups(tmp_path):
    assert grouped(tmp_path, [np.zeros((0, 2))], 1) == [] == grouped(tmp_path, [], 1)
