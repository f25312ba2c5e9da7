"""How often rows hold the documents of each source, and what the folders of such rows are called.

rows_<T> and single_<T> have the weights that the corpus was prepared with (`Source.weight`). Those of a phase of a run
with weights of its own (`Phase.weights`) carry a hash of them: rows_<T>-<8 hexadecimal digits>.
"""

import json
from collections.abc import Iterable
from typing import Any

from jaxbert.config import Corpus, Weight
from jaxbert.data.stages import sha256_of_lines
from jaxbert.errors import BadInput

FOLDERS = r"(rows|single)_\d+(-[0-9a-f]{8})?"  # names of folders of rows


def usual(corpus: Corpus, sources: list[dict[str, Any]]) -> dict[str, float]:
    """The recipe's own weights, `Source.weight`: source → weight, where it is not 1. `sources`: as in corpus.json."""
    by_group = {own.label: own.weight for own in corpus.sources}
    named = {s["name"]: float(by_group.get(s.get("group", ""), 1.0)) for s in sources}
    return {name: weight for name, weight in named.items() if weight != 1}


def rows_of(
    sources: list[dict[str, Any]],
    weights: dict[str, float],
    row_length: int,
    pack: bool,
    given: Iterable[Weight] = (),
    field: str = "data.row_length",
) -> tuple[str, dict[str, float]]:
    """(folder in the corpus directory, weights) of the rows of a phase of a run; weights: where they are not 1.

    Args:
      sources: as in corpus.json.
      weights: the corpus's usual ones, source → weight.
      row_length, pack: tokens; whether documents share a row.
      given: the phase's own weights, in place of the usual ones; each names a source of corpus.json, or all entries of
        one of `corpus.sources` by its name or input.
      field: of the recipe, that has the row length; its neighbour is named in errors.

    Raises BadInput for weights of an unknown source.
    """
    mixed = dict(weights)
    for i, own in enumerate(given):
        named = [s["name"] for s in sources if own.source in (s["name"], s.get("group"))]
        if not named:
            there = ", ".join(map(repr, sorted({s.get("group") or s["name"] for s in sources})))
            where = f"{field.removesuffix('.row_length')}.weights[{i}].source"
            raise BadInput(f"{where}: {own.source!r} is no source of the corpus; there are {there}")
        mixed |= dict.fromkeys(named, float(own.weight))
    mixed = {name: weight for name, weight in mixed.items() if weight != 1}
    folder = f"{'rows' if pack else 'single'}_{row_length}"
    if mixed != weights:
        folder += f"-{sha256_of_lines([json.dumps(mixed, sort_keys=True)])[:8]}"
    return folder, mixed
