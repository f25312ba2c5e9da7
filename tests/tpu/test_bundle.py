"""What workers get is told by its sources, and built once."""

import zipfile

import pytest

from jaxbert.errors import BadInput
from tpu import bundle


@pytest.fixture
def clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.py").write_text("# a recipe\n")
    return tmp_path


def test_the_id_follows_sources_and_copied_files_and_nothing_else(clone):
    first = bundle.identity(["configs"])
    assert bundle.identity(["configs"]) == first
    (clone / "unrelated").write_text("x")
    assert bundle.identity(["configs"]) == first
    (clone / "configs" / "own.py").write_text("# another recipe\n")
    assert bundle.identity(["configs"]) != first
    with pytest.raises(BadInput, match="--copy=absent"):
        bundle.identity(["absent"])


def test_pins_are_what_jaxbert_needs_without_what_jax_chooses_itself():
    pins = bundle.pins()
    assert {"jax", "jaxlib", "flax", "tensorstore"} <= set(pins)
    assert not {"libtpu", "pytest", "torch", "jaxbert"} & set(pins)


@pytest.mark.slow
def test_a_bundle_has_the_wheel_of_this_code_and_is_built_once(clone):
    left = {path.name for path in bundle.SOURCE.iterdir()}
    folder = bundle.build(clone / ".launch", ["configs"])
    wheel = folder / bundle.wheel_name()
    assert "jaxbert/train.py" in zipfile.ZipFile(wheel).namelist()
    assert (folder / "files" / "configs" / "own.py").exists() and "jax==" in (folder / "constraints.txt").read_text()
    assert {path.name for path in bundle.SOURCE.iterdir()} == left, "building leaves nothing in the clone"
    built = wheel.stat().st_mtime_ns
    assert bundle.build(clone / ".launch", ["configs"]) == folder and wheel.stat().st_mtime_ns == built
