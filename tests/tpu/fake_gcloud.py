"""gcloud as far as tpu/launch.py calls it: keeps slices in state.json, runs what ssh is told in folders of workers.

Messages are those of gcloud 528 where they can be had without a project, else in the form of its errors. What goes
wrong is told in faults.json: FAULTS. Run with python -ISE: it starts a hundred times in a test.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ.get("FAKE_GCLOUD", "."))
WORKERS = 2
NOT_LOGGED_IN = "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login"
QUOTA = "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZone' has been exceeded. Limit: 0 in zone us-west4-a."
IMAGE = {  # programs of a worker's image: installing is quick, and only asks for the wheel
    "bin/python3": f'[ "$1 $2" = "-m pip" ] && exit 0\nexec {sys.executable} -S "$@"',
    ".local/bin/uv": '[ "$1" = venv ] || for w; do case "$w" in *.whl*) test -e "${w%[*}" || exit 1;; esac; done',
}
FAULTS = {
    "says": "",  # every command fails with this
    "create_says": "",  # create does
    "slow": 0,  # looks at a request in each of the states before ACTIVE
    "stock_out": 0,  # first requests that become FAILED for want of capacity
    "failed": None,  # {"code", "message"} of the first request that becomes FAILED
    "preempt": 0,  # first slices that are SUSPENDED, their machines gone, at a report when all workers are at work
    "vanish": 0,  # … whose machines are gone then though the request stays ACTIVE
    "silent": [],  # numbers of ssh calls at which worker 1 does not answer; "all": none ever does
    "refuse_down": 0,  # first looks that fail as a service that is down does
    "kill_launcher": 0,  # the call at which the launcher is killed, after the call has had its effect
}


def main(argv):
    with open(HOME / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = json.loads((HOME / "state.json").read_text())
        faults = {**FAULTS, **json.loads((HOME / "faults.json").read_text())}
        state["calls"].append(argv)
        try:
            code, later = 0, answer(argv, state, faults)
        except SystemExit as end:
            code, later = end.code, None
        (HOME / "state.json").write_text(json.dumps(state))
    code = later() if later else code
    if faults["kill_launcher"] == len(state["calls"]):
        os.kill(os.getppid(), signal.SIGKILL)
    return code


def fail(argv, text):
    print(f"ERROR: (gcloud.{'.'.join(argv[:4])}) {text}", file=sys.stderr)
    sys.exit(1)


def answer(argv, state, faults):
    """The command's effect on `state`; returns what is left to do when others may call again."""
    assert argv[:2] == ["compute", "tpus"] and "--quiet" in argv, argv
    verb, name = " ".join(argv[2:4]), argv[4]
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in argv[4:] if word.startswith("--"))
    if faults["says"]:
        fail(argv, faults["says"])
    slices = state["slices"]
    missing = f"NOT_FOUND: Resource 'projects/p/locations/{flags['zone']}/queuedResources/{name}' was not found"
    if verb == "queued-resources create":
        create(argv, state, faults, name, flags)
    elif verb == "queued-resources describe":
        state["looks"] += 1
        if state["looks"] <= faults["refuse_down"]:
            fail(argv, "UNAVAILABLE: The service is currently unavailable.")
        if name not in slices:
            fail(argv, missing)
        print(json.dumps({"name": name, "state": slices[name]["ahead"][0]}))
        if len(slices[name]["ahead"]) > 1:
            slices[name]["ahead"].pop(0)
        elif slices[name]["ahead"][0]["state"] == "DELETING":
            del slices[name]
    elif verb == "queued-resources delete":
        assert "force" in flags
        if name not in slices:
            fail(argv, missing)
        end_machines(slices[name])
        slices[name]["ahead"] = [{"state": "DELETING"}, {"state": "DELETING"}]
    elif verb == "tpu-vm describe":
        if not slices.get(name, {}).get("home"):
            fail(argv, f"NOT_FOUND: Resource 'projects/p/locations/{flags['zone']}/nodes/{name}' was not found")
        node = {"state": "READY", "createTime": slices[name]["created"], "networkEndpoints": [{}] * WORKERS}
        node["acceleratorType"] = slices[name]["type"]
        print(json.dumps(node))
    elif verb == "tpu-vm scp":
        machine = next(word for word in argv[4:] if word.endswith(":")).removesuffix(":")
        source = Path(argv[argv.index(f"{machine}:") - 1])
        for home in homes(argv, slices, machine, flags["worker"]):
            shutil.copytree(source, home / source.name, dirs_exist_ok=True)
    elif verb == "tpu-vm ssh":
        return ssh(argv, state, faults, name, flags)
    else:
        fail(argv, "unrecognized arguments")


def create(argv, state, faults, name, flags):
    if faults["create_says"]:
        fail(argv, faults["create_says"])
    if name in state["slices"]:
        fail(argv, f"ALREADY_EXISTS: Resource '{name}' already exists")
    assert flags["node-id"] == name and flags["accelerator-type"] and flags["runtime-version"]
    state["created"] += 1
    before = ["CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    ahead = [{"state": each} for each in before for _ in range(faults["slow"])]
    problem = faults["failed"] if state["created"] == 1 else None
    if state["created"] <= faults["stock_out"]:
        problem = {"code": 8, "message": "There is no more capacity in the zone us-west4-a"}
    last = {"state": "FAILED", "failedData": {"error": problem}} if problem else {"state": "ACTIVE"}
    home = "" if problem else str(HOME / f"machines-{state['created']}")
    created = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{state['created']:09}Z"
    state["slices"][name] = {
        "ahead": [*ahead, last],
        "home": home,
        "created": created,
        "type": flags["accelerator-type"],
    }
    for number in range(WORKERS if home else 0):
        for path, text in IMAGE.items():
            program = Path(home) / str(number) / path
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)


def homes(argv, slices, name, worker):
    if not slices.get(name, {}).get("home"):
        fail(argv, f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{name}' was not found")
    if worker == "all":
        return [Path(slices[name]["home"]) / str(number) for number in range(WORKERS)]
    return [Path(slices[name]["home"]) / worker]


def end_machines(slice_):
    """Every process of the slice's workers ends as a machine does that is switched off."""
    if slice_["home"]:
        end_processes_with(f"HOME={slice_['home']}/")
        shutil.rmtree(slice_["home"], ignore_errors=True)
        slice_["home"] = ""


def end_processes_with(text):
    """Kill the processes that have `text` in their environment: a folder of one test."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text.encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
        except OSError:  # ended since
            pass


def ssh(argv, state, faults, name, flags):
    where = homes(argv, state["slices"], name, flags["worker"])
    state["ssh"] += 1
    if "worker.py report" in flags["command"] and state["created"] <= faults["preempt"] + faults["vanish"]:
        # Not at a numbered report: a worker may not have come to its first line then, and would have started once less.
        if all(at_work(home) for home in where):
            end_machines(state["slices"][name])
            if faults["preempt"]:
                state["slices"][name]["ahead"] = [{"state": "SUSPENDING"}, {"state": "SUSPENDED"}]
    silent = faults["silent"] == "all" or state["ssh"] in faults["silent"]
    return lambda: on_workers(where, flags["command"], silent, faults["silent"] == "all")


def at_work(home):
    """Whether fake_train.py has written that it started."""
    log = home / "jaxbert" / "log"
    return log.exists() and ", start " in log.read_text()


def on_workers(where, command, silent, all_silent):
    running = []
    for home in where:
        if not home.exists() or all_silent or (silent and home.name == "1"):
            continue
        environment = {"HOME": str(home), "JAXBERT_WORKER": home.name, "PATH": f"{home}/bin:/usr/bin:/bin"}
        running.append(subprocess.Popen(["/bin/bash", "-c", command], cwd=home, env=environment))
    code = max([process.wait() for process in running], default=0)
    if len(running) < len(where):
        print("ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255].", file=sys.stderr)
        return 255
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
