"""Checkpoints in a bucket: TensorStore's own client of Google's API against a server on this machine (bucket.py)."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxbert import checkpoint, config, runs, train
from jaxbert.config import Checkpoint
from tests.bucket import bucket
from tests.test_checkpoint import abstract, bits, state
from tests.test_train import change, fingerprints, records


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A bucket's URL and the folder of its objects."""
    folder = tmp_path_factory.mktemp("google")
    with pytest.MonkeyPatch.context() as patch, bucket(folder, patch) as url:
        yield url, folder / "bucket"


def test_a_save_that_was_not_finished_is_passed_over_although_its_directory_has_a_steps_name(
    place: tuple[str, Path], caplog
) -> None:
    url, folder = place
    saves = checkpoint.Checkpoints(f"{url}/run", Checkpoint(keep_last=2))
    for step in (1, 2, 3):
        saves.save(step, state(step), {"step": step}, None)
    saves.close()
    assert checkpoint.steps_in(f"{url}/run") == [2, 3]
    (folder / "run/3/commit_success.txt").unlink()  # in a bucket nothing is renamed: this object is written last
    step, found, _ = saves.restore_newest(abstract())
    assert step == 2 and bits(found) == bits(state(2))
    assert "gs://bucket/run/3 is broken" in caplog.text and "1 steps are done again" in caplog.text


@pytest.mark.slow
def test_a_run_whose_machine_is_gone_goes_on_from_the_bucket(
    place: tuple[str, Path], tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    url, folder = place
    settings = change(tiny_corpus, checkpoint={"directory": f"{url}/tiny"})
    train.train(settings, tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    shutil.rmtree(folder / "tiny/20")
    train.train(settings, tmp_path / "new")
    assert records(tmp_path / "new") == records(tiny_run)
    assert fingerprints(tmp_path / "new") == fingerprints(tiny_run)
    assert runs.load_run(tmp_path / "new", "best").step == 20
