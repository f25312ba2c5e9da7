"""What a plan promises: the step that training runs, and an answer for what does not fit."""

import dataclasses
import importlib.util
import itertools
import json
import math
import types
from pathlib import Path

import jax
import pytest

from jaxbert import chips, config, plan, program, recipe_files, sharding, step
from jaxbert.errors import BadInput
from jaxbert.ops.attention.tiles import of_chip
from jaxbert.planner import Attempt, Planner

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed (pip install jaxbert[tpu]; make test-slow does, and CI's tests run after it)",
)

RECIPE = """
from jaxbert.config import Config, Schedule, Tokenizer, Train, Data, named_model
def get_config():
    return Config(
        tokenizer=Tokenizer(vocab_size=1000),
        data=Data(row_length=64),
        model=named_model("bert_tiny", hidden_dropout=0.0, attention_dropout=0.0),
        train=Train(batch_size=64, steps=100, dtype="bfloat16"),
        schedule=Schedule(warmup=0.1),
    )
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


def planner(recipe: str, topology: str, *overrides: str) -> Planner:
    settings = config.resolve(recipe_files.load(recipe, overrides))
    return Planner(settings, config.phases(settings)[0], topology)


@pytest.fixture(scope="module")
def one_chip(recipe: str) -> Attempt:
    asked = planner(recipe, "v5e:1x1")
    asked.chip = dataclasses.replace(asked.chip, readable=False)  # as others', so that libtpu dumps the program too
    return asked.attempt()


def test_what_is_compiled_is_the_step_that_training_runs(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    real = step.make_step
    monkeypatch.setattr(step, "make_step", lambda *a: made.append(real(*a)) or made[-1])
    tried = planner(recipe, "v5e:2x2").attempt()
    assert tried.fits and [type(m) for m in made] == [step.Step]
    assert not tried.dumped  # jax reads a v5e's program back
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(made[0].abstract))
    memory = tried.memory
    assert 0 <= state - memory.parameters - memory.optimizer <= 64  # counters
    arguments = tried.compiled.memory_analysis().argument_size_in_bytes
    assert arguments >= memory.parameters + memory.optimizer + memory.batch


@pytest.mark.slow
def test_fsdp_divides_the_state_and_the_operations_are_the_models_own(recipe: str) -> None:
    whole, split = planner(recipe, "v5e:2x2").attempt(), planner(recipe, "v5e:2x2").attempt(config.Sharding(1, 4, 1))
    assert split.memory.parameters < 0.3 * whole.memory.parameters
    assert split.memory.optimizer < 0.3 * whole.memory.optimizer
    for tried in (whole, split):
        cost = tried.costs
        assert 1.0 <= cost.flops / cost.model_flops <= 1.05
        assert 0 < cost.low <= cost.high


def test_loops_whose_trips_the_rows_decide_are_said_to_be_left_out() -> None:
    (line,) = plan.uncounted(program.Program({}, "main", unknown_trips=["while.3", "while.7"]))
    assert "2 loops" in line and "too low" in line


def test_running_out_of_memory_is_an_answer(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (Path(__file__).parent / "program" / "out_of_memory_v5e.txt").read_text()

    def refuse(*_: object) -> None:
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(step.Step, "compile", refuse)
    asked = planner(recipe, "v5e:1x1")
    tried = asked.attempt()
    assert not tried.fits and tried.memory.temporaries == int(step.out_of_memory(said).needed)
    lines = list(plan.report(tried))
    assert any("DOES NOT FIT" in line for line in lines) and any("CompileTimeHbmOom" in line for line in lines)


def test_without_the_search_nothing_but_what_is_asked_is_compiled(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []

    def refuse(*given: object) -> None:
        asked.append(given)
        raise jax.errors.JaxRuntimeError((Path(__file__).parent / "program" / "out_of_memory_v5e.txt").read_text())

    monkeypatch.setattr(step.Step, "compile", refuse)
    file = tmp_path / "plan.json"
    plan.main([f"--config={recipe}", "--topology=v5e:1x1", f"--json={file}", "--no-search"])
    assert len(asked) == len(json.loads(file.read_text())["attempts"]) == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "micro-batch, rematerialize" not in said


def test_the_largest_micro_batch_is_the_last_that_fits(
    recipe: str, one_chip: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, tried = planner(recipe, "v5e:1x1"), one_chip

    def compiled_up_to_eight(settings: config.Config) -> Attempt:
        rows = 64 // settings.train.accumulate
        return dataclasses.replace(tried, settings=settings, compiled=tried.compiled if rows <= 8 else None)

    monkeypatch.setattr(asked, "_compile", compiled_up_to_eight)
    found = asked.largest("none")
    assert found is not None and found.micro_batch == 8 and found.settings.train.accumulate == 8
    told = list(plan.search(asked))
    assert told[0].startswith("largest micro-batch, rematerialize none: 8 rows of 64 tokens a device")
    assert any("--config.train.accumulate=8" in line for line in told)


def test_what_alone_needs_far_more_than_a_device_has_is_not_compiled(
    recipe: str, one_chip: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, rows = planner(recipe, "v5e:1x1"), []

    def compiled(settings: config.Config) -> Attempt:
        rows.append(64 // settings.train.accumulate)
        return dataclasses.replace(one_chip, settings=settings)

    monkeypatch.setattr(asked, "_compile", compiled)
    free = asked.chip.hbm - (one_chip.memory.total - one_chip.memory.temporaries)
    monkeypatch.setattr(asked, "_kept", lambda policy, count: count * free / 10)  # 16 rows: 1.6 times
    found = asked.largest("full")
    assert found is not None and found.micro_batch == 8
    assert max(rows[1:]) == 8


def test_a_batch_that_fits_in_one_part_needs_no_rematerialisation(
    recipe: str, one_chip: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = planner(recipe, "v5e:1x1")
    monkeypatch.setattr(asked, "_compile", lambda settings: dataclasses.replace(one_chip, settings=settings))
    told = list(plan.search(asked))
    assert told[0].startswith("largest micro-batch, rematerialize none: 64 rows of 64 tokens a device")
    assert told[1] == "largest micro-batch, rematerialize full: the batch in one part fits without"


def test_a_program_that_jax_cannot_read_back_is_what_the_compiler_dumps(one_chip: Attempt) -> None:
    def as_text() -> str:
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure async-update\nmore")

    memory_analysis = one_chip.compiled.memory_analysis
    unread = types.SimpleNamespace(as_text=as_text, memory_analysis=memory_analysis)
    assert list(plan.report(dataclasses.replace(one_chip, compiled=unread))) == list(plan.report(one_chip))
    lines = plan.report(dataclasses.replace(one_chip, compiled=unread, dumped=""))
    assert any("fits" in line for line in itertools.islice(lines, 6))
    with pytest.raises(BadInput, match=r"topology: compiled for v5e, but libtpu dumped .*async-update\); memory"):
        list(lines)


def test_what_the_compiler_dumps_counts_as_what_jax_reads(one_chip: Attempt) -> None:
    read = dataclasses.replace(one_chip, dumped="")
    assert one_chip.dumped and list(plan.report(read)) == list(plan.report(one_chip))


def test_no_row_fits_is_said(recipe: str, one_chip: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, nothing = planner(recipe, "v5e:1x1"), dataclasses.replace(one_chip, compiled=None)
    monkeypatch.setattr(asked, "_compile", lambda settings: nothing)
    assert "what to change: no micro-batch fits this mesh" in list(plan.search(asked))


@pytest.mark.slow
def test_the_sweep_ranks_meshes_and_names_the_flags_of_each(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "POLICIES", ("none",))
    monkeypatch.setattr(plan, "meshes", lambda *_: [config.Sharding(4, 1, 1), config.Sharding(1, 4, 1)])
    lines = list(plan.sweep(planner(recipe, "v5e:2x2")))
    assert len(lines) == 2 and all("--config.sharding.fsdp=" in line for line in lines)


def test_meshes_use_all_devices_and_split_heads_evenly(recipe: str) -> None:
    settings = config.resolve(recipe_files.load(recipe))
    for devices in (4, 16, 256):
        found = plan.meshes(settings, devices)
        assert len(set(found)) == len(found) and config.Sharding(devices, 1, 1) in found
        assert all(m.data * m.fsdp * m.tensor == devices and settings.model.num_heads % m.tensor == 0 for m in found)


@pytest.mark.slow
def test_the_command_writes_its_numbers_as_json(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "POLICIES", ("none",))
    file = tmp_path / "plan.json"
    plan.main([f"--config={recipe}", "--topology=v5e:1x1", f"--json={file}", "--config.train.accumulate=64"])
    found = json.loads(file.read_text())
    assert found["topology"] == "v5e:1x1" and found["attempts"][0]["fits"]
    assert found["attempts"][0]["costs"]["low"] <= found["attempts"][0]["costs"]["high"]
    assert "an estimate from the datasheet's rates, not a measurement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:2x2"], "chips: v4, v5e"),
        (["--topology=v5e:2x2", "--config.sharding.fsdp=3"], "sharding: .* does not fit 4 devices"),
        (["--topology=v5e:2x2", "--config.train.batch_size=6"], "train.batch_size: 6 rows .* choose a multiple"),
        (["--topology=v5e:2x2", "--config.sharding.tensor=4"], "model.num_heads: 2 do not divide among"),
        (["--topology=h100:1", "--cycles"], "--cycles: reads programs of TPUs, not of h100"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_field_and_remedy(recipe: str, flags: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        plan.main([f"--config={recipe}", *flags])


def test_kernels_are_counted_on_rows_of_one_document() -> None:
    def trips(name: str, length: int) -> list[int]:
        kernel = types.SimpleNamespace(name=name)
        return [plan.kernel_trips(of_chip("v5e", 2), length, kernel, number) for number in range(2)]

    assert trips("attention_forward.3", 2048) == [2, 0]  # chunks of 1,024 keys
    assert trips("attention_backward", 2048) == [4, 0]  # of 512 queries
    assert trips("jvp_attention_forward_.2", 500) == [1, 0] and trips("fusion.7", 2048) == [1, 1]


def test_sharding_of_a_mesh_counts_the_given_devices() -> None:
    _, devices = chips.open_topology("v5e:2x2")
    assert sharding.make_mesh(config.Sharding(-1, 2, 1), 8, devices=devices).shape == {
        "data": 2,
        "fsdp": 2,
        "tensor": 1,
    }


@pytest.mark.slow
def test_a_cell_of_the_compile_matrix_holds_what_its_row_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    import compile_matrix

    small = {"model.name": "bert_tiny", "tokenizer.vocab_size": 1000, "train.batch_size": 64}
    small |= {"model.hidden_dropout": 0.0, "model.attention_dropout": 0.0}  # what compiles longest
    cell = compile_matrix.compile_cell("bert_base", "v5e", *(f"--config.{n}={v}" for n, v in small.items()))
    (found,) = cell["attempts"]
    assert found["fits"] and found["costs"]["flops"] <= 1.05 * found["costs"]["model_flops"]
    assert 0 < found["static"]["share_of_peak"] < 1
    assert compile_matrix.row(cell, found).count("|") == 9


@pytest.mark.slow
def test_tensor_splits_the_logits_and_adds_up_once_a_sublayer(recipe: str) -> None:
    asked = planner(recipe, "v5e:2x2", "--config.model.num_layers=3")
    whole, split = asked.attempt(config.Sharding(4, 1, 1)), asked.attempt(config.Sharding(2, 1, 2))
    assert whole.whole_logits and not split.whole_logits
    sums = [c for c in split.exchanges if c.kind == "all-reduce" and c.axes == ("tensor",) and "while" in c.op_name]
    states = 32 * 64 * 128 * 2  # bytes of a device's rows, tokens and widths in bfloat16
    # Attention and feed-forward, forward and backward; of two devices each sends an array's bytes once.
    assert [(c.bytes, c.executions) for c in sums if c.bytes >= states] == [(states, 2)] * 4


@pytest.mark.slow
def test_a_step_on_two_slices_sends_only_gradients_from_slice_to_slice(recipe: str) -> None:
    from tests.test_sharding import two_slices

    asked = planner(recipe, "v5e:2x2")
    asked.devices = two_slices()
    tried = asked.attempt(config.Sharding(-1, 2, 1))
    assert tried.fits and tried.mesh == {"data": 4, "fsdp": 2, "tensor": 1}
    between = [line for line in tried.compiled.as_text().splitlines() if "_xla_host_transfer_rendezvous" in line]
    assert between and all("all-reduce" in line or "reduce-scatter" in line for line in between)
