"""What a checkpoint promises: bit for bit, on any mesh, and never a damaged one in silence."""

import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert import checkpoint
from jaxbert.config import Checkpoint
from jaxbert.errors import BadInput


def state(seed: int) -> dict:
    key = jax.random.key(seed)
    weights = jax.random.normal(key, (64, 100)).at[0, :3].set(jnp.array([jnp.nan, -0.0, 1e-42]))
    return {
        "model": {"up_DF": weights, "half_D": weights[0].astype(jnp.bfloat16)},
        "counters": {"step": jnp.int32(seed)},
    }


def abstract() -> dict:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state(0))


def bits(tree: dict) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def saved(directory: Path, *losses: float | None, **fields: int) -> checkpoint.Checkpoints:
    saves = checkpoint.Checkpoints(directory, Checkpoint(**{"keep_last": 2, **fields}))
    for step, loss in enumerate(losses, start=1):
        saves.save(step, state(step), {"step": step, "tokens": 10 * step}, loss)
    saves.close()
    return saves


def damage(directory: Path, step: int) -> None:
    """Flip one bit in the middle of the largest file."""
    file = max((p for p in (directory / str(step)).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_comes_back_is_bit_for_bit_what_was_saved(tmp_path: Path) -> None:
    step, found, loop = saved(tmp_path / "c", None).restore_newest(abstract())
    assert (step, loop["tokens"]) == (1, 10)
    assert bits(found) == bits(state(1))


def test_what_the_loop_adds_while_a_save_is_written_is_not_in_it(tmp_path: Path) -> None:
    saves, sums = checkpoint.Checkpoints(tmp_path / "c", Checkpoint()), {"loss": 1.0}
    saves.save(1, state(1), {"step": 1, "tokens": 10, "sums": sums}, None)
    sums["loss"] = 2.0  # before the save is on disk
    saves.close()
    assert checkpoint.read(tmp_path / "c", 1, abstract())[1]["sums"] == {"loss": 1.0}


def test_a_part_of_the_state_is_read_alone(tmp_path: Path) -> None:
    saved(tmp_path / "c", None)
    found, _ = checkpoint.read(tmp_path / "c", 1, {"model": abstract()["model"]})
    assert bits(found) == bits({"model": state(1)["model"]})


def test_the_last_n_and_the_best_are_kept(tmp_path: Path) -> None:
    saved(tmp_path / "c", 3.0, 1.0, 2.0, 2.5, 2.6)
    assert checkpoint.steps_in(tmp_path / "c") == [2, 4, 5]


def test_every_kth_is_kept_for_good(tmp_path: Path) -> None:
    saved(tmp_path / "c", *[None] * 7, keep_every=3, keep_last=1)
    assert checkpoint.steps_in(tmp_path / "c") == [3, 6, 7]


def test_the_steps_that_a_broken_checkpoint_costs_are_named(tmp_path: Path, caplog) -> None:
    saves = saved(tmp_path / "c", None, None, None, keep_last=3)
    for step in (2, 3):
        damage(tmp_path / "c", step)
    assert saves.restore_newest(abstract())[0] == 1
    assert "going on from step 1: 2 steps are done again" in caplog.text


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda model: {**model, "more_F": model["half_D"]}, r"model/more_F is absent in it, \(100,\) in this recipe"),
        (lambda model: {"up_DF": model["up_DF"]}, r"model/half_D is \(100,\) in it, absent in this recipe"),
        (
            lambda model: {**model, "half_D": model["up_DF"]},
            r"model/half_D is \(100,\) in it, \(64, 100\) in this recipe",
        ),
    ],
    ids=["more", "less", "another size"],
)
def test_a_checkpoint_of_another_model_is_refused_and_left_alone(tmp_path: Path, change, told: str) -> None:
    saves = saved(tmp_path / "c", None)
    with pytest.raises(BadInput, match=f"c/1 is a checkpoint of another model: {told}"):
        saves.restore_newest({**abstract(), "model": change(abstract()["model"])})
    assert checkpoint.steps_in(tmp_path / "c") == [1]


def test_a_flipped_bit_is_named_and_the_older_whole_checkpoint_is_taken(tmp_path: Path, caplog) -> None:
    saves = saved(tmp_path / "c", None, None)
    damage(tmp_path / "c", 2)
    step, found, _ = saves.restore_newest(abstract())
    assert step == 1 and bits(found) == bits(state(1))
    assert "c/2 is broken" in caplog.text and (tmp_path / "c" / "broken-2").is_dir()


def test_a_step_that_was_broken_can_be_saved_again(tmp_path: Path) -> None:
    saves = saved(tmp_path / "c", None, None)
    damage(tmp_path / "c", 2)
    saves.restore_newest(abstract())
    saves.save(2, state(2), {"step": 2, "tokens": 20}, None)
    saves.close()
    assert saves.restore_newest(abstract())[0] == 2


@pytest.mark.parametrize("kind", ["empty", "torn"])
def test_a_directory_that_only_looks_like_a_checkpoint_is_passed_over(tmp_path: Path, kind: str) -> None:
    saves = saved(tmp_path / "c", None, None)
    for file in (tmp_path / "c" / "2").rglob("*"):
        if file.is_file() and (kind == "empty" or "manifest" in file.name):
            file.unlink()
    assert saves.restore_newest(abstract())[0] == 1


def test_if_no_checkpoint_is_whole_the_error_says_so(tmp_path: Path) -> None:
    saves = saved(tmp_path / "c", None)
    damage(tmp_path / "c", 1)
    with pytest.raises(BadInput, match="none of the 1 checkpoints is whole"):
        saves.restore_newest(abstract())


def test_an_empty_run_has_nothing_to_restore(tmp_path: Path) -> None:
    assert checkpoint.Checkpoints(tmp_path / "c", Checkpoint()).restore_newest(abstract()) is None


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps whose saves fail when they are nearly done."""
    steps: set[int] = set()

    class Full:
        def result(self) -> None:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    real = checkpoint.ocp.training.Checkpointer.save_checkpointables_async

    def save(self, step, *arguments, **more):
        response = real(self, step, *arguments, **more)
        if step in steps:
            response.result()
            return Full()
        return response

    monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "save_checkpointables_async", save)
    return steps


def test_a_failed_save_warns_and_the_next_one_is_whole(tmp_path: Path, caplog, failing: set[int]) -> None:
    failing.add(2)
    saves = saved(tmp_path / "c", None, None, None)
    assert "step 2 was not saved: ValueError: RESOURCE_EXHAUSTED: No space left" in caplog.text
    assert checkpoint.steps_in(tmp_path / "c") == [1, 3]
    assert saves.newest == 3


def test_saves_may_fail_so_many_times_in_a_row_and_one_more_ends_the_run(tmp_path: Path, failing: set[int]) -> None:
    failing |= {2, 4, 5}
    saves = checkpoint.Checkpoints(tmp_path / "c", Checkpoint(max_failures=1))
    for step in range(1, 6):
        saves.save(step, state(step), {}, None)
    with pytest.raises(
        BadInput, match="step 5 was not saved: .*No space.* 2 saves failed in a row.* goes on at step 3"
    ):
        saves.wait()


def test_a_run_is_not_finished_without_its_last_checkpoint(tmp_path: Path, failing: set[int]) -> None:
    failing.add(2)
    saves = saved(tmp_path / "c", None)
    saves.finish(1)
    saves.save(2, state(2), {}, None)
    with pytest.raises(BadInput, match="step 2 was not saved; make room at .*c and start .* it goes on at step 1"):
        saves.finish(2)


def test_closing_hides_no_other_error(tmp_path: Path, failing: set[int], caplog) -> None:
    failing.add(1)
    saved(tmp_path / "c", None, max_failures=0)  # is closed after its only save
    assert "checkpoint of step 1 was not saved: ValueError: RESOURCE_EXHAUSTED" in caplog.text


def test_two_processes_that_train_in_one_directory_do_not_take_each_others_checkpoints(tmp_path: Path) -> None:
    saves, other = saved(tmp_path / "c", None), saved(tmp_path / "c")
    with pytest.raises(BadInput, match="c/1 is there already: another process trains in this directory"):
        other.save(1, state(1), {}, None)
    assert saves.restore_newest(abstract())[0] == 1


@pytest.mark.parametrize(
    "error, told",
    [
        (PermissionError(13, "Permission denied"), "Permission denied.*give this account the right to write there"),
        (RuntimeError("Anonymous caller does not have storage.objects.create access. 401"), "401; give this account"),
        (ImportError("Please install gcsfs to access Google Storage"), "install gcsfs .*; pip install .jaxbert.gcs."),
    ],
    ids=["permission", "bucket", "no library"],
)
def test_a_bucket_without_rights_is_one_message_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def refused(self, *arguments, **more):
        raise error

    monkeypatch.setitem(sys.modules, "google.cloud.storage", types.ModuleType("storage"))  # as with jaxbert[gcs]
    monkeypatch.setattr(type(checkpoint.absolute("gs://bucket")), "mkdir", refused)
    with pytest.raises(BadInput, match=f"^checkpoint.directory: cannot write to gs://bucket/run: .*{told}"):
        checkpoint.Checkpoints("gs://bucket/run", Checkpoint())


def test_a_scheme_that_orbax_does_not_know_is_refused() -> None:
    with pytest.raises(BadInput, match="checkpoint.directory: ftp://host/run: no ftp:// here"):
        checkpoint.Checkpoints("ftp://host/run", Checkpoint())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int32", "uint8", "bool", "float64"])
def test_any_flipped_bit_changes_the_fingerprint(dtype: str) -> None:
    with jax.enable_x64(True):
        x = np.arange(24).reshape(2, 3, 4) % 2 if dtype == "bool" else np.linspace(-3, 3, 24).reshape(2, 3, 4)
        x = np.asarray(jnp.asarray(x).astype(dtype))
        whole = int(checkpoint.fingerprint(jnp.asarray(x)))
        for position in range(24):
            for bit in (0,) if dtype == "bool" else (0, 5, 8 * x.itemsize - 1):
                data = bytearray(x.tobytes())
                data[position * x.itemsize + bit // 8] ^= 1 << bit % 8
                flipped = np.frombuffer(bytes(data), x.dtype).reshape(x.shape)
                assert int(checkpoint.fingerprint(jnp.asarray(flipped))) != whole


def test_swapped_elements_change_the_fingerprint() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    assert int(checkpoint.fingerprint(x)) != int(checkpoint.fingerprint(x[:, ::-1]))
