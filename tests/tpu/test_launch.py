"""The launcher against a gcloud that keeps state and fails as told: how each trouble ends."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tpu.fake_gcloud import NOT_LOGGED_IN, QUOTA, end_processes_with
from tests.tpu.launching import LOCAL, SLICE, Cloud


@pytest.fixture
def cloud(tmp_path):
    yield Cloud(tmp_path)
    end_processes_with(str(tmp_path))


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_from_nothing_to_a_finished_run_and_asked_again_nothing_doubles(cloud):
    code, out, _ = cloud.launch("--spot")
    assert code == 0
    assert [cloud.starts(number) for number in (0, 1)] == [1, 1]
    assert "worker 0 ends with 0" in out and "worker 1" not in out
    logs = list((cloud.folder / ".launch" / "bert" / "logs").rglob("worker-*.log"))
    assert [path.read_text().count("ends with 0") for path in logs] == [1, 1]
    assert "--spot" in cloud.calls("queued-resources create")[0]

    assert cloud.launch("--spot")[0] == 0
    assert [cloud.starts(number) for number in (0, 1)] == [1, 1]
    assert cloud.state["created"] == 1 and len(cloud.calls("tpu-vm scp")) == 1


@pytest.mark.slow
def test_the_slice_is_deleted_when_done_and_not_created_again(cloud):
    for _ in range(2):
        assert cloud.launch("--delete-when-done")[0] == 0
    assert not cloud.state["slices"] or cloud.state["slices"]["bert"]["ahead"][0]["state"] == "DELETING"
    assert cloud.state["created"] == 1 and cloud.starts() == 1


@pytest.mark.slow
def test_creation_takes_its_time_and_the_service_fails_now_and_then(cloud):
    cloud.fault(slow=2, refuse_down=7)
    code, _, err = cloud.launch()
    assert code == 0 and cloud.state["created"] == 1
    assert [each for each in ("WAITING_FOR_RESOURCES", "PROVISIONING", "UNAVAILABLE") if each not in err] == []


@pytest.mark.slow
def test_without_capacity_the_slice_is_requested_until_there_is(cloud):
    cloud.fault(stock_out=2)
    code, _, err = cloud.launch()
    assert code == 0 and cloud.state["created"] == 3 and cloud.starts() == 1
    assert "no more capacity" in err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["preempt", "vanish"])
def test_a_slice_that_is_taken_away_is_replaced_and_the_run_goes_on(cloud, how):
    cloud.fault(**{how: 1})
    code, out, _ = cloud.launch(command=cloud.train(seconds="600,0.1"))  # the first attempt does not end by itself
    assert code == 0 and cloud.state["created"] == 2
    assert [cloud.starts(number) for number in (0, 1)] == [2, 2]
    assert "start 2" in out, "the log of the second slice"


@pytest.mark.slow
def test_a_worker_that_is_silent_for_a_while_is_waited_for(cloud):
    cloud.fault(silent=[1, 2, 3, 5, 6])
    code, _, err = cloud.launch()
    assert code == 0 and [cloud.starts(number) for number in (0, 1)] == [1, 1]
    assert "no answer from worker" in err


@pytest.mark.slow
def test_workers_that_never_answer_end_in_one_message(cloud):
    cloud.fault(silent="all")
    code, _, err = cloud.launch("--unreachable=0.5")
    assert code == 2 and "have not answered ssh" in err and "firewall" in err


@pytest.mark.slow
def test_a_doing_that_keeps_failing_ends_in_one_message(cloud):
    (cloud.folder / "configs" / "own.py").write_text("# another recipe\n")
    (cloud.program.parent.parent / "site" / "pip" / "__main__.py").write_text("")  # makes no wheel
    code, _, err = cloud.launch()
    assert code == 2 and "install failed 5 times in a row" in err


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ({"says": NOT_LOGGED_IN}, "gcloud auth login"),
        ({"says": "Failed to find attribute [project]."}, "--project"),
        ({"says": "PERMISSION_DENIED: Cloud TPU API has not been used in project 1 before"}, "gcloud services enable"),
        ({"says": "PERMISSION_DENIED: Permission 'tpu.nodes.list' denied"}, "TPU Admin"),
        ({"create_says": f"RESOURCE_EXHAUSTED: {QUOTA}"}, "Quotas"),
        ({"create_says": "INVALID_ARGUMENT: Accelerator type v5litepod-16 not found"}, "accelerator-types list"),
        pytest.param({"failed": {"code": 8, "message": QUOTA}}, "ask for quota", marks=pytest.mark.slow),
        pytest.param(
            {"failed": {"code": 3, "message": "no such runtime version"}},
            "no such runtime version; repair that",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_the_user_can_repair_is_one_message_with_the_remedy(cloud, fault, remedy):
    cloud.fault(**fault)
    code, out, err = cloud.launch()
    assert code == 2 and remedy in err and "Traceback" not in err and not out
    cloud.fault()
    if "failed" in fault:  # repaired, and asked again: the request that failed is no obstacle
        assert cloud.launch()[0] == 0


def test_gcloud_that_is_not_installed_is_named(cloud):
    cloud.environment["PATH"] = "/nonexistent"
    code, _, err = cloud.launch()
    assert code == 2 and "https://cloud.google.com/sdk/docs/install" in err
    cloud.environment["PATH"] = f"{cloud.program.parent}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name=Bert", *SLICE[1:]], "--name=Bert"),
        (["--name=bert", "--accelerator=v9-8", "--zone=z"], "v5litepod-N"),
        (["--name=bert", "--accelerator=local:0"], "at least 1"),
        (SLICE[:2], "--zone"),
        ([*SLICE, "--copy=absent"], "--copy=absent"),
        ([*SLICE, "--copy=/etc/hosts"], "below this folder"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_gcloud_is_called(cloud, flags, message):
    code, _, err = cloud.launch(slice=flags)
    assert code == 2 and message in err and cloud.state["calls"] == []


@pytest.mark.parametrize(
    ("codes", "code", "starts", "message"),
    [
        pytest.param("2", 2, 1, "bad input: worker 0 said", marks=pytest.mark.slow),
        pytest.param("3", 3, 1, "diverged: worker 0 said", marks=pytest.mark.slow),
        pytest.param("1", 1, 1, "a fault, exit code 1", marks=pytest.mark.slow),
        ("75,134,-9,0", 0, 4, "ended with 134 (worker 0), 134 (worker 1)"),
        pytest.param("75", 75, 3, "3 attempts in a row ended at once", marks=pytest.mark.slow),
    ],
)
def test_exit_codes_decide_what_is_started_again(cloud, codes, code, starts, message):
    ended, _, err = cloud.launch(
        "--patience=3" if code == 75 else "--patience=9", slice=LOCAL, command=cloud.train(codes)
    )
    assert ended == code and cloud.starts() == starts and message in err
    if code in (2, 3):
        assert f"ends with {code}" in err, "the worker's last words"


@pytest.mark.slow
def test_a_second_launcher_is_refused_and_another_command_waits_for_stop(cloud):
    command = cloud.train("75,0", seconds=600)
    first = cloud.start(slice=LOCAL, command=command)
    wait_for(lambda: cloud.starts(0) and cloud.starts(1))
    code, _, err = cloud.launch(slice=LOCAL, command=command)
    assert code == 2 and "another launcher of bert" in err

    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=120) == 130 and "the run goes on without the launcher" in first.stderr.read()
    code, _, err = cloud.launch(slice=LOCAL, command=cloud.train())
    assert code == 2 and "runs another command" in err and "`stop` it first" in err

    first = cloud.start(slice=LOCAL, command=command)
    wait_for(lambda: "attempt 1 runs" in first.stderr.readline())
    assert cloud.launch("stop", slice=LOCAL, command=[])[0] == 0
    assert first.wait(timeout=120) == 75 and "stopped; launch again to go on" in first.stderr.read()
    assert [cloud.starts(number) for number in (0, 1)] == [1, 1]
    assert cloud.launch(slice=LOCAL, command=cloud.train())[0] == 0


@pytest.mark.slow
def test_one_of_two_is_killed_both_are_started_again_and_the_run_ends(cloud):
    """The drill in small; tests/drills/test_launch.py has it with training."""
    process = cloud.start("--grace=0.5", slice=LOCAL, command=cloud.train(seconds="600,0.1"))
    wait_for(lambda: cloud.starts(1) and cloud.starts(0))
    os.kill(int((cloud.bucket / "starts-1").read_text().split()[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 and [cloud.starts(number) for number in (0, 1)] == [2, 2]
    assert "halt: worker 1 ended" in err and "137 (worker 1)" in err


def test_jaxbert_train_gets_the_flags_that_a_machine_without_a_cluster_needs(cloud):
    command = [*cloud.train(), "jaxbert.train"]
    assert cloud.launch(slice=LOCAL, command=command)[0] == 0
    told = [(cloud.bucket / f"starts-{number}").read_text() for number in (0, 1)]
    ports = {re.search(r"--coordinator=127\.0\.0\.1:(\d+) ", line)[1] for line in told}
    assert len(ports) == 1
    assert [f"--processes=2 --process={number}\n" in line for number, line in enumerate(told)] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("call", range(1, 14))
def test_killed_at_any_call_and_run_again_it_goes_on(cloud, call):
    cloud.fault(kill_launcher=call)
    process = cloud.start("--delete-when-done", command=cloud.train(seconds=0.5))
    process.communicate()
    killed = process.returncode == -signal.SIGKILL
    assert killed or call > 10
    cloud.fault()
    code, _, _ = cloud.launch("--delete-when-done", command=cloud.train(seconds=0.5))
    assert code == 0 and cloud.state["created"] == 1
    assert [cloud.starts(number) for number in (0, 1)] == [1, 1]


@pytest.mark.slow
def test_subcommands_tell_and_do_what_they_say(cloud):
    command = cloud.train(seconds=600)
    process = cloud.start(command=command)
    wait_for(lambda: cloud.starts(0) and cloud.starts(1))
    process.kill()
    process.communicate()
    out = cloud.launch("status", command=command)[1]
    assert "slice     ACTIVE" in out and "worker 1  attempt 1 runs" in out and "next      wait" in out
    out = cloud.launch("cost", "--price=2", command=[])[1]
    assert "16 chips" in out and "at 2 a chip-hour, as you said" in out
    assert "in money: --price" in cloud.launch("cost", command=[])[1]
    assert cloud.launch("ssh", "--worker=1", command=["echo", "a  b"])[1] == "a  b\n"
    logs = cloud.start("logs", "--worker=1", command=[])
    wait_for(lambda: "worker 1, start 1" in logs.stdout.readline())
    assert cloud.launch("stop", command=[])[0] == 0
    assert logs.wait() == 0
    assert "ended with 75" in cloud.launch("status", command=command)[1]
    assert cloud.launch("delete", command=[])[0] == 0
    assert "slice     DELETING" in cloud.launch("status", command=[])[1]


PAGE = Path(__file__).parents[2] / "docs" / "tpu.md"


def test_dry_run_does_nothing_and_the_guide_shows_what_it_prints(cloud):
    text = re.sub(r"--python=3\.\d+", f"--python=3.{sys.version_info.minor}", PAGE.read_text(encoding="utf-8"))
    shown = re.findall(r"^(?:gcloud compute tpus .*|python -m pip wheel.*)$", text, re.MULTILINE)
    printed = {}
    for line in re.findall(r"^python tpu/launch\.py (.*)$", text, re.MULTILINE):
        flags, _, command = line.partition(" -- ")
        code, out, err = cloud.launch("--dry-run", slice=shlex.split(flags), command=shlex.split(command))
        assert code == 0, err
        printed[flags.split()[0]] = [each for each in out.splitlines() if not each.startswith("#")]
    assert set(printed) == {"--name=bert", "status", "logs", "cost", "stop", "ssh", "delete"}
    assert shown[: len(printed["--name=bert"])] == printed["--name=bert"]
    assert set(shown) <= {command for commands in printed.values() for command in commands}
    assert cloud.state["calls"] == [] and not (cloud.folder / ".launch").exists()


@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
@pytest.mark.slow
def test_the_real_gcloud_parses_every_command(cloud, tmp_path):
    """Without an account it parses and then refuses; nothing is sent."""
    _, out, _ = cloud.launch("--dry-run", "--project=p", "--spot", "--delete-when-done", "--ssh-flag=--internal-ip")
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("gcloud")]
    environment = {
        **os.environ,
        "CLOUDSDK_CONFIG": str(tmp_path / "no-account"),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    assert len(commands) == 10
    for command in {shlex.join(command): command for command in commands}.values():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert NOT_LOGGED_IN.splitlines()[0] in done.stderr, done.stderr
