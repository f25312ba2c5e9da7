"""Static cycles, on dumps of two small kernels that libtpu 0.0.52 wrote (tests/cycles/make.py), and on a fresh one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbert import cycles
from jaxbert.chips import CHIPS
from jaxbert.errors import BadInput

DUMPS = Path(__file__).parent / "cycles"
V5E, V6E = CHIPS["v5e"], CHIPS["v6e"]


def program(dump: str) -> cycles.Program:
    (found,) = cycles.read(DUMPS / dump, CHIPS[dump.partition("_")[0]])
    return found


def test_a_pipelined_loop_runs_its_body_once_a_block_although_it_has_more_trips() -> None:
    product = program("v5e_product")
    (loop,) = product.loops
    assert loop.trips == 6 and not product.unknown  # four blocks, and two iterations to fill and drain
    assert set(product.executed[loop.begin : loop.end + 1].round(6)) == {1.0, round(4 / 6, 6)}
    outside = product.bundles - (loop.end - loop.begin + 1)
    assert outside + 4 * (loop.end - loop.begin + 1) < product.work().cycles < outside + 6 * (product.bundles - outside)


@pytest.mark.parametrize("dump, chip, side", [("v5e_product", V5E, 128), ("v6e_product", V6E, 256)])
def test_a_product_sends_its_rows_once_through_units_as_wide_as_the_chips(dump: str, chip, side: int) -> None:
    work = program(dump).work()
    assert chip.matrix_size == side and work.matrix_rows == 64  # 128 × 128 values fit both
    (row,) = cycles.rank([program(dump)], chip).rows
    assert row.matrix / chip.clock == pytest.approx(2 * 64 * side * side / chip.flops)  # what the datasheet promises


@pytest.mark.parametrize("dump", ["v5e_product", "v6e_product"])
def test_hbm_bytes_are_those_of_operands_and_result(dump: str) -> None:
    assert program(dump).work().moved == 64 * 128 * 2 + 128 * 128 * 2 + 64 * 128 * 4  # the weights once, not per block


def test_trips_that_depend_on_data_are_named_and_can_be_given() -> None:
    sums = program("v5e_sums")
    (inner,) = sums.unknown
    size = inner.end - inner.begin + 1
    once = sums.work().cycles
    share = sums.executed[inner.begin]
    assert sums.loops[0].trips == 4 and 2 / 4 == share  # two blocks in an outer loop of four trips
    for trips in ({"sums.1": (11,)}, lambda program, number: 11):
        assert sums.work(trips).cycles == once + 4 * share * size * 10
    assert sums.work({"another": (7,)}).cycles == once
    assert "sums.1" in cycles.table(cycles.rank([sums], V5E)).splitlines()[-1]
    with pytest.raises(BadInput, match="trips: 2 given for sums.1, which has 1 loop"):
        sums.work({"sums.1": (1, 2)})


def test_equal_instructions_share_a_program_and_runs_add_up(tmp_path: Path) -> None:
    shutil.copytree(DUMPS / "v5e_product", tmp_path, dirs_exist_ok=True)
    (notes,) = tmp_path.glob("*deduplication-map.txt")
    notes.write_text(notes.read_text().replace("[size=1]:\n  product.1", "[size=2]:\n  product.1\n  product.2"))
    (product,) = cycles.read(tmp_path, V5E)
    assert product.instructions == ("product.1", "product.2")
    step = cycles.rank([product], V5E, executions={"product.1": 1, "product.2": 23}, sources={"product.2": "bert.py:7"})
    assert step.rows[0].runs == 24 and step.rows[0].bundles == 24 * product.work().cycles
    assert not step.unmatched and "bert.py:7" in cycles.table(step)
    assert cycles.rank([product], V5E, executions={"product.1": 1}).unmatched == ("product.2",)


def test_a_step_takes_the_largest_of_bundles_matrix_unit_and_hbm() -> None:
    step = cycles.rank([program("v5e_product"), program("v5e_sums")], V5E)
    for row in step.rows:
        assert row.cycles == max(row.bundles, row.matrix, row.hbm)
        assert row.bound == {row.bundles: "bundles", row.matrix: "matrix unit", row.hbm: "HBM"}[row.cycles]
    assert step.seconds == pytest.approx(sum(row.cycles for row in step.rows) / V5E.clock)
    assert step.share_of_peak(step.seconds * V5E.flops / 2) == pytest.approx(0.5)
    assert [row.cycles for row in step.rows] == sorted((row.cycles for row in step.rows), reverse=True)
    assert step.sums["bundles"] * V5E.clock == pytest.approx(sum(row.bundles for row in step.rows))
    assert all(0 < alone <= step.seconds for alone in step.sums.values())
    text = cycles.table(step, flops=1e6, count=1)
    assert "jit(<lambda>)/product/pallas_call" in text and "sums" not in text.splitlines()[1]
    assert "not a speed" in text and "of peak" in text


def test_flags_that_are_set_stay_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_enable_something=true")
    flags = cycles.environment("dumps")["LIBTPU_INIT_ARGS"]
    assert flags.startswith("--xla_tpu_enable_something=true --xla_jf_dump_to=dumps ")


def test_dumps_of_another_format_are_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no \*-final_bundles.txt; .*libtpu 0.0.52"):
        cycles.read(tmp_path, V5E)
    shutil.copytree(DUMPS / "v5e_product", tmp_path, dirs_exist_ok=True)
    (slots,) = tmp_path.glob("*per-bundle-utilization.txt")
    text = slots.read_text()
    slots.write_text(text.replace("XLU, VALU", "VALU, XLU"))
    with pytest.raises(BadInput, match="begins with 'MATMUL, MATPUSH, VALU, XLU.*libtpu 0.0.52"):
        cycles.read(tmp_path, V5E)
    slots.write_text(text + "0 0 0 0 0 0 0 0 0 0 0\n")
    with pytest.raises(BadInput, match="84 bundles, but its slot table has 85 lines"):
        cycles.read(tmp_path, V5E)
    slots.unlink()
    with pytest.raises(BadInput, match="no slot table beside it"):
        cycles.read(tmp_path, V5E)


def compiled(folder: Path, kernel: str, topology: str = "v5e:2x2") -> str:
    """The HLO of a kernel of tests/cycles/make.py that libtpu, in a process of its own, dumped into `folder`."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu")
    command = [sys.executable, "-m", "tests.cycles.make", str(folder), kernel, topology]
    environment = {**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], env=environment, capture_output=True)
    return (folder / "compiled.hlo").read_text()


@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_installed_libtpu_writes_what_is_read_here(topology: str, tmp_path: Path) -> None:
    compiled(tmp_path, "product", topology)
    found = {program.name: program for program in cycles.read(tmp_path, CHIPS[topology.partition(":")[0]])}
    product = found["product.1"]
    assert cycles.BETWEEN in found and product.op_name.endswith("product/pallas_call")
    assert product.work().matrix_rows == 64 and product.work().moved == program("v5e_product").work().moved


def test_a_scans_body_runs_as_often_as_the_compiled_program_says(tmp_path: Path) -> None:
    step = cycles.of_compiled(tmp_path, compiled(tmp_path, "scan"), V5E)
    (product,) = (row for row in step.rows if row.work.matrix_rows)
    assert product.runs == 5 and product.work.matrix_rows == 64 and product.source == "cycles/make.py:60"
    (between,) = (row for row in step.rows if row.program.name == cycles.BETWEEN)
    (loop,) = between.program.unknown
    once = between.program.work().cycles
    assert between.work.cycles == once + 4 * (loop.end - loop.begin + 1)
    assert not step.unmatched
