"""Reading rows: by index, in an order that any step finds at once."""

import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxbert import objectives
from jaxbert.data import packing, source
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput
from tests.data.test_packing import TOKENIZER, make, token_folder


@pytest.fixture
def rows_folder(tmp_path):
    make(packing.write_rows, token_folder(tmp_path, [5, 40, 9, 300, 17]), tmp_path / "rows_32", 32, TOKENIZER)
    return tmp_path / "rows_32"


def test_rows_are_read_by_index_in_any_order(rows_folder):
    rows = source.Rows(rows_folder)
    everything, some = rows[np.arange(len(rows))], rows[[3, 0, 3]]
    for whole, part in zip(everything, some, strict=True):
        assert (part == whole[[3, 0, 3]]).all()
    assert [a.dtype for a in some] == [np.int32, bool, np.int32] and rows.tokens == 371


def test_rows_pickle_without_their_data(rows_folder):
    rows = source.Rows(rows_folder)
    message = pickle.dumps(rows)
    assert len(message) < 2000
    assert (pickle.loads(message)[[1, 2]][0] == rows[[1, 2]][0]).all()


@pytest.mark.parametrize("damage", ["missing", "cut", "no rows.json", "broken rows.json"])
def test_damaged_rows_are_refused_with_the_file_and_the_remedy(rows_folder, damage):
    file = rows_folder / ("rows.json" if "json" in damage else "segments.bin")
    if damage in ("missing", "no rows.json"):
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(BadInput, match=rf"{file.name}.*prepare"):
        source.Rows(rows_folder)


def test_positions_restart_in_each_segment_and_count_on_in_padding():
    segments = np.array([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 0]])
    expected = [[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert source.position_ids(segments).tolist() == expected
    assert source.position_ids(segments).dtype == np.int32


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000, 65537])
def test_permute_is_a_permutation(size):
    assert (np.sort(source.permute(np.arange(size), size, 5)) == np.arange(size)).all()


def test_permute_is_bijective_on_a_sample_of_a_very_large_range():
    image = source.permute(np.arange(10**12, 10**12 + 10_000), 10**13, 5)
    assert len(np.unique(image)) == 10_000 and image.min() >= 0 and image.max() < 10**13


def test_disjoint_blocks_of_a_billion_rows_have_disjoint_images():
    size, block = 10**9, 5_000
    starts = np.random.default_rng(0).choice(size // block, 40, replace=False) * block
    image = np.concatenate([source.permute(start + np.arange(block), size, 5) for start in [*starts, 0, size - block]])
    assert len(np.unique(image)) == len(image) and image.min() >= 0 and image.max() < size


def test_a_permutation_of_a_billion_rows_needs_no_more_memory_than_one_of_a_thousand():
    def peak(size):
        tracemalloc.start()
        try:
            for step in (0, 10**4, 10**12):
                source.rows_of_step(step, 256, size, seed=3)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1000)  # what is imported and cached on the first call
    assert peak(10**9) < 2 * peak(1000) < 500_000


def test_permute_mixes_and_depends_on_the_seed():
    first, second = (source.permute(np.arange(10_000), 10_000, seed) for seed in (1, 2))
    assert abs(np.corrcoef(np.arange(10_000), first)[0, 1]) < 0.05 and abs(np.corrcoef(first, second)[0, 1]) < 0.05
    assert np.abs(np.diff(first)).mean() / 10_000 == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(("batch_size", "size"), [(4, 12), (5, 12), (32, 12), (7, 1)])
def test_every_row_is_read_once_an_epoch_also_where_a_batch_crosses_epochs(batch_size, size):
    steps = [source.rows_of_step(step, batch_size, size, seed=3) for step in range(size * 3)]
    epochs, rows = (np.concatenate(part) for part in zip(*steps, strict=True))
    for epoch in range(len(epochs) // size):
        assert sorted(rows[epochs == epoch].tolist()) == list(range(size))
    assert (np.diff(epochs) >= 0).all()


def test_a_step_is_the_same_alone_and_after_all_others_and_epochs_differ():
    alone = source.rows_of_step(10**9 + 7, 64, 1000, seed=3)
    assert all((a == b).all() for a, b in zip(alone, source.rows_of_step(10**9 + 7, 64, 1000, seed=3), strict=True))
    orders = [tuple(source.rows_of_step(epoch, 1000, 1000, seed=3)[1]) for epoch in range(5)]
    assert len(set(orders)) == 5 and orders[0] != tuple(source.rows_of_step(0, 1000, 1000, seed=4)[1])


# Each of 64 hosts has two devices; a host reads the rows that these two hold. The batch goes through in two parts.
HOSTS = """
import sys
import jax; jax.config.update("jax_num_cpu_devices", 128)
import numpy as np
from jaxbert import config, sharding
from jaxbert.data import source

rows, B, A = source.Rows(sys.argv[1]), 256, 2
for axes in ({"data": 128}, {"data": 32, "fsdp": 4}, {"data": 64, "tensor": 2}, {"data": 8, "fsdp": 8, "tensor": 2}):
    place = sharding.batch_sharding(sharding.make_mesh(config.Sharding(**axes), B // A), leading=1)
    for step in (0, 3, 10**9):
        epoch_B, row_B = source.rows_of_step(step, B, len(rows), seed=3)
        place_AB = np.arange(B).reshape(A, -1)
        of_host = {}
        for device, index in place.devices_indices_map(place_AB.shape).items():
            of_host.setdefault(device.id // 2, set()).update(place_AB[index].ravel().tolist())
        assert len(of_host) == 64 and {len(places) for places in of_host.values()} == {B // 64}
        assert sorted(place for places in of_host.values() for place in places) == list(range(B))

        shape = (A, B // A, rows.row_length)
        parts = jax.make_array_from_callback(shape, place, lambda i: rows[row_B.reshape(A, -1)[i[:2]]][0][..., i[2]])
        whole = sharding.put_batch({"ids": rows[row_B][0].reshape(shape)}, place)["ids"]
        assert parts.sharding == whole.sharding and (np.asarray(parts) == np.asarray(whole)).all()
"""


def test_sixty_four_hosts_read_every_row_of_a_global_batch_exactly_once(tmp_path):
    make(packing.write_rows, token_folder(tmp_path, [7000]), tmp_path / "rows_32", 32, TOKENIZER)
    assert len(source.Rows(tmp_path / "rows_32")) < 256  # so that batches cross epochs
    command = [sys.executable, "-c", HOSTS, str(tmp_path / "rows_32")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr


@pytest.mark.parametrize("hosts", [2, 8])
def test_what_a_host_makes_of_its_rows_is_its_part_of_the_global_batch(tiny_corpus, hosts):
    directory = Path(tiny_corpus.corpus.directory)
    objective = objectives.for_tokenizer(tiny_corpus, TextTokenizer.load(directory / "tokenizer"))
    rows, epoch_B, row_B = source.Feed(directory / "rows_64", 8, seed=3).at(5)
    whole = objective.make_batch(rows, epoch_B, row_B, 3)
    for mine in np.split(np.arange(8), hosts):
        part = objective.make_batch(rows, epoch_B[mine], row_B[mine], 3)
        assert all((part[name] == array[mine]).all() for name, array in whole.items())


@pytest.fixture
def single_folder(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 90, 200).tolist()
    make(packing.write_single, token_folder(tmp_path, lengths), tmp_path / "single_64", 64, TOKENIZER)
    return tmp_path / "single_64"


def test_a_feed_of_packed_rows_reads_what_rows_of_step_says(rows_folder):
    feed = source.Feed(rows_folder, 4, seed=3)
    for step in (0, 5, 1000):
        rows, *read = feed.at(step)
        assert rows is feed.buckets[0] and not rows.one_document
        expected = source.rows_of_step(step, 4, len(rows), 3)
        assert all((a == b).all() for a, b in zip(read, expected, strict=True))
    assert feed.steps_per_epoch == len(rows) / 4


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_row_of_every_bucket_is_read_once_an_epoch(single_folder, batch_size):
    feed = source.Feed(single_folder, batch_size, seed=3)
    for epoch in range(3):
        read = []
        for step in range(feed.steps_per_epoch * epoch, feed.steps_per_epoch * (epoch + 1)):
            rows, epoch_B, row_B = feed.at(step)
            assert (epoch_B == epoch).all()
            read += (rows.first + row_B[row_B < len(rows)]).tolist()
        assert sorted(read) == list(range(len(feed)))


def test_batches_of_every_bucket_have_the_same_number_of_positions(single_folder):
    feed = source.Feed(single_folder, 4, seed=3)
    shapes = {(len(row_B), rows.row_length) for rows, _, row_B in map(feed.at, range(feed.steps_per_epoch))}
    assert shapes == {(16, 16), (8, 32), (4, 64)} == {shape[:2] for shape in feed.shapes()}
    assert sum(share for *_, share in feed.shapes()) == pytest.approx(1)
    assert {(len(row_B), rows.row_length) for rows, _, row_B in feed.first_of_each_bucket()} == shapes


def test_buckets_alternate_and_their_order_depends_on_epoch_and_seed(single_folder):
    def order(epoch, seed):
        feed = source.Feed(single_folder, 2, seed)
        steps = range(feed.steps_per_epoch * epoch, feed.steps_per_epoch * (epoch + 1))
        return [feed.at(step)[0].row_length for step in steps]

    first = order(0, 3)
    assert first == order(0, 3) and first != order(1, 3) and first != order(0, 4)
    assert sorted(first) == sorted(order(1, 3)) and first != sorted(first) != first[::-1]


def test_no_rows_are_an_error():
    with pytest.raises(BadInput, match=r"corpus\.input"):
        source.rows_of_step(0, 4, 0, seed=3)


def test_validation_puts_the_stored_replacements_in_place_and_keeps_what_was_written(tmp_path):
    tokens = token_folder(tmp_path, [5, 40, 9, 300, 17])
    options = {"mask_rate": 0.3, "mask_share": 0.8, "random_share": 0.1, "seed": 1}
    make(packing.write_validation, tokens, tmp_path / "v", 32, TOKENIZER, **options)
    validation = source.Validation.open(tmp_path / "v")
    pieces = validation[np.arange(len(validation))]
    real, rows = pieces.weights_RP > 0, np.arange(len(validation))[:, None]
    assert real.sum() == validation.masked_tokens
    assert (pieces.ids_RT[rows, pieces.positions_RP] == pieces.labels_RP)[real].all()
    assert (pieces.input_ids_RT[rows, pieces.positions_RP] == pieces.replacements_RP)[real].all()
    restored = pieces.input_ids_RT.copy()
    row, slot = np.nonzero(real)
    restored[row, pieces.positions_RP[row, slot]] = pieces.labels_RP[row, slot]
    assert (restored == pieces.ids_RT).all() and (pieces.input_ids_RT != pieces.ids_RT).any()


def test_prefetch_yields_every_step_in_order_from_any_start():
    batches = list(source.prefetch(lambda step: {"step": np.full(2, step)}, 1000, 1040))
    assert [int(batch["step"][0]) for batch in batches] == list(range(1000, 1040))
    assert list(source.prefetch(lambda step: {}, 5, 5)) == []


def test_an_error_while_a_batch_is_made_reaches_the_reader():
    def make(step):
        raise OSError("disk gone") if step == 3 else None or OSError("disk gone")

    with pytest.raises(Exception, match="disk gone"):
        list(source.prefetch(make, 0, 10))


def test_documents_go_into_several_files_and_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "SHARD_BYTES", 100)
    (tmp_path / "documents").mkdir()
    with source.Shards(tmp_path / "documents", "train") as shards:
        for number in range(50):
            shards.write(b'{"text": "%d"}' % number)
    assert len(list((tmp_path / "documents").glob("train-*.array_record"))) > 3
    assert [d["text"] for d in source.read_documents(tmp_path, "train")] == [str(n) for n in range(50)]
    assert [d["text"] for d in source.read_documents(tmp_path, "train", [3, 20, 49])] == ["3", "20", "49"]
