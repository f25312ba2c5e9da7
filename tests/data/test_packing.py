"""Cutting, packing and the files: nothing is lost, nothing is added, and rows are full."""

import dataclasses
import json

import numpy as np
import pytest

from jaxbert.data import packing, source
from jaxbert.errors import BadInput


@dataclasses.dataclass(frozen=True)
class FakeTokenizer:
    """What packing reads of a TextTokenizer."""

    vocab_size: int = 100
    pad_id: int = 0
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    special_ids: frozenset[int] = frozenset(range(5))
    fingerprint: str = "tokenizer"

    def characters(self, ids):
        """Some number a token."""
        return ids % 7


TOKENIZER = FakeTokenizer()


def make(write, tokens, folder, *arguments, **options):
    """Call a writer on a new folder."""
    folder.mkdir()
    return write(tokens, folder, *arguments, **options)


def token_folder(path, lengths, seed=0, vocab_size=100):
    """A tokens/<split> folder of documents with the given lengths; ordinary ids, random word bits."""
    random, folder = np.random.default_rng(seed), path / "tokens"
    folder.mkdir(parents=True)
    ids = random.integers(5, vocab_size, sum(lengths))
    packing.join_bit(ids, random.random(len(ids)) < 0.5, vocab_size).tofile(folder / "tokens.bin")
    np.concatenate([[0], np.cumsum(lengths)]).astype("<i8").tofile(folder / "offsets.bin")
    return folder


def stored_documents(folder, vocab_size=100):
    stored = packing.TokenFile(folder, vocab_size)
    return [stored.tokens[a:b].tolist() for a, b in zip(stored.offsets, stored.offsets[1:], strict=False)]


def stored_pieces(folder, row_length):
    """The pieces in a rows folder, [CLS] and [SEP] checked and removed."""
    about = json.loads((folder / "rows.json").read_text())
    tokens = np.fromfile(folder / "tokens.bin", about["dtype"]).reshape(-1, row_length)
    segments = np.fromfile(folder / "segments.bin", "<u2").reshape(-1, row_length)
    found = []
    for row, segment in zip(tokens, segments, strict=True):
        for number in range(1, segment.max() + 1):
            piece = row[segment == number].tolist()
            assert piece[0] == 2 << 1 and piece[-1] == 3 << 1
            found.append(piece[1:-1])
        assert (row[segment == 0] == 0).all()
        assert (np.diff(segment[segment > 0].astype(int)) >= 0).all()
        assert (np.diff((segment > 0).astype(int)) <= 0).all()  # padding is at the end
    return found


@pytest.mark.parametrize("room", [16, 20, 30, 62, 126, 510])
def test_a_document_is_cut_into_the_fewest_pieces_all_full_but_the_end(room):
    for tokens in range(1, 5 * room):
        lengths = packing.piece_lengths(tokens, room)
        assert sum(lengths) == tokens and len(lengths) == -(-tokens // room)
        assert all(length == room for length in lengths[:-2]) and min(lengths) >= 1 and max(lengths) <= room
        if len(lengths) > 1:
            remainder = tokens - (len(lengths) - 1) * room
            assert lengths[-1] == max(remainder, 16) and lengths[-2] == room - (lengths[-1] - remainder)


def test_examples_of_cutting():
    assert packing.piece_lengths(0, 126) == []
    assert packing.piece_lengths(3, 126) == [3]
    assert packing.piece_lengths(126, 126) == [126]
    assert packing.piece_lengths(127, 126) == [111, 16]
    assert packing.piece_lengths(2 * 126 + 15, 126) == [126, 125, 16]
    assert packing.piece_lengths(2 * 126 + 16, 126) == [126, 126, 16]


def test_a_row_too_short_for_sixteen_tokens_still_cuts_into_pieces_that_fit():
    for tokens in range(1, 60):
        lengths = packing.piece_lengths(tokens, 6)
        assert sum(lengths) == tokens and min(lengths) >= 1 and max(lengths) <= 6 and len(lengths) == -(-tokens // 6)


def test_a_piece_goes_into_the_row_that_it_leaves_fullest():
    # rows of 20: 8 free after the first, 6 free after the second; 4 + 2 fits the second exactly
    rows = list(packing.pack([(0, 10), (10, 12), (22, 4), (26, 6)], 20))
    assert rows == [[(10, 12), (22, 4)], [(0, 10), (26, 6)]]


def test_at_most_the_given_number_of_rows_is_open_and_the_fullest_closes_first():
    rows = list(packing.pack([(0, 10), (10, 12), (22, 11), (33, 9)], 20, open_rows=2))
    assert rows[0] == [(10, 12)] and rows[1] == [(22, 11)]


@pytest.mark.parametrize("row_length", [32, 128])
@pytest.mark.parametrize("vocab_size", [100, 60_000])
def test_rows_hold_every_token_of_every_document_exactly_once(tmp_path, row_length, vocab_size):
    lengths = np.random.default_rng(1).integers(0, 400, 300).tolist()
    folder = token_folder(tmp_path, lengths, vocab_size=vocab_size)
    report = make(packing.write_rows, folder, tmp_path / "rows", row_length, FakeTokenizer(vocab_size))
    expected = []
    for document in stored_documents(folder, vocab_size):
        for length in packing.piece_lengths(len(document), row_length - 2):
            expected.append(document[:length])
            document = document[length:]
    found = stored_pieces(tmp_path / "rows", row_length)
    assert sorted(found) == sorted(expected)
    assert report["pieces"] == len(found) and report["tokens"] == sum(lengths)
    assert report["fill"] == (sum(lengths) + 2 * len(found)) / (report["rows"] * row_length)
    assert report["cut_documents"] == sum(n > row_length - 2 for n in lengths)


@pytest.mark.parametrize("row_length", [128, 512])
def test_rows_are_filled_to_98_percent(tmp_path, row_length):
    lengths = (np.random.default_rng(1).exponential(70, 20_000) + 1).astype(int).tolist()
    tokens = token_folder(tmp_path, lengths)
    assert make(packing.write_rows, tokens, tmp_path / "rows", row_length, TOKENIZER)["fill"] >= 0.98


def test_the_same_tokens_give_the_same_bytes(tmp_path):
    folder = token_folder(tmp_path, np.random.default_rng(1).integers(0, 400, 300).tolist())
    for name in ("a", "b"):
        make(packing.write_rows, folder, tmp_path / name, 64, TOKENIZER)
    for file in ("tokens.bin", "segments.bin", "rows.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_ids_over_32767_take_four_bytes_and_keep_their_word_bit():
    assert packing.token_dtype(32_768).itemsize == 2 and packing.token_dtype(32_769).itemsize == 4
    for vocab_size in (32_768, 32_769):
        ids, bits = np.array([0, 5, vocab_size - 1]), np.array([True, False, True])
        back_ids, back_bits = packing.split_bit(packing.join_bit(ids, bits, vocab_size))
        assert back_ids.tolist() == ids.tolist() and back_bits.tolist() == bits.tolist()


def test_no_tokens_are_an_error_that_names_the_remedy(tmp_path):
    with pytest.raises(BadInput, match=r"corpus\.input"):
        make(packing.write_rows, token_folder(tmp_path, [0, 0]), tmp_path / "rows", 64, TOKENIZER)


def test_unigram_counts_are_of_ids_without_the_word_bit(tmp_path):
    folder = token_folder(tmp_path, [50, 0, 70])
    counts = packing.unigram_counts(folder, 100)
    flat = [token >> 1 for document in stored_documents(folder) for token in document]
    assert counts.tolist() == np.bincount(flat, minlength=100).tolist() and counts.dtype == np.int64


def validation(path, folder, piece_length=64, **changes):
    options = {"mask_rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "seed": 0, **changes}
    report = make(packing.write_validation, folder, path, piece_length, TOKENIZER, **options)
    return report, source.Validation.open(path)


def test_validation_holds_one_piece_a_row_cut_as_rows_are(tmp_path):
    folder = token_folder(tmp_path, [5, 200, 63, 0, 62])
    _, stored = validation(tmp_path / "v", folder)
    lengths = (stored[np.arange(len(stored))].segment_ids_RT > 0).sum(1) - 2
    assert lengths.tolist() == [5, 62, 62, 60, 16, 47, 16, 62]


def test_validation_predicts_the_rounded_share_of_each_piece_and_counts_the_characters_of_its_labels(tmp_path):
    report, stored = validation(tmp_path / "v", token_folder(tmp_path, [5, 200, 63, 40, 62]))
    pieces = stored[np.arange(len(stored))]
    maskable = (pieces.ids_RT >= 5).sum(1)
    assert pieces.weights_RP.sum(1).tolist() == [max(1, round(0.15 * n)) for n in maskable.tolist()]
    real = pieces.weights_RP > 0
    assert (pieces.characters_RP[real] == pieces.labels_RP[real] % 7).all() and not pieces.characters_RP[~real].any()
    assert report["masked_characters"] == pieces.characters_RP.sum() and report["masked_tokens"] == real.sum()


def test_validation_keeps_and_counts_a_piece_in_which_nothing_can_be_predicted(tmp_path):
    folder = token_folder(tmp_path, [5, 3])
    tokens = np.fromfile(folder / "tokens.bin", "<u2")
    tokens[5:] = 1 << 1  # three unknown tokens
    tokens.tofile(folder / "tokens.bin")
    report, stored = validation(tmp_path / "v", folder)
    assert report["pieces_without_prediction"] == 1 and len(stored) == 2


def test_validation_without_anything_to_predict_is_an_error(tmp_path):
    with pytest.raises(BadInput, match=r"corpus\.validation_share"):
        validation(tmp_path / "v", token_folder(tmp_path, [0]))


def test_a_piece_keeps_its_predictions_when_documents_are_added_before_it(tmp_path):
    folder = token_folder(tmp_path / "a", [40, 300, 17])
    added = token_folder(tmp_path / "b", [90, 90], seed=1)
    tokens = np.concatenate([np.fromfile(f / "tokens.bin", "<u2") for f in (added, folder)])
    tokens.tofile(added / "tokens.bin")
    np.array([0, 90, 180, 220, 520, 537], "<i8").tofile(added / "offsets.bin")
    first, second = validation(tmp_path / "v", folder)[1], validation(tmp_path / "w", added)[1]
    before, after = first[np.arange(len(first))], second[np.arange(len(second))[-len(first) :]]
    assert (before.ids_RT == after.ids_RT).all() and (before.positions_RP == after.positions_RP).all()
    assert (before.replacements_RP == after.replacements_RP).all()


@pytest.mark.parametrize(
    ("row_length", "expected"),
    [(128, [16, 32, 64, 128]), (512, [64, 128, 256, 512]), (48, [24, 48]), (33, [33]), (31, [31]), (8, [8])],
)
def test_buckets_are_whole_halves_of_the_row(row_length, expected):
    assert packing.bucket_lengths(row_length) == expected


LENGTHS = [1, 5, 0, 14, 15, 30, 31, 40, 62, 63, 126, 300, 9, 253]


def single(tmp_path, row_length=64):
    tokens = token_folder(tmp_path, LENGTHS)
    report = make(packing.write_single, tokens, tmp_path / f"single_{row_length}", row_length, TOKENIZER)
    return tokens, tmp_path / f"single_{row_length}", report


def test_rows_of_one_piece_hold_every_token_once_and_nothing_else(tmp_path):
    tokens, folder, report = single(tmp_path)
    found = sorted(p for length in report["buckets"] for p in stored_pieces(folder / length, int(length)))
    packed = tmp_path / "rows_64"
    make(packing.write_rows, tokens, packed, 64, TOKENIZER)
    assert found == sorted(stored_pieces(packed, 64))
    assert report["tokens"] == sum(LENGTHS) and report["rows"] == len(found) == sum(report["buckets"].values())


def test_a_piece_lies_alone_in_the_shortest_bucket_that_holds_it(tmp_path):
    _, folder, report = single(tmp_path)
    assert list(report["buckets"]) == ["16", "32", "64"]
    for length in map(int, report["buckets"]):
        segments = np.fromfile(folder / str(length) / "segments.bin", "<u2").reshape(-1, length)
        used = (segments > 0).sum(1)
        assert set(np.unique(segments)) <= {0, 1} and (segments[:, 0] == 1).all()
        assert (used <= length).all() and (used > (length // 2 if length > 16 else 0)).all()


def test_the_cut_documents_and_the_filling_of_rows_of_one_piece_are_counted(tmp_path):
    _, _, report = single(tmp_path)
    assert report["documents"] == len(LENGTHS) and report["cut_documents"] == sum(n > 62 for n in LENGTHS)
    positions = sum(int(length) * rows for length, rows in report["buckets"].items())
    assert report["fill"] == (sum(LENGTHS) + 2 * report["rows"]) / positions


def test_no_tokens_make_no_rows_of_one_piece_either(tmp_path):
    with pytest.raises(BadInput, match=r"corpus\.input"):
        make(packing.write_single, token_folder(tmp_path, [0, 0]), tmp_path / "single_64", 64, TOKENIZER)
