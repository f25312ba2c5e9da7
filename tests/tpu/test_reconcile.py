"""What the launcher does about what it sees, as a table."""

import dataclasses

import pytest

from tpu.reconcile import Action, Node, Seen, Slice, Wanted, Worker, next_action

WANTED = Wanted(run="r", bundle="b", again=False)
BARE = Worker(0)
READY = Worker(0, bundle="b", installed="b")
RUNS = dataclasses.replace(READY, run="r", attempt=1, alive=True)


def ended(code, **fields):
    return dataclasses.replace(RUNS, **{"alive": False, "code": code, "seconds": 3600.0, "tail": "words", **fields})


def seen(*workers, state="ACTIVE", node="READY", error="", done=False, count=2):
    numbered = tuple(dataclasses.replace(worker, number=i) for i, worker in enumerate(workers))
    return Seen(Slice(state, Node(node, count, "2026-11-28T19:00:00Z"), error), numbered, done)


SLICES = {
    "absent": (seen(state="ABSENT"), "create"),
    "creating": (seen(state="CREATING"), "wait"),
    "accepted": (seen(state="ACCEPTED"), "wait"),
    "queued": (seen(state="WAITING_FOR_RESOURCES"), "wait"),
    "provisioning": (seen(state="PROVISIONING"), "wait"),
    "no capacity": (seen(state="FAILED", error="RESOURCE_EXHAUSTED There is no more capacity"), "delete"),
    "no reason": (seen(state="FAILED"), "delete"),
    "quota": (seen(state="FAILED", error="RESOURCE_EXHAUSTED Quota limit exceeded"), "finish 2"),
    "nonsense": (seen(state="FAILED", error="INVALID_ARGUMENT no such type"), "finish 2"),
    "going": (seen(state="SUSPENDING"), "wait"),
    "preempted": (seen(state="SUSPENDED"), "delete"),
    "deleting": (seen(state="DELETING"), "wait"),
    "no node": (seen(node=""), "delete"),
    "node preempted": (seen(node="PREEMPTED"), "delete"),
    "node starts": (seen(node="CREATING"), "wait"),
    "node repaired": (seen(node="REPAIRING"), "wait"),
}
WORKERS = {
    "one silent": (seen(RUNS), "wait"),
    "bare": (seen(BARE, BARE), "copy"),
    "one bare": (seen(READY, BARE), "copy"),
    "one torn": (seen(READY, dataclasses.replace(READY, bundle=None)), "copy"),
    "not installed": (seen(READY, dataclasses.replace(READY, installed="old")), "install"),
    "ready": (seen(READY, READY), "start 1"),
    "one started": (seen(RUNS, READY), "start 1"),
    "both run": (seen(RUNS, RUNS), "wait"),
    "another run": (seen(dataclasses.replace(RUNS, run="other"), READY), "finish 2"),
    "another run has ended": (seen(ended(1, run="other"), ended(1, run="other")), "start 1"),
    "one has just ended": (seen(ended(75, ended_ago=60), RUNS), "wait"),
    "one outlives the other": (seen(ended(75, ended_ago=121), RUNS), "halt"),
    "one lags behind and ended": (seen(ended(75, attempt=2), ended(75)), "start 3"),
    "one lags behind and runs": (seen(dataclasses.replace(RUNS, attempt=2), RUNS), "wait"),
    "one lags while the other runs": (seen(dataclasses.replace(RUNS, attempt=2), ended(75)), "start 2"),
}
CODES = {
    (0, 0): "finish 0",
    (0, 75): "start 2",
    (75, 75): "start 2",
    (134, 75): "start 2",
    (137, 75): "start 2",
    (143, 75): "start 2",
    (2, 75): "finish 2",
    (75, 2): "finish 2",
    (3, 75): "finish 3",
    (1, 75): "finish 1",
    (1, 137): "finish 1",
    (2, 1): "finish 2",
    (127, 75): "finish 1",
}


def told(action: Action) -> str:
    number = {"finish": f" {action.code}", "start": f" {action.attempt}"}
    return action.do + number.get(action.do, "")


@pytest.mark.parametrize(("what", "does"), [*SLICES.values(), *WORKERS.values()], ids=[*SLICES, *WORKERS])
def test_what_is_seen_decides_what_is_done(what, does):
    assert told(next_action(WANTED, what)) == does


@pytest.mark.parametrize(("codes", "does"), CODES.items())
def test_the_worst_exit_code_decides(codes, does):
    assert told(next_action(WANTED, seen(*map(ended, codes)))) == does


@pytest.mark.parametrize("code", [1, 2, 3, 75])
def test_whoever_launches_again_wants_it_started_again(code):
    again = dataclasses.replace(WANTED, again=True)
    for what in (seen(ended(code), ended(code)), seen(ended(code, stopped=True), ended(75, stopped=True))):
        assert told(next_action(again, what)) == "start 2"
    assert told(next_action(again, seen(ended(0), ended(0)))) == "finish 0"
    assert told(next_action(again, seen(state="FAILED", error="Quota"))) == "delete"


def test_a_slice_of_that_name_and_another_type_is_left_alone():
    node = Node("READY", 2, "2026-11-28T19:00:00Z", "v5litepod-8")
    action = next_action(dataclasses.replace(WANTED, accelerator="v5litepod-16"), Seen(Slice("ACTIVE", node)))
    assert told(action) == "finish 2" and "is v5litepod-8, not v5litepod-16" in action.why


def test_a_stopped_run_is_not_started_again():
    assert told(next_action(WANTED, seen(ended(75, stopped=True), ended(75, stopped=True)))) == "finish 75"


def test_attempts_that_end_at_once_are_given_up_after_some():
    for short, seconds, does in ((3, 5.0, "start 2"), (4, 5.0, "finish 75"), (4, 3600.0, "start 2")):
        assert told(next_action(WANTED, seen(*[ended(75, short=short, seconds=seconds)] * 2))) == does


def test_done_is_deleted_once_and_nothing_is_created_for_it():
    wanted = dataclasses.replace(WANTED, delete_when_done=True)
    assert next_action(wanted, seen(ended(0), ended(0))).do == "clear"
    assert next_action(wanted, seen(READY, READY, done=True)).do == "clear"
    for state in ("ABSENT", "DELETING"):
        assert told(next_action(wanted, seen(state=state, done=True))) == "finish 0"


def test_the_last_words_are_those_of_the_worker_that_failed_for_good():
    why = next_action(WANTED, seen(ended(75, tail="a peer was lost"), ended(2, tail="error: no such file"))).why
    assert "worker 1 said:\nerror: no such file" in why and "peer" not in why
