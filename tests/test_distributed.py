"""Where a process stands, and whom it takes for lost by a clock of ours; real deaths are in drills/test_peers.py."""

import argparse

import pytest

from jaxbert import distributed
from jaxbert.distributed import Peers, find_place
from jaxbert.errors import BadInput
from jaxbert.rollcall import Place


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
