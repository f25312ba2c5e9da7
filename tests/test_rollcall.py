"""The roll-call before a start of several processes: plain sockets and threads, no jax.distributed."""

import dataclasses
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jaxbert import config, rollcall
from jaxbert.errors import BadInput, StartAgain
from jaxbert.rollcall import Place
from tests.drills.processes import free_address

ALIKE = {"jax": "0.10.2", "recipe train.steps": 20}


def attend(place: Place, hello: dict, timeout: float, said: list[str]) -> Any:
    """What a process of the roll-call gets: "go", or the error."""
    try:
        if place.process:
            rollcall.answer(place, hello, timeout, said.append).close()
            return "go"
        with rollcall.listen(place) as listener:
            for wire in rollcall.Call(place, listener, hello, timeout, said.append).wait().values():
                wire.close()
            return "go"
    except (BadInput, StartAgain) as error:
        return error


def roll_call(
    hellos: list[tuple[int, dict]], processes: int | None = None, timeout: float = 20.0, said: list[str] | None = None
) -> list[Any]:
    """What each of the processes (number, hello) gets; they start together."""
    address, said = free_address(), [] if said is None else said
    found: list[Any] = [None] * len(hellos)

    def run(i: int, number: int, hello: dict) -> None:
        found[i] = attend(Place(address, processes or len(hellos), number), hello, timeout, said)

    threads = [threading.Thread(target=run, args=(i, *hello)) for i, hello in enumerate(hellos)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def report(**changes: Any) -> dict:
    return {"report": {**ALIKE, **changes}}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollcall, "SETTLE", 1.0)
    monkeypatch.setattr(rollcall, "SAY_EVERY", 0.3)


def test_processes_that_are_alike_start() -> None:
    assert roll_call([(number, report()) for number in range(4)]) == ["go"] * 4


@pytest.mark.parametrize("odd", [0, 2])
def test_every_process_is_told_who_is_odd_in_what_with_both_values(odd: int) -> None:
    hellos = [(n, report(jax="9.9.9") if n == odd else report()) for n in range(3)]
    for error in roll_call(hellos):
        assert isinstance(error, BadInput)
        assert f"process {odd} (" in str(error)
        assert 'has jax "9.9.9", the other 2 have "0.10.2"' in str(error)


def test_of_two_processes_the_second_is_called_odd_and_every_item_is_named() -> None:
    for error in roll_call([(0, report()), (1, report(jax="9.9.9", **{"recipe train.steps": 40}))]):
        assert "process 1 (" in str(error) and 'has jax "9.9.9", process 0 has "0.10.2"' in str(error)
        assert "has recipe train.steps 40, process 0 has 20" in str(error)


def test_an_item_that_only_one_process_knows_is_a_difference() -> None:
    assert "has new 1, process 0 has null" in str(roll_call([(0, report()), (1, report(new=1))])[0])


def test_a_missing_process_is_named_again_and_again_and_the_start_given_up() -> None:
    said: list[str] = []
    began = time.monotonic()
    found = roll_call([(0, report()), (2, report())], processes=4, timeout=4.0, said=said)
    assert time.monotonic() - began < 15
    for error in found:
        assert isinstance(error, StartAgain)
        assert "processes 1 and 3 did not come within 4 s" in str(error)
    lines = [line for line in said if line.startswith("waiting for processes 1 and 3 (")]
    assert len(lines) >= 4  # two or more on each of the two


def test_a_missing_coordinator_is_named() -> None:
    said: list[str] = []
    (error,) = roll_call([(1, report())], processes=2, timeout=1.0, said=said)
    assert isinstance(error, StartAgain)
    assert "process 0 (coordinator, 127.0.0.1:" in str(error) and "did not answer within 1 s" in str(error)
    assert any("waiting for process 0 (coordinator" in line and "refused" in line for line in said)


def test_two_processes_with_one_number_are_refused_and_so_are_those_beside_them() -> None:
    for error in roll_call([(0, report()), (1, report()), (1, report())]):
        assert isinstance(error, BadInput)
        assert "two processes say that they are process 1" in str(error)


def test_two_coordinators_on_one_machine_are_refused() -> None:
    place = Place(free_address(), 2, 0)
    with rollcall.listen(place), pytest.raises(BadInput, match="cannot listen .* another process 0 running here"):
        rollcall.listen(place)


def test_another_number_of_processes_is_refused() -> None:
    address = free_address()
    other: list[Any] = []
    thread = threading.Thread(target=lambda: other.append(attend(Place(address, 3, 1), report(), 10, [])))
    thread.start()
    for error in (attend(Place(address, 2, 0), report(), 10, []), *(thread.join(10) or other)):
        assert (
            isinstance(error, BadInput)
            and "--processes: 3 on process 1" in str(error)
            and "2 on process 0" in str(error)
        )


@pytest.mark.parametrize("number", [0, 1])
def test_what_one_process_cannot_start_with_is_said_by_all(number: int) -> None:
    hellos = [(n, {"refused": "corpus.json: missing"} if n == number else report()) for n in range(3)]
    for error in roll_call(hellos):
        assert isinstance(error, BadInput)
        assert f"process {number} (" in str(error) and "): corpus.json: missing" in str(error)


def test_a_process_that_dies_while_the_others_wait_may_come_again() -> None:
    place = Place(free_address(), 2, 0)
    result: list[Any] = []
    thread = threading.Thread(
        target=lambda: result.append(attend(dataclasses.replace(place, processes=3), report(), 10, []))
    )
    thread.start()
    first, other = (Place(place.address, 3, number) for number in (1, 2))
    while True:
        try:
            wire = rollcall.Wire(socket.create_connection((first.host, first.port)))
            break
        except OSError:
            time.sleep(0.02)
    wire.send(process=1, processes=3, who="one that dies", **report())
    time.sleep(0.2)
    wire.close()
    time.sleep(0.2)
    again = threading.Thread(target=lambda: result.append(attend(first, report(), 10, [])))
    again.start()
    result.append(attend(other, report(), 10, []))
    thread.join(10), again.join(10)
    assert result == ["go"] * 3


def test_a_wire_carries_messages_longer_than_its_buffers_and_one_that_nobody_reads_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = rollcall.Wire(socket.create_connection(server.getsockname()))
        theirs = rollcall.Wire(server.accept()[0])
    text, found = "á" * 50_000, list[dict]()
    thread = threading.Thread(target=lambda: [ours.send(text=text) for _ in range(8)])
    thread.start()
    while len(found) < 8:
        found += theirs.receive()
    thread.join(5)
    assert found == [{"text": text}] * 8
    for _ in range(200):
        ours.send(text=text)
    ours.receive()
    assert ours.closed


def test_strangers_that_find_the_port_change_nothing() -> None:
    address = free_address()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(attend(Place(address, 2, n), report(), 10, [])))  # type: ignore[misc]
        for n in (0, 1)
    ]
    threads[0].start()
    port = Place(address, 2, 0).port
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"process": "x"}\n', b"\xff" * 3_000_000):
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 2) as stranger:
                    stranger.sendall(words)
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
            except OSError:
                break  # it was shown the door
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert found == ["go", "go"]


@pytest.mark.parametrize(
    "place, message",
    [
        (Place("127.0.0.1", 2, 0), "'127.0.0.1' is not HOST:PORT"),
        (Place("127.0.0.1:http", 2, 0), "is not HOST:PORT"),
        (Place("no-such-host.invalid:1234", 2, 1), "'no-such-host.invalid' does not resolve"),
        (Place("127.0.0.1:1234", 2, 2), "--process: 2 of --processes=2; they count from 0 to 1"),
        (Place("127.0.0.1:1234", 2, -1), "--process: -1 of"),
    ],
)
def test_a_place_that_cannot_be_is_refused(place: Place, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        place.check()


@pytest.mark.parametrize("port", [1234, 8482, 33_791, 33_792, 55_527, 61_440, 65_535])
def test_the_roll_call_has_a_port_of_its_own(port: int) -> None:
    other = Place(f"[::1]:{port}", 2, 0)
    assert 1024 <= other.port < 65_536 and other.port != port and other.host == "::1"


def test_the_report_tells_recipes_tokenizers_and_rows_apart_and_not_where_they_lie(
    tiny_corpus: config.Config, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    ours = rollcall.report(tiny_corpus, workdir)
    assert ours["jaxbert"].startswith("0.") and ours["jax"] and ours["recipe train.batch_size"] == 8
    copied = dataclasses.replace(
        tiny_corpus, corpus=dataclasses.replace(tiny_corpus.corpus, directory=str(tmp_path / "c"))
    )
    shutil.copytree(tiny_corpus.corpus.directory, tmp_path / "c")
    assert rollcall.report(copied, workdir) == ours
    for name, file in (("rows", "stages/tokens.json"), ("tokenizer", "tokenizer/tokenizer.json")):
        path = tmp_path / "c" / file
        before = path.read_text()
        path.write_text(before.replace('"fingerprint": "', '"fingerprint": "0').replace('"version"', ' "version"', 1))
        theirs = rollcall.report(copied, workdir)
        assert {item for item in ours if ours[item] != theirs[item]} == {name}
        path.write_text(before)
