"""The choice of predicted tokens: how many, which, replaced by what, decided by what."""

import time

import numpy as np
import pytest

from jaxbert.data import masking

SPECIAL = frozenset(range(5))
DEFAULTS = {
    "rate": 0.15,
    "mask_share": 0.8,
    "random_share": 0.1,
    "whole_words": False,
    "mask_id": 4,
    "vocab_size": 100,
    "special_ids": SPECIAL,
    "predictions": 19,
}


def batch(rows=64, length=128, seed=0, word_share=0.6):
    """Rows of ordinary tokens between [CLS] and [SEP], the last rows padded to few and more tokens."""
    random = np.random.default_rng(seed)
    ids = random.integers(5, 100, (rows, length)).astype(np.int32)
    ids[:, 0], ids[:, -1] = 2, 3
    for row in range(rows // 2, rows):
        ids[row, 3 + (row - rows // 2) % (length - 3) :] = 0
    return ids, random.random((rows, length)) < word_share, ids >= 5


def keys(rows, seed=0, epoch=0):
    return masking.row_keys(seed, np.full(rows, epoch), np.arange(rows))


def run(ids, starts, maskable, row_keys, **changes):
    return masking.mask(ids, starts, maskable, row_keys, **{**DEFAULTS, **changes})


def chosen(masked, length=128):
    """The predicted positions as bool (R, T)."""
    out = np.zeros((len(masked.positions_RP), length), bool)
    for row, (positions, weights) in enumerate(zip(masked.positions_RP, masked.weights_RP, strict=True)):
        out[row, positions[weights > 0]] = True
    return out


def words_of(starts, maskable):
    """Lists of positions, one a word."""
    words, before = [], False
    for t in range(len(maskable)):
        if maskable[t] and (starts[t] or not before):
            words.append([])
        if maskable[t]:
            words[-1].append(t)
        before = maskable[t]
    return words


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.3, 0.9])
def test_a_row_has_exactly_the_rounded_share_of_its_maskable_tokens_and_at_least_one(rate):
    ids, starts, maskable = batch()
    masked = run(ids, starts, maskable, keys(64), rate=rate, predictions=masking.predictions(rate, 128))
    for row in range(64):
        count = int(maskable[row].sum())
        assert masked.weights_RP[row].sum() == masked.wanted_R[row] == max(1, round(rate * count))


def test_a_row_without_a_maskable_token_has_no_prediction():
    ids, starts, maskable = batch(4)
    maskable[2] = False
    masked = run(ids, starts, maskable, keys(4))
    assert masked.weights_RP[2].sum() == 0 and (masked.input_ids_RT[2] == ids[2]).all()


def test_the_static_number_of_predictions_is_enough_for_a_full_row():
    for length in (8, 64, 128, 512):
        ids, starts, maskable = batch(4, length)
        for rate in (0.05, 0.15, 0.5):
            run(ids, starts, maskable, keys(4), rate=rate, predictions=masking.predictions(rate, length))


def test_more_predictions_than_the_static_number_is_an_error():
    with pytest.raises(ValueError, match="P is 18"):
        run(*batch(), keys(64), predictions=18)


def test_only_maskable_tokens_are_predicted_and_every_other_token_stays():
    ids, starts, maskable = batch()
    masked = run(ids, starts, maskable, keys(64))
    assert (chosen(masked) <= maskable).all()
    assert (masked.input_ids_RT == ids)[~chosen(masked)].all()


def test_labels_are_the_tokens_that_stood_at_the_positions_and_replacements_what_stands_there_now():
    ids, starts, maskable = batch()
    masked, rows = run(ids, starts, maskable, keys(64)), np.arange(64)[:, None]
    real = masked.weights_RP > 0
    assert (ids[rows, masked.positions_RP] == masked.labels_RP)[real].all()
    assert (masked.input_ids_RT[rows, masked.positions_RP] == masked.replacements_RP)[real].all()


def test_filling_follows_the_predictions_and_is_all_zero():
    masked = run(*batch(), keys(64))
    assert (np.diff(masked.weights_RP, axis=1) <= 0).all() and (masked.weights_RP == 0).any()
    for array in (masked.positions_RP, masked.labels_RP, masked.replacements_RP):
        assert not array[masked.weights_RP == 0].any()


def test_eight_tenths_become_mask_one_tenth_random_one_tenth_stays():
    ids, starts, maskable = batch(2000)
    masked = run(ids, starts, maskable, keys(2000), vocab_size=100_000)
    real = masked.weights_RP > 0
    became_mask = (masked.replacements_RP == 4)[real].mean()
    stayed = (masked.replacements_RP == masked.labels_RP)[real].mean()
    assert became_mask == pytest.approx(0.8, abs=0.01) and stayed == pytest.approx(0.1, abs=0.01)


def test_random_tokens_are_spread_over_all_ordinary_ids_and_never_special():
    ids, starts, maskable = batch(2000)
    masked = run(ids, starts, maskable, keys(2000), mask_share=0.0, random_share=1.0)
    counts = np.bincount(masked.replacements_RP[masked.weights_RP > 0], minlength=100)
    assert not counts[:5].any() and counts[5:].min() > 0.7 * counts[5:].mean() and len(counts) == 100


def test_every_position_is_chosen_equally_often():
    ids, starts, maskable = batch(1)
    ids, starts, maskable = (np.repeat(a, 4000, 0) for a in (ids, starts, maskable))
    ids[:], maskable[:] = 9, True
    share = chosen(run(ids, starts, maskable, keys(4000))).mean(0)
    assert share.min() > 0.12 and share.max() < 0.18


def test_the_choice_depends_on_seed_epoch_and_row_and_on_nothing_else():
    ids, starts, maskable = batch()
    all_rows = run(ids, starts, maskable, keys(64))
    part = run(ids[10:20], starts[10:20], maskable[10:20], keys(64)[10:20])
    assert (part.positions_RP == all_rows.positions_RP[10:20]).all()
    assert (part.replacements_RP == all_rows.replacements_RP[10:20]).all()
    for other in (keys(64, seed=1), keys(64, epoch=1), keys(64)[::-1]):
        assert (run(ids, starts, maskable, other).positions_RP != all_rows.positions_RP).any(1)[:32].all()


def test_whole_words_are_taken_whole_and_never_pass_the_wanted_number():
    ids, starts, maskable = batch()
    masked = run(ids, starts, maskable, keys(64), whole_words=True)
    taken = chosen(masked)
    for row in range(64):
        assert taken[row].sum() <= masked.wanted_R[row]
        for word in words_of(starts[row], maskable[row]):
            assert len(word) > masking.LONGEST_WORD or taken[row, word].all() or not taken[row, word].any()


def test_whole_words_are_what_a_walk_in_random_order_that_skips_what_does_not_fit_would_take():
    ids, starts, maskable = batch(32, word_share=0.3)
    row_keys = keys(32)
    masked = run(ids, starts, maskable, row_keys, whole_words=True)
    bits = masking._mix(np.arange(128, dtype=np.uint64), masking._mix(masking._ORDER, row_keys)[:, None])
    for row in range(32):
        units = [
            unit
            for word in words_of(starts[row], maskable[row])
            for unit in ([word] if len(word) <= masking.LONGEST_WORD else [[t] for t in word])
        ]
        left, expected = int(masked.wanted_R[row]), []
        for unit in sorted(units, key=lambda u: (int(bits[row, u[0]]) >> 20, u[0])):
            if len(unit) <= left:
                expected += unit
                left -= len(unit)
        assert np.flatnonzero(chosen(masked)[row]).tolist() == sorted(expected)


def test_a_word_of_more_than_twelve_tokens_is_masked_by_token():
    ids, starts, maskable = batch(200)
    ids[:], maskable[:] = 9, True
    starts[:] = False
    starts[:, 0] = True  # one word of 128 tokens
    taken = chosen(run(ids, starts, maskable, keys(200), whole_words=True))
    assert (taken.sum(1) == 19).all() and len(np.unique(taken, axis=0)) == 200


def test_a_word_does_not_reach_across_special_tokens():
    ids, starts, maskable = batch(300, 8)
    ids[:] = [2, 9, 9, 3, 2, 9, 9, 3]
    starts[:], maskable = False, ids >= 5
    starts[:, 1] = True  # the second piece goes on with a word cut in two
    taken = chosen(run(ids, starts, maskable, keys(300), whole_words=True, rate=0.5, predictions=4), 8)
    assert {tuple(np.flatnonzero(row)) for row in taken} == {(1, 2), (5, 6)}


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_batch_is_masked_in_milliseconds(whole_words):
    data, row_keys, times = batch(), keys(64), []
    for _ in range(20):
        start = time.perf_counter()
        run(*data, row_keys, whole_words=whole_words)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.003
