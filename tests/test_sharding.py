"""How a mesh is made, what it splits, and which rows a process makes of a batch."""

import dataclasses
import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxbert import chips, config, optim, plan, planner, recipe_files, sharding, step, train
from jaxbert.errors import BadInput
from tests.drills.processes import free_address

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}
MESH = AbstractMesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(AxisType.Auto,) * 3)
TREE = {
    "model": {
        "embeddings": {"word_VD": jax.ShapeDtypeStruct((256, 8), jnp.float32)},
        "blocks": {
            "query_DNH": jax.ShapeDtypeStruct((3, 8, 4, 2), jnp.float32),
            "bias_D": jax.ShapeDtypeStruct((3, 8), jnp.float32),
            "odd_DF": jax.ShapeDtypeStruct((3, 8, 7), jnp.float32),
        },
    },
    "step": jax.ShapeDtypeStruct((), jnp.int32),
}


def specs(*overrides: config.Override) -> dict[str, PartitionSpec]:
    tree = sharding.shard_by_name(TREE, MESH, overrides)
    return {sharding.parameter_name(path): x.spec for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_letters_say_what_splits_an_array_and_a_size_that_does_not_divide_stays_whole() -> None:
    assert specs() == {
        "word_VD": PartitionSpec("tensor", "fsdp"),
        "query_DNH": PartitionSpec(None, "fsdp", "tensor", None),
        "bias_D": PartitionSpec(None, "fsdp"),
        "odd_DF": PartitionSpec(None, "fsdp", None),
        "step": PartitionSpec(),
    }


def test_the_first_override_that_fits_a_parameter_counts_for_it_alone() -> None:
    found = specs(config.Override("blocks/bias_*", ("",)), config.Override("bias_D", ("tensor",)))
    assert found == {**specs(), "bias_D": PartitionSpec(None, None)}


def test_an_override_by_name_reaches_every_array_of_that_name() -> None:
    found = specs(config.Override("word_VD", ("fsdp", "tensor")))
    assert found == {**specs(), "word_VD": PartitionSpec("fsdp", "tensor")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (config.Override("word_VE", ("", "")), r"overrides\[0\].parameter: 'word_VE' fits no parameter.*word_VD"),
        (config.Override("word_VD", ("fsdp",)), r"overrides\[0\].axes: .*word_VD is \(256, 8\); give one for each"),
        (config.Override("odd_DF", ("", "tensor")), r"overrides\[0\].axes: .*sharding.tensor 2 does not divide 7"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_by_field(override: config.Override, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        specs(override)


@pytest.mark.parametrize("axes", [("data", ""), ("fsdp", "fsdp")])
def test_an_override_takes_fsdp_and_tensor_once_each(axes: tuple[str, ...]) -> None:
    train = config.Train(steps=1)
    mesh = config.Sharding(overrides=(config.Override("word_VD", axes),))
    recipe = config.Config(train=train, sharding=mesh, model=config.named_model("bert_tiny"))
    with pytest.raises(BadInput, match=r"sharding.overrides\[0\].axes: .*each axis once"):
        recipe_files.validate(recipe)


def test_a_recipe_keeps_its_overrides_in_json() -> None:
    mesh = config.Sharding(fsdp=2, overrides=(config.Override("word_VD", ("", "fsdp")),))
    recipe = config.Config(model=config.named_model("bert_tiny"), sharding=mesh)
    assert config.from_dict(config.to_dict(recipe)) == recipe


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (config.Sharding(8, 1, 1), "does not fit 4 devices; the product must be 4"),
        (config.Sharding(-1, 3, 1), "does not fit 4 devices"),
        (config.Sharding(-1, -1, 1), "at most one is -1"),
        (config.Sharding(0, 1, 1), "every axis is 1 or more"),
        (config.Sharding(1, 4, 1), "sharding.data: 1 does not divide among 2 TPU slices; choose a multiple of 2"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh: config.Sharding, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        sharding.mesh_sizes(mesh, 4, slices=2)


@pytest.mark.parametrize(
    ("fields", "sizes", "message"),
    [
        ({"num_heads": 6}, {"tensor": 4}, "model.num_heads: 6 do not divide among sharding.tensor 4"),
        ({"feed_forward_size": 10}, {"tensor": 4}, "model.feed_forward_size: 10 do not divide among sharding.tensor"),
        ({"hidden_size": 10}, {"fsdp": 4}, "model.hidden_size: 10 do not divide among sharding.fsdp 4"),
        ({"num_heads": 6, "feed_forward_size": 9}, {"tensor": 3}, "sharding.tensor: 3 does not divide the 256 rows"),
    ],
)
def test_a_model_that_the_mesh_does_not_divide_is_refused(
    fields: dict[str, int], sizes: dict[str, int], message: str
) -> None:
    model = dataclasses.replace(config.named_model("bert_tiny"), **fields)
    with pytest.raises(BadInput, match=message):
        sharding.check_model(model, TREE["model"], {"data": 1, "fsdp": 1, "tensor": 1, **sizes})


RECIPE = """
from jaxbert.config import Config, Override, Sharding, Train, named_model
def get_config():
    return Config(
        model=named_model("bert_tiny"),
        train=Train(batch_size=64, steps=100),
        sharding=Sharding(4, 2, 2, overrides=(Override("position_TD", ("", "")),)),
    )
"""


def test_explain_sharding_needs_a_recipe_alone_and_its_bytes_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    train.main([f"--config={tmp_path / 'recipe.py'}", "--explain-sharding"])
    title, _, *rows, parameters, optimizer, together = capsys.readouterr().out.splitlines()
    assert title == "bert_tiny on 16 devices (data 4 × fsdp 2 × tensor 2)"
    by_name = {row.split()[0].rpartition("/")[2]: row for row in rows}
    assert by_name["word_VD"].split()[1:] == "32000 × 128 tensor × fsdp 4,096,000".split()
    assert by_name["position_TD"].split()[1:] == "512 × 128 · × · 262,144".split()
    numbers = [[int(w.replace(",", "")) for w in line.split() if w[0].isdigit()] for line in (parameters, optimizer)]
    assert numbers[0][0] == sum(int(row.split()[-1].replace(",", "")) for row in rows)
    assert numbers[1][0] == pytest.approx(2 * numbers[0][0], abs=64)  # two moments and counters
    assert [int(w.replace(",", "")) for w in together.split() if w[0].isdigit()] == list(
        map(sum, zip(*numbers, strict=True))
    )


def test_a_workdir_is_asked_for_where_something_is_trained(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    with pytest.raises(SystemExit) as ended:
        train.main([f"--config={tmp_path / 'recipe.py'}"])
    assert ended.value.code == 2


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: it knows slices")
def test_slices_are_the_outer_part_of_data() -> None:
    mesh = sharding.make_mesh(config.Sharding(-1, 2, 1), 8, devices=two_slices())
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    of_slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert (of_slices == np.array([0, 0, 1, 1])[:, None, None]).all()
    with pytest.raises(BadInput, match="sharding.data: 1 does not divide among 2 TPU slices"):
        sharding.make_mesh(config.Sharding(1, 8, 1), 8, devices=two_slices())


def test_an_axis_may_be_part_of_one_of_the_torus() -> None:
    pytest.importorskip("libtpu", reason="libtpu is not installed: it knows topologies")
    mesh = sharding.make_mesh(config.Sharding(8, 4, 2), 64, devices=chips.open_topology("v5p:4x4x4")[1])
    assert dict(mesh.shape) == {"data": 8, "fsdp": 4, "tensor": 2}
    for pair in mesh.devices.reshape(-1, 2):
        assert sum(a != b for a, b in zip(pair[0].coords, pair[1].coords, strict=True)) == 1


def two_slices() -> list[Any]:
    """Devices of two slices v5e:2x2 that are not attached."""
    from jax.experimental import topologies

    chips.open_topology("v5e:2x2")  # for what it tells libtpu
    return list(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices)


EIGHT = """
import jax; jax.config.update("jax_num_cpu_devices", 8)
import jax.numpy as jnp, re
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxbert import config, sharding
from jaxbert.models.heads import vocabulary_logits
from jaxbert.objectives.mlm import cross_entropy

B, PREDICTED, E, V = 16, 6, 24, 250  # 256 stored

def loss(x_BPE, table_VE, bias_V, labels_BP):
    nll_BP, hit_BP, _ = cross_entropy(vocabulary_logits(x_BPE, table_VE, bias_V, V), labels_BP)
    return jnp.sum(nll_BP), jnp.sum(hit_BP)

mesh = sharding.make_mesh(config.Sharding(2, 2, 2), B)
places = [NamedSharding(mesh, spec) for spec in (P(("data", "fsdp")), P("tensor", "fsdp"), P("tensor"))]
shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((B, PREDICTED, E), (256, E), (256,))]
labels = jax.ShapeDtypeStruct((B, PREDICTED), jnp.int32)
step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), in_shardings=(*places, places[0]))
with jax.set_mesh(mesh):
    text = step.lower(*shapes, labels).compile().as_text()
arrays = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\\w\\d+\\[([\\d,]+)\\]", text)}
assert (4, 6, 128) in arrays or (24, 128) in arrays, arrays  # a device's rows, its half of the words
whole = {dims for dims in arrays if 256 in dims and set(dims) & {4 * 6, 16 * 6, 6}}
assert not whole, whole
"""


def test_no_device_holds_the_logits_of_all_words_where_tensor_splits_them() -> None:
    done = subprocess.run([sys.executable, "-c", EIGHT], capture_output=True, text=True)
    assert not done.returncode, done.stderr


PROCESS = """
import sys
import jax; jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]))
import numpy as np
from jaxbert import config, sharding, step

made = set()
for axes in ((8, 1, 1), (2, 4, 1), (4, 1, 2), (1, 2, 4), (1, 1, 8)):
    place = sharding.batch_sharding(sharding.make_mesh(config.Sharding(*axes), 8), leading=1)
    whole_BT = np.arange(2 * 8 * 3).reshape(16, 3)
    own_B = sharding.own_rows(place, 2, 16)
    made.add(len(own_B))
    mine = step.in_parts({"ids_BT": whole_BT[own_B]}, 2)
    assert sharding.batch_shapes(mine, place)["ids_BT"].shape == (2, 8, 3)
    array = sharding.put_batch(mine, place)["ids_BT"]
    assert array.shape == (2, 8, 3) and array.sharding == place
    for shard in array.addressable_shards:
        assert (np.asarray(shard.data) == whole_BT.reshape(2, 8, 3)[shard.index]).all()
print(sorted(made))
"""


def test_a_process_makes_the_rows_of_its_devices_and_they_are_its_part_of_the_global_batch() -> None:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS)]
    port = free_address().rpartition(":")[2]
    both = [subprocess.Popen([*command, number, port], stdout=subprocess.PIPE, text=True) for number in "01"]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert all("[8, 16]" in lines for lines in told) and not any(process.returncode for process in both), told


def test_one_process_makes_every_row() -> None:
    place = sharding.batch_sharding(
        sharding.make_mesh(config.Sharding(1, 1, 1), 8, devices=jax.devices()[:1]), leading=1
    )
    assert sharding.own_rows(place, 2, 16).tolist() == list(range(16))


def test_the_plan_of_a_recipe_with_overrides_keeps_them_on_other_meshes() -> None:
    override = config.Override("position_TD", ("", ""))
    settings = config.resolve(
        config.Config(model=config.named_model("bert_tiny"), sharding=config.Sharding(overrides=(override,)))
    )
    assert all(mesh.overrides == (override,) for mesh in plan.meshes(settings, 8))


def equations(jaxpr: Any, inside: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every equation, with the names of those that it stands in."""
    for equation in jaxpr.eqns:
        yield inside, equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner, (*inside, equation.primitive.name))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_data_adds_every_gradient_up_once_a_step_in_the_dtype_of_the_computation(accumulate: int) -> None:
    train: Any = config.Train(batch_size=8, steps=4, accumulate=accumulate, dtype="bfloat16")
    settings = config.resolve(config.Config(model=config.named_model("bert_tiny"), train=train))
    objective = planner.objective_of(settings)
    shapes = objective.batch_shapes(8 // accumulate, 16, one_document=False)
    batch = {n: jax.ShapeDtypeStruct((accumulate, *x.shape), x.dtype) for n, x in shapes.items()}
    optimizer = optim.make_optimizer(settings.optimizer, objective.vocab_size)
    update = step.make_update(objective, optimizer, optim.make_schedule(settings.schedule, 1e-3, 4), settings)
    state = jax.eval_shape(lambda: step.initial_state(objective, optimizer, jax.random.key(0)))
    with jax.sharding.use_abstract_mesh(MESH):
        traced = jax.make_jaxpr(update)(state, batch)
    added = [
        (inside, variable.aval)
        for inside, equation in equations(traced.jaxpr)
        if equation.primitive.name.startswith("psum") and "data" in equation.params["axes"]
        for variable in equation.invars
    ]
    assert {inside for inside, _ in added} == {("shard_map",)}, "within a loop it would be once a layer or a part"
    arrays = [x for _, x in added if x.ndim]
    assert sorted(x.shape for x in arrays) == sorted(x.shape for x in jax.tree.leaves(state["model"]))
    assert {x.dtype for x in arrays} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for _, x in added if not x.ndim} == {jnp.dtype(jnp.float32)}, "counts past 256 are no bfloat16"
