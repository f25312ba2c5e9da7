"""Key maps: every parameter has one name on each side, and going there and back changes no bit."""

import jax
import ml_dtypes
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


def refused(state, *arguments, rows=ROWS, **options):
    with pytest.raises(BadInput) as error:
        from_torch(state, rows, abstract(), *arguments, **options)
    return str(error.value)


def test_every_tensor_that_is_missing_extra_or_does_not_fit_is_named_at_once():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    del state["layer.1.up.weight"]
    state["norm.weight"] = np.zeros(D + 1)
    state["words.weight"] = np.zeros((PADDED + 1, D))
    state["layer.0.query.bias"] = np.zeros(N * H, np.int8)
    state["stray"] = np.zeros(D)
    told = refused(state)
    for part in (
        "layer.1.up.weight is missing",
        "norm.weight has shape (7,)",
        "words.weight has shape (9, 6)",
        "layer.0.query.bias has dtype int8, not float32 or float64",
        "stray is not of this model",
    ):
        assert part in told
    assert told.count(";") == 4


def test_a_misspelt_tensor_is_told_with_the_nearest_name_on_both_sides():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    state["layers.1.up.weight"] = state.pop("layer.1.up.weight")
    told = refused(state)
    assert "layers.1.up.weight is not of this model (nearest: layer.1.up.weight)" in told
    assert "layer.1.up.weight is missing (nearest: layers.1.up.weight)" in told


def test_what_every_layer_lacks_is_told_once():
    state = {name: a for name, a in to_torch(tree(), ROWS, VOCAB, SHAPES).items() if not name.endswith("up.weight")}
    assert refused(state).endswith(": layer.{0, 1, 2}.up.weight is missing")


def test_a_weight_that_is_not_transposed_is_found_where_the_shapes_are_known():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    state["layer.1.up.weight"] = state["layer.1.up.weight"].T
    assert "layer.1.up.weight has shape (6, 7)" in refused(state, SHAPES)
    from_torch(to_torch(tree(), ROWS, VOCAB, SHAPES), ROWS, abstract(), SHAPES)


def test_a_table_must_have_the_rows_of_the_vocabulary_where_that_is_known():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    assert "words.weight has shape (5, 6)" in refused(state, SHAPES, vocab_size=VOCAB + 1)
    from_torch(state, ROWS, abstract(), SHAPES, vocab_size=VOCAB)


def test_tensors_are_left_unread_only_where_the_caller_names_them():
    state = to_torch(tree(), ROWS, VOCAB, SHAPES) | {"pooler.weight": np.zeros((D, D))}
    assert from_torch(state, ROWS, abstract(), ignore=("pooler.*",)).keys() == tree().keys()
    assert "pooler.weight is not of this model" in refused(state, ignore=("cls.*",))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int64", "int8"])
def test_a_dtype_that_nobody_expects_is_refused_and_only_floats_are_cast(dtype):
    state = to_torch(tree(), ROWS, VOCAB, SHAPES)
    state["norm.weight"] = state["norm.weight"].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert f"norm.weight has dtype {dtype}" in refused(state)
    if dtype.startswith("int"):
        assert f"norm.weight has dtype {dtype}" in refused(state, cast=("float16", "bfloat16"))
    else:
        norm_D = from_torch(state, ROWS, abstract(), cast=("float16", "bfloat16"))["norm_D"]
        np.testing.assert_array_equal(norm_D, state["norm.weight"].astype(np.float32), strict=True)


TIED = [
    *(row for row in ROWS if row.theirs != "norm.weight"),
    Row("norm_D", "norm.weight", aliases=("scale", "second.scale")),
]


def test_a_tied_tensor_is_read_under_any_of_its_names_and_written_under_one():
    assert to_torch(tree(), TIED, VOCAB, SHAPES).keys() == to_torch(tree(), ROWS, VOCAB, SHAPES).keys()
    for names in (["norm.weight"], ["second.scale"], ["scale", "norm.weight"], ["scale", "second.scale"]):
        state = to_torch(tree(), TIED, VOCAB, SHAPES)
        norm_D = state.pop("norm.weight")
        state |= {name: norm_D.copy() for name in names}
        assert (from_torch(state, TIED, abstract())["norm_D"] == tree()["norm_D"]).all()


def test_tied_tensors_with_different_values_are_both_named():
    state = to_torch(tree(), TIED, VOCAB, SHAPES)
    state["second.scale"] = state["norm.weight"] + 1e-7
    assert "norm.weight and second.scale are tied, yet hold different values" in refused(state, rows=TIED)


def test_each_layer_has_its_own_alias():
    rows = [*(row for row in ROWS if "up_DF" not in row.ours)]
    rows.append(Row("blocks/up_DF", "layer.{}.up.weight", "transpose", ("layer.{}.wide.weight",)))
    state = to_torch(tree(), rows, VOCAB, SHAPES)
    state["layer.1.wide.weight"] = state.pop("layer.1.up.weight")
    assert (from_torch(state, rows, abstract())["blocks"]["up_DF"] == tree()["blocks"]["up_DF"]).all()
    state["layer.2.wide.weight"] = state["layer.0.up.weight"]
    assert "layer.2.up.weight and layer.2.wide.weight are tied" in refused(state, rows=rows)


def test_a_map_that_writes_a_name_twice_is_refused():
    with pytest.raises(ValueError, match=r"two rows of the key map for norm\.weight"):
        to_torch(tree() | {"other_D": np.zeros(D)}, [*ROWS, Row("other_D", "norm.weight")], VOCAB, SHAPES)
