"""Our encoders against the published implementations' own numbers, read from a directory of .npz files.

    pytest tests/test_golden.py [--golden=DIR]

Every case whose family exists runs; sizes, heads, kernels and groups come from the file. A family's file
`golden_<family>.py` builds its model and names its outputs.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest

HERE = Path(__file__).parent
OUTPUTS = ("last_hidden_state", "hidden_states", "mlm_logits", "pooler_output", "nsp_logits", "y")
FAMILIES = [importlib.import_module(f"tests.{path.stem}") for path in sorted(HERE.glob("golden_*.py"))]


def family_of(case: str) -> ModuleType | None:
    return next((family for family in FAMILIES if case.startswith(family.PREFIXES)), None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    directory = Path(metafunc.config.getoption("--golden"))
    paths = [path for path in sorted(directory.glob("*.npz")) if family_of(path.stem)]
    assert paths, f"--golden: {directory} has no case of a family that exists"
    if "path" in metafunc.fixturenames:
        metafunc.parametrize("path", paths, ids=[path.stem for path in paths])


def wanted(data: dict[str, np.ndarray], mask_mode: str) -> dict[str, np.ndarray]:
    """The numbers to meet: float64 ones where the published code computes in float32 inside; in exact mode those of
    each row alone. Full rows have no padding: there both modes meet the same."""
    under = lambda prefix: {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}  # noqa: E731
    if mask_mode == "exact" and under("trim/"):
        return under("trim/")
    return {name: array for name, array in data.items() if name.partition("/")[0] in OUTPUTS} | under("f64/")


def check(path: Path, dtype: str, mask_mode: str) -> None:
    data = dict(np.load(path))
    given = json.loads(str(data["config"]))
    tolerance = 1e-9 if dtype == "float64" else 10 * given["native_fp32_maxdiff"]
    with jax.enable_x64(dtype == "float64"):
        found = {k: np.asarray(v) for k, v in family_of(path.stem).outputs(data, given, dtype, mask_mode).items()}
    real_BT = data["attention_mask"].astype(bool)
    for name, theirs in wanted(data, mask_mode).items():
        assert found[name].dtype == dtype, name
        real = real_BT if theirs.ndim == 3 else slice(None)
        assert np.abs(found[name][real] - theirs[real]).max() <= tolerance, name


DTYPES = pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])


@DTYPES
def test_reference_mode_gives_every_published_number(path: Path, dtype: str) -> None:
    check(path, dtype, "reference")


@DTYPES
def test_exact_mode_gives_what_each_row_gives_alone(path: Path, dtype: str) -> None:
    check(path, dtype, "exact")
