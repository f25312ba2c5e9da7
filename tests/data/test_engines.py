"""Engines: the same results in the same order, errors as they are, and memory bounded by what is in flight."""

import functools
import importlib.util
import time

import pytest

from jaxbert.data import engines
from jaxbert.errors import BadInput

BEAM = pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs apache-beam: make test-slow")
SEVERAL = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def expand(piece: int, broken: int = -1):
    """`piece` works, and an error of reading where it is broken."""
    for work in range(piece):
        if piece == broken and work == 1:
            raise BadInput(f"piece {piece}: broken")
        yield f"{piece}.{work}"


def slow(work: str) -> str:
    time.sleep(0.01 if work.endswith("0") else 0)
    return work * 2


def fails(work: str) -> str:
    if work == "3.1":
        raise BadInput(f"work {work}: broken")
    return work


PIECES = [2, 0, 3, 1]
RESULTS = ["2.02.0", "2.12.1", "3.03.0", "3.13.1", "3.23.2", "1.01.0"]
ENGINES = [
    pytest.param(lambda: engines.Local(1), id="one process"),
    pytest.param(lambda: engines.Local(2), id="processes"),
    pytest.param(lambda: engines.Beam([]), id="beam", marks=BEAM),
    pytest.param(lambda: engines.Beam(SEVERAL), id="beam, processes", marks=[BEAM, pytest.mark.slow]),
]


@pytest.mark.parametrize("make", ENGINES)
def test_results_come_in_the_order_of_pieces_and_works(make, tmp_path):
    with make() as engine:
        assert list(engine.map(slow, PIECES, expand, tmp_path)) == RESULTS
        assert list(engine.map(slow, PIECES, expand, tmp_path)) == RESULTS  # nothing is left of the first time
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", ENGINES)
def test_bad_input_found_by_a_function_is_raised_as_it_is(make, tmp_path):
    with make() as engine, pytest.raises(BadInput, match=r"^work 3\.1: broken$"):
        list(engine.map(fails, PIECES, expand, tmp_path))


@pytest.mark.parametrize("make", ENGINES)
def test_bad_input_found_on_reading_is_raised_as_it_is(make, tmp_path):
    with make() as engine, pytest.raises(BadInput, match=r"^piece 3: broken$"):
        list(engine.map(slow, PIECES, functools.partial(expand, broken=3), tmp_path))


def test_works_are_taken_only_as_fast_as_they_are_done(tmp_path):
    taken = []

    def count(piece: int):
        for work in range(piece):
            taken.append(work)
            yield str(work)

    with engines.Local(2) as engine:
        results = engine.map(slow, [100], count, tmp_path)
        assert [next(results) for _ in range(3)] == ["00", "11", "22"]
        assert len(taken) <= 3 + 2 * engines.IN_FLIGHT


def test_options_of_beam_without_beam_are_refused():
    with pytest.raises(BadInput, match="--: --direct_num_workers=2: only --runner=beam"):
        engines.open_engine("local", 2, ["--direct_num_workers=2"])


@BEAM
def test_an_option_that_beam_does_not_know_is_refused():
    with pytest.raises(BadInput, match="Beam has no option --direct_workers"):
        engines.Beam(["--direct_workers=2"])


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="apache-beam is here; runs without it")
def test_without_beam_the_message_says_how_to_get_it():
    with pytest.raises(BadInput, match=r"pip install 'jaxbert\[beam\]'"):
        engines.open_engine("beam", 1, [])
