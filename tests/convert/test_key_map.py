"""Key maps: every parameter has one name on each side, and going there and back changes no bit."""

import jax
import numpy as np
import pytest

from jaxbert.convert.key_map import Row, flatten, from_torch, to_torch
from jaxbert.errors import BadInput

ROWS = [
    Row("table_VD", "words.weight", "vocabulary"),
    Row("blocks/query_DNH", "layer.{}.query.weight", "transpose"),
    Row("blocks/query_bias_NH", "layer.{}.query.bias"),
    Row("blocks/up_DF", "layer.{}.up.weight", "transpose"),
    Row("norm_D", "norm.weight"),
]
VOCAB, PADDED, L, D, N, H, F = 5, 8, 3, 6, 3, 2, 7
SHAPES = {"layer.{}.query.weight": (N * H, D), "layer.{}.query.bias": (N * H,)}


def tree(seed=0):
    random = np.random.default_rng(seed)
    table_VD = random.normal(size=(PADDED, D))
    table_VD[VOCAB:] = 0.0
    blocks = {"query_DNH": (L, D, N, H), "query_bias_NH": (L, N, H), "up_DF": (L, D, F)}
    blocks = {name: random.normal(size=shape) for name, shape in blocks.items()}
    return {"table_VD": table_VD, "blocks": blocks, "norm_D": random.normal(size=D)}


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree())


def test_names_are_paths_to_the_leaves():
    assert set(flatten(tree())) == {row.ours for row in ROWS}


def test_stacked_layers_become_one_tensor_each_under_their_numbers():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    for name in ("query.weight", "query.bias", "up.weight"):
        assert [n for n in state if n.endswith(name)] == [f"layer.{i}.{name}" for i in range(L)]


def test_a_kernel_is_transposed_because_torch_stores_out_by_in():
    ours, state = tree(), to_torch(tree(), ROWS, VOCAB, SHAPES)
    for layer in range(L):
        weight, kernel = state[f"layer.{layer}.up.weight"], ours["blocks"]["up_DF"][layer]
        assert weight.shape == (F, D) and all(weight[f, d] == kernel[d, f] for f in range(F) for d in range(D))


def test_heads_are_joined_one_after_the_other():
    ours, state = tree(), to_torch(tree(), ROWS, VOCAB, SHAPES)
    kernel, weight = ours["blocks"]["query_DNH"][1], state["layer.1.query.weight"]
    assert all(weight[n * H + h, d] == kernel[d, n, h] for n in range(N) for h in range(H) for d in range(D))
    assert (state["layer.1.query.bias"] == ours["blocks"]["query_bias_NH"][1].ravel()).all()


def test_rows_past_the_true_vocabulary_are_cut_and_come_back_as_zeros():
    ours = tree()
    ours["table_VD"][VOCAB:] = 7.0  # whatever stands there, it is no parameter
    state = to_torch(ours, ROWS, VOCAB, SHAPES)
    assert (state["words.weight"] == ours["table_VD"][:VOCAB]).all()
    back = from_torch(state, ROWS, abstract())["table_VD"]
    assert back.shape == (PADDED, D) and not back[VOCAB:].any()


def test_export_and_import_change_no_bit():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    back = from_torch(state, ROWS, abstract())
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), back, tree())
    again = to_torch(back, ROWS, VOCAB, SHAPES)
    assert set(again) == set(state) and all((again[name] == state[name]).all() for name in state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_stays(dtype):
    state = to_torch(jax.tree.map(lambda x: x.astype(dtype), tree()), ROWS, VOCAB, SHAPES)
    assert {array.dtype for array in state.values()} == {np.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(from_torch(state, ROWS, abstract()))} == {np.dtype(dtype)}


@pytest.mark.parametrize("convert", [lambda t: to_torch(t, ROWS, VOCAB, SHAPES), lambda t: from_torch({}, ROWS, t)])
def test_a_map_that_is_not_total_is_refused_both_ways(convert):
    with pytest.raises(ValueError, match="no row of the key map for stray_D"):
        convert(tree() | {"stray_D": np.zeros(D)})
    less = tree()
    del less["norm_D"]
    with pytest.raises(ValueError, match="no leaf for the key map's norm_D"):
        convert(less)


def test_every_tensor_that_is_missing_or_does_not_fit_is_named():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    del state["layer.1.up.weight"]
    state["norm.weight"] = np.zeros(D + 1)
    state["words.weight"] = np.zeros((PADDED + 1, D))
    with pytest.raises(BadInput) as error:
        from_torch(state, ROWS, abstract())
    for part in ("layer.1.up.weight is missing", "norm.weight has shape (7,)", "words.weight has shape (9, 6)"):
        assert part in str(error.value)
    assert str(error.value).count(";") == 2


def test_tensors_of_other_heads_are_left_alone():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES) | {"pooler.weight": np.zeros((D, D))}
    assert from_torch(state, ROWS, abstract()).keys() == tree().keys()
