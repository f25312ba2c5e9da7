"""The account of a run's time under a clock of our own: what counts over restarts, and which phase made a step slow."""

import json
from pathlib import Path

import pytest

from jaxbert import config, goodput, train
from jaxbert.objectives.mlm import MaskedLanguageModelling
from tests.test_train import Killed, change, kill_at


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def spend(account: goodput.Account, clock: Clock, phase: str, seconds: float) -> None:
    account.enter(phase)
    clock.now += seconds


def one_step(
    account: goodput.Account,
    clock: Clock,
    data: float = 0.0,
    compute: float = 1.0,
    save: float = 0.0,
    bad: bool = False,
) -> goodput.Slow | None:
    """As the loop has it: data, dispatch and the reading of metrics, a save."""
    spend(account, clock, "data", data)
    spend(account, clock, "step", compute)
    account.judged(counts=not bad)
    spend(account, clock, "save", save)
    return account.step_ends((8, 64))


def test_every_second_belongs_to_the_phase_entered_last(clock: Clock, tmp_path: Path) -> None:
    account = goodput.Account(tmp_path / "goodput.json", clock.now, clock)
    clock.now += 3
    for phase, seconds in (("compile", 20), ("restore", 2)):
        spend(account, clock, phase, seconds)
    for _ in range(5):
        one_step(account, clock, data=1, compute=10, save=0.5)
    spend(account, clock, "evaluate", 7)
    assert account.share == pytest.approx(50 / (3 + 20 + 2 + 5 * 11.5 + 7))
    account.write()
    told = account.summary()
    assert told["goodput"] == pytest.approx(50 / 89.5, abs=1e-4)
    assert told["time"]["seconds"] == {
        **{"start": 3, "compile": 20, "restore": 2, "data": 5, "step": 50, "save": 2.5, "evaluate": 7}
    }


def test_a_bad_step_that_is_left_out_did_not_count(clock: Clock) -> None:
    account = goodput.Account(None, clock.now, clock)
    for bad in (False, True, True, False):
        one_step(account, clock, compute=5, bad=bad)
    assert account.share == 0.5


def test_steps_done_again_after_a_restore_did_not_count_and_time_without_a_process_is_told_apart(
    clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "goodput.json"
    first = goodput.Account(path, clock.now, clock)
    for _ in range(4):
        one_step(first, clock, compute=20)
    saved = first.saved()  # in the checkpoint of step 4
    for _ in range(3):
        one_step(first, clock, compute=20)  # and then it is killed
    clock.now += 600
    clock.now += 10
    second = goodput.Account(path, clock.now - 10, clock)
    second.go_on(saved)
    for _ in range(6):
        one_step(second, clock, compute=20)
    second.write()
    told = second.summary()
    assert told["time"]["down"] == 600
    assert told["time"]["seconds"]["step"] == (4 + 3 + 6) * 20
    assert told["goodput"] == pytest.approx((4 + 6) * 20 / (13 * 20 + 10), abs=1e-4)
    assert str(second).startswith("74.1% of 270 s in steps that counted; lost 22%, start 4%")


def test_an_account_whose_file_was_lost_goes_on_from_the_checkpoints(clock: Clock, tmp_path: Path) -> None:
    first = goodput.Account(tmp_path / "goodput.json", clock.now, clock)
    for _ in range(4):
        one_step(first, clock, data=5, compute=15)
    saved = json.loads(json.dumps(first.saved()))
    (tmp_path / "goodput.json").unlink()
    second = goodput.Account(tmp_path / "goodput.json", clock.now, clock)
    clock.now += 20
    second.go_on(saved)
    assert second.share == 60 / 100


def test_what_a_killed_process_did_since_the_file_was_written_is_no_more_than_ten_seconds_and_a_step(
    clock: Clock, tmp_path: Path
) -> None:
    account = goodput.Account(tmp_path / "goodput.json", clock.now, clock)
    for _ in range(1000):
        one_step(account, clock, compute=0.5)
        written = json.loads((tmp_path / "goodput.json").read_text())["written"] if clock.now > 1011 else clock.now
        assert clock.now - written <= goodput.WRITE_EVERY + 0.5


@pytest.mark.parametrize("content", ["", "{", '{"seconds": {}}'])
def test_an_account_that_is_not_whole_is_begun_anew(clock: Clock, tmp_path: Path, content: str) -> None:
    (tmp_path / "goodput.json").write_text(content)
    account = goodput.Account(tmp_path / "goodput.json", clock.now, clock)
    one_step(account, clock)
    assert account.share == 1.0


def test_an_account_that_cannot_be_written_does_not_end_the_run(clock: Clock, tmp_path: Path) -> None:
    account = goodput.Account(tmp_path / "absent/goodput.json", clock.now, clock)
    one_step(account, clock)
    account.write()
    assert account.summary()["goodput"] == 1.0


@pytest.mark.parametrize(
    ("long", "phase"),
    [({"data": 4.0}, "data"), ({"compute": 4.0}, "compute"), ({"save": 9.0}, "save")],
)
def test_a_step_over_three_times_the_median_is_slow_by_the_phase_that_was_long(
    clock: Clock, long: dict, phase: str
) -> None:
    account = goodput.Account(None, clock.now, clock)
    usual = {"data": 0.25, "compute": 0.5, "save": 0.25}
    for i in range(120):
        assert one_step(account, clock, **usual | ({"save": 1.75} if i % 50 == 49 else {})) is None  # 2.5 ×
    slow = one_step(account, clock, **usual | long)
    assert slow.phase == phase and slow.median == pytest.approx(1.0)
    assert slow.seconds == pytest.approx(sum((usual | long).values()))
    assert one_step(account, clock, **usual) is None
    assert account.slow == {phase: 1} and account.slow_in_window == 1


def test_steps_are_compared_with_those_of_their_shape_and_not_before_there_are_enough(clock: Clock) -> None:
    steps = goodput.SlowSteps()
    assert not any(steps.judge((8, 64), {"step": 1.0 if i else 50.0}) for i in range(goodput.ENOUGH))
    assert not any(steps.judge((8, 512), {"step": 10.0}) for _ in range(goodput.ENOUGH))  # longer rows
    assert steps.judge((8, 64), {"step": 10.0}) is not None


def test_the_median_is_of_the_last_hundred(clock: Clock) -> None:
    steps = goodput.SlowSteps()
    for _ in range(500):
        steps.judge((), {"step": 1.0})
    assert sum(steps.judge((), {"step": 4.0}) is not None for _ in range(100)) == goodput.RECENT // 2


@pytest.mark.slow
def test_a_run_tells_its_goodput_and_a_resumed_one_what_was_lost(
    tiny_corpus: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(goodput, "WRITE_EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 13)
        train.train(tiny_corpus, tmp_path / "run")
    summary = train.train(tiny_corpus, tmp_path / "run")
    time = summary["time"]
    lost = time["seconds"]["step"] - time["counted"]  # steps 11 to 13, done twice
    assert 0 < lost < time["seconds"]["step"] / 2 and time["down"] >= 0
    assert {"start", "compile", "restore", "data", "step", "save", "evaluate"} <= set(time["seconds"])
    assert summary["goodput"] == pytest.approx(time["counted"] / sum(time["seconds"].values()), abs=1e-3)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["goodput"] < 1 and line["slow_steps"] == 0 for line in lines if line["split"] == "train")
    assert "in steps that counted" in capsys.readouterr().out


@pytest.mark.slow
def test_a_skipped_steps_time_does_not_count(
    tiny_corpus: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MaskedLanguageModelling.make_batch

    def make_batch(self, *arguments):
        batch = real(self, *arguments)
        return batch | {"weights_BP": batch["weights_BP"] * float("nan")}

    monkeypatch.setattr(MaskedLanguageModelling, "make_batch", make_batch)
    settings = change(tiny_corpus, train={"steps": 4, "check_first_loss": False}, evaluation={"every": 1000})
    time = train.train(settings, tmp_path / "run")["time"]
    assert time["counted"] == 0 and time["seconds"]["step"] > 0
