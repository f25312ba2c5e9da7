"""Where a process stands, and whom it takes for lost by a clock of ours; real deaths are in drills/test_peers.py."""

import argparse
import queue
import socket
import time
from collections.abc import Iterator

import pytest

from jaxbert import distributed, errors
from jaxbert.distributed import Peers, Team, find_place
from jaxbert.errors import BadInput
from jaxbert.rollcall import Place, Wire


def flags(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    return parser.parse_args(given)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def in_slurm(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**SLURM, **changes}.items():
        monkeypatch.setenv(name, value)


def test_without_flags_and_without_a_cluster_a_process_is_alone() -> None:
    assert find_place(flags()) is None


def test_three_flags_say_where_a_process_stands() -> None:
    given = flags("--coordinator=127.0.0.1:1234", "--processes=2", "--process=1")
    assert find_place(given) == Place("127.0.0.1:1234", 2, 1)


def test_slurm_says_it_and_flags_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    in_slurm(monkeypatch)
    assert find_place(flags()) == Place("localhost:61586", 4, 3, (1,))
    assert find_place(flags("--coordinator=127.0.0.1:99")) == Place("127.0.0.1:99", 4, 3, (1,))


def test_a_cluster_of_one_process_and_processes_1_mean_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    in_slurm(monkeypatch, SLURM_NTASKS="1", SLURM_PROCID="0")
    assert find_place(flags()) is None
    in_slurm(monkeypatch)
    assert find_place(flags("--processes=1")) is None


def test_flags_that_nobody_completes_are_named() -> None:
    with pytest.raises(BadInput, match="^--coordinator and --process: not given"):
        find_place(flags("--processes=2"))


def test_a_cluster_that_cannot_say_it_is_bad_input_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    in_slurm(monkeypatch, SLURM_NTASKS="many")
    with pytest.raises(BadInput, match="the cluster does not say .*--processes=1 to train alone"):
        find_place(flags())


def quiet_until(peers: Peers, clock: float) -> int | None:
    """Judge every second up to `clock`, as the thread does."""
    now = peers._clock
    lost = None
    while now < clock and lost is None:
        now = min(now + 1, clock)
        lost = peers.lost(now)
    return lost


def test_a_peer_is_lost_when_it_is_silent_for_too_long_and_not_before() -> None:
    peers = Peers([1, 2], 30, 0)
    assert quiet_until(peers, 30) is None
    peers.heard(1, 30)
    assert quiet_until(peers, 31) == 2


def test_the_lost_peer_is_described_by_what_it_did_last() -> None:
    peers = Peers([1], 30, 0)
    peers.heard(1, 5, "save at step 500")
    assert quiet_until(peers, 60) == 1
    assert peers.silent_for(1, 36) == 31
    assert peers.doing(1) == ", was in save at step 500"


def test_a_peer_that_beats_is_told_from_one_that_may_soon_be_lost() -> None:
    peers = Peers([1], 30, 0)
    peers.heard(1, 20)
    assert peers.beats(1, 29) and not peers.beats(1, 31) and not peers.beats(7, 29)


def test_a_finished_peer_is_not_lost() -> None:
    peers = Peers([1, 2], 30, 0)
    peers.finished(1)
    peers.heard(1, 1)  # a message on its way changes nothing
    assert not peers.expected(1) and peers.expected(2)
    assert quiet_until(peers, 100) == 2


def test_a_process_that_stood_still_itself_judges_nobody_by_that_time() -> None:
    peers = Peers([1], 30, 0)
    assert quiet_until(peers, 10) is None
    assert peers.lost(70) is None  # SIGSTOP from 10 to 70
    assert quiet_until(peers, 100) is None
    assert quiet_until(peers, 102) == 1


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[queue.Queue]:
    """What processes would have ended by; only the threads that end them end, and none outlives its test."""
    found: queue.Queue = queue.Queue()

    def end(error: BaseException) -> None:
        found.put(str(error))
        raise SystemExit

    monkeypatch.setattr(errors, "end", end)
    monkeypatch.setattr(distributed, "GRACE", 0.5)
    monkeypatch.setattr(distributed, "LINGER", 0.2)
    yield found
    while TEAMS:  # before `end` is the real one again, which would end the test process
        ours, _ = TEAMS.pop()
        ours._stop.set()
        ours._thread.join(timeout=10)
        assert not ours._thread.is_alive()


TEAMS: list[tuple[Team, dict[int, Wire]]] = []  # of the test that runs; the other ends stay open as long


def team(process: int, others: list[int]) -> dict[int, Wire]:
    """A process of three, by the other ends of its connections."""
    ours, theirs = {}, {}
    for number in others:
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs[number] = Wire(socket.create_connection(server.getsockname()))
            ours[number] = Wire(server.accept()[0])
    TEAMS.append((Team(Place("127.0.0.1:1", 3, process), ours, None, 30), theirs))
    return theirs


def words(wire: Wire) -> list[dict]:
    """What arrives within a second, but for beats."""
    deadline, found = time.monotonic() + 1, []
    while time.monotonic() < deadline:
        found += [message for message in wire.receive() if "beat" not in message]
        time.sleep(0.01)
    return found


def test_a_connection_that_closes_without_a_word_is_a_loss_and_process_0_tells_the_others(ends: queue.Queue) -> None:
    theirs = team(0, [1, 2])
    theirs[1].send(beat="save at step 5")
    time.sleep(0.7)
    theirs[1].close()
    assert ends.get(timeout=5) == "process 0: lost process 1: its connection closed, was in save at step 5"
    assert words(theirs[2]) == [{"lost": 1, "why": "its connection closed, was in save at step 5"}]


def test_a_worker_that_hears_of_a_loss_ends_by_it(ends: queue.Queue) -> None:
    team(1, [0])[0].send(lost=2, why="no sign of life for 31 s")
    assert ends.get(timeout=5) == "process 1: lost process 2: no sign of life for 31 s"


def test_a_worker_that_only_sees_process_0_go_names_it(ends: queue.Queue) -> None:
    team(1, [0])[0].close()
    assert ends.get(timeout=5) == "process 1: lost process 0 (coordinator): its connection closed"


@pytest.mark.parametrize("others", [[1], [1, 2]])
def test_what_a_peer_ends_by_is_passed_on_and_ends_the_others_after_a_grace(
    ends: queue.Queue, others: list[int]
) -> None:
    theirs, began = team(0, others), time.monotonic()
    theirs[1].send(ended=2, of=1, text="the disk is gone")
    theirs[1].close()
    if 2 in others:
        assert words(theirs[2])[0] == {"ended": 2, "of": 1, "text": "the disk is gone"}
    assert ends.get(timeout=5) == "process 0: process 1 ended with code 2: the disk is gone"
    assert time.monotonic() - began > 0.5


def test_a_peer_that_finished_may_go(ends: queue.Queue) -> None:
    theirs = team(0, [1, 2])
    theirs[1].send(ended=0, of=1, text="done")
    theirs[1].close()
    assert words(theirs[2]) == [] and ends.empty()


def test_a_process_that_was_taken_for_lost_says_so(ends: queue.Queue) -> None:
    team(1, [0])[0].send(lost=1, why="no sign of life for 31 s")
    assert ends.get(timeout=5) == "process 1: the other processes took this one for lost: no sign of life for 31 s"
