"""What a checkpoint promises: bit for bit, on any mesh, and never a damaged one in silence."""

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


def saved(directory: Path, *losses: float | None, keep_last: int = 2) -> checkpoint.Checkpoints:
    saves = checkpoint.Checkpoints(directory, Checkpoint(keep_last=keep_last))
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


def test_a_failed_save_warns_and_the_next_one_is_whole(tmp_path: Path, caplog, monkeypatch) -> None:
    saves = saved(tmp_path / "c", None)

    class Full:
        def result(self) -> None:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    real = saves._checkpointer().save_checkpointables_async
    monkeypatch.setattr(saves._open, "save_checkpointables_async", lambda *a, **k: (real(*a, **k).result(), Full())[1])
    saves.save(2, state(2), {"step": 2, "tokens": 20}, None)
    saves.wait()
    assert "step 2 was not saved" in caplog.text and "No space left" in caplog.text
    saves.save(3, state(3), {"step": 3, "tokens": 30}, None)
    saves.close()
    assert checkpoint.steps_in(tmp_path / "c") == [1, 3]


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
