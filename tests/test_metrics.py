"""metrics.jsonl: nothing is lost on a full disk, and on resume the future is removed."""

import json
from pathlib import Path

from jaxbert.metrics import MetricWriter


class Disk:
    """A file of which `room` more bytes fit on the disk."""

    def __init__(self, room: int):
        self.room, self.written = room, b""

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        self.written += part
        return len(part)

    def close(self) -> None:
        pass


def test_lines_that_a_full_disk_did_not_take_are_written_when_there_is_room(tmp_path: Path, capsys) -> None:
    writer, disk = MetricWriter(tmp_path, restored_step=0), Disk(room=30)
    writer._file = disk
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": 1.0})
    assert "metrics of step 1 are not written yet" in capsys.readouterr().err
    disk.room = 10_000
    writer.write(4, "train", {"loss": 1.0})
    assert [json.loads(line)["step"] for line in disk.written.splitlines()] == [1, 2, 3, 4]


def test_closing_on_a_full_disk_is_a_warning(tmp_path: Path, capsys) -> None:
    writer = MetricWriter(tmp_path, restored_step=0)
    writer._file = Disk(room=0)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert "the last metrics were not written" in capsys.readouterr().err


def test_a_resumed_run_knows_its_newest_records_and_how_many_logged_steps_it_does_again(tmp_path: Path) -> None:
    lines = [{"step": step, "split": "train", "loss": float(step)} for step in (2, 4, 6)]
    lines.insert(1, {"step": 2, "split": "validation", "loss": 5.0})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 8, "spl')  # killed while writing
    writer = MetricWriter(tmp_path, restored_step=4)
    assert writer.last == {"train": {"step": 4, "loss": 4.0}, "validation": {"step": 2, "loss": 5.0}}
    assert writer.redone == 2
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == text.rpartition('{"step": 6')[0]


def test_a_score_that_is_owed_is_not_there_twice(tmp_path: Path) -> None:
    lines = [{"step": 4, "split": split, "loss": 1.0} for split in ("train", "validation")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    MetricWriter(tmp_path, restored_step=4, owed=True).close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == lines[0]


def test_only_one_of_several_processes_writes(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, restored_step=0, write=False)
    writer.write(1, "train", {"loss": 1.0})
    writer.close()
    assert not list(tmp_path.iterdir()) and writer.last["train"] == {"step": 1, "loss": 1.0}
