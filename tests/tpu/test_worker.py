"""worker.py as the launcher calls it: an attempt starts once, and what became of it is told whatever was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tpu import worker


@pytest.fixture
def call(tmp_path):
    environment = {**os.environ, "JAXBERT_ROOT": str(tmp_path / "root"), "JAXBERT_WORKER": "3"}

    def run(*words, file=worker.__file__):
        done = subprocess.run([sys.executable, "-S", file, *words], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    yield run
    run("halt", "--grace=0")


def report(call):
    return json.loads(call("report")[1])


def wait(call, condition):
    deadline = time.monotonic() + 60
    while not condition(told := report(call)):
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told


def program(text):
    return ["--", sys.executable, "-S", "-c", text]


def test_an_attempt_starts_once_and_its_end_is_told(call, tmp_path):
    command = program("open('started', 'a').write('x'); print('hello'); raise SystemExit(3)")
    command[-1] = command[-1].replace("started", str(tmp_path / "started"))
    assert report(call)["attempt"] == 0
    for _ in range(3):
        assert call("start", "--attempt=1", *command)[0] == 0
    told = wait(call, lambda told: not told["alive"])
    assert (told["number"], told["code"], told["attempt"], told["bundle"]) == (3, 3, 1, "")
    assert told["tail"].endswith("hello\n") and told["seconds"] < 60
    assert call("start", "--attempt=1", *command)[0] == 0
    assert (tmp_path / "started").read_text() == "x"
    call("start", "--attempt=2", *command)
    told = wait(call, lambda told: told["attempt"] == 2 and not told["alive"])
    assert told["short"] == 1 and (tmp_path / "started").read_text() == "xx"
    assert call("log")[1].count("=== attempt") == 2 and call("log", f"--from={len(call('log')[1])}")[1] == ""


def test_two_that_start_it_at_once_start_it_once(call, tmp_path):
    text = f"open({str(tmp_path / 'started')!r}, 'a').write('x'); import time; time.sleep(60)"
    environment = {**os.environ, "JAXBERT_ROOT": str(tmp_path / "root"), "JAXBERT_WORKER": "3"}
    both = [subprocess.Popen([sys.executable, worker.__file__, "start", *program(text)], env=environment) for _ in "ab"]
    assert [each.wait() for each in both] == [0, 0]
    wait(call, lambda told: told["alive"] and (tmp_path / "started").exists())
    assert (tmp_path / "started").read_text() == "x"
    code, _, err = call("start", *program("pass"))
    assert code == 2 and "worker 3 runs" in err


def test_killed_by_a_signal_is_told_as_the_shell_does_and_what_it_left_behind_ends(call):
    text = (
        "import os, subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(99)'],"
        "close_fds=False); os.kill(os.getpid(), 9)"
    )
    call("start", *program(text))
    assert wait(call, lambda told: not told["alive"])["code"] == 137


def test_an_end_that_nobody_saw_is_told_as_killed(call, tmp_path):
    call("start", *program("import time; time.sleep(99)"))
    pid = int(wait_for_pid(tmp_path))
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    assert report(call)["alive"], "the training still holds the lock"
    os.kill(pid, signal.SIGKILL)
    assert wait(call, lambda told: not told["alive"])["code"] == 137


def wait_for_pid(tmp_path):
    while "pid" not in (told := json.loads((tmp_path / "root" / "run.json").read_text())):
        time.sleep(0.05)
    return told["pid"]


def test_stop_asks_first_and_then_kills(call, tmp_path):
    text = "import signal, sys, time; signal.signal(15, lambda *_: {}); print('on', flush=True); time.sleep(99)"
    for handler, code in (("sys.exit(75)", 75), ("None", 137)):
        call("start", "--attempt=1", *program(text.format(handler)))
        wait(call, lambda told: told["alive"] and "on\n" in call("log")[1].rpartition("===")[2])
        assert call("stop", "--grace=0.5")[0] == 0
        told = report(call)
        assert (told["alive"], told["code"], told["stopped"]) == (False, code, True)


def test_a_command_that_is_not_there_is_told(call):
    call("start", "--", "no-such-program")
    told = wait(call, lambda told: not told["alive"])
    assert told["code"] == 127 and "no-such-program" in told["tail"]


def test_a_torn_bundle_is_none(call, tmp_path):
    folder = tmp_path / "jaxbert-bundle"
    folder.mkdir()
    copy = folder / "worker.py"
    copy.write_bytes(Path(worker.__file__).read_bytes())
    (folder / "MANIFEST.json").write_text(json.dumps({"id": "b", "files": {"worker.py": worker.sha256(copy)}}))
    assert json.loads(call("report", file=str(copy))[1])["bundle"] == "b"
    call("installed", file=str(copy))
    assert json.loads(call("report", file=str(copy))[1])["installed"] == "b"
    copy.write_text(copy.read_text() + "\n# torn")
    assert json.loads(call("report", file=str(copy))[1])["bundle"] is None
