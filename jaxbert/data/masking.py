"""Which tokens of a row are predicted, and what stands in their place: masked language modelling's corruption.

The choice is a pure function of a row's key and the positions in it (counter-based random bits, no generator state),
so a batch depends on nothing but (seed, epoch, row). Rule: Devlin et al. 2019, section 3.1; whole words as in the
authors' later release of BERT. All of it is numpy over whole batches: no loop over rows.
"""

import dataclasses
import functools

import numpy as np

LONGEST_WORD = 12  # tokens; a longer "word" (a URL, a table) is masked token by token
_SEED, _ORDER, _ACTION, _TOKEN = (np.uint64(n) for n in (0x243F6A8885A308D3, 1, 2, 3))  # streams of random bits
_TIE_BITS = np.uint64(20)  # low bits of a priority hold the position: rows of up to 2²⁰ tokens


@dataclasses.dataclass(frozen=True)
class Masked:
    """A batch with its predictions. Filling (weight 0) stands at the end of each row, at position 0 with label 0."""

    input_ids_RT: np.ndarray  # int32, tokens after replacement
    positions_RP: np.ndarray  # int32, ascending
    labels_RP: np.ndarray  # int32, the tokens that stood there
    weights_RP: np.ndarray  # float32, 1 for a prediction
    replacements_RP: np.ndarray  # int32, the tokens put there; 0 in filling
    wanted_R: np.ndarray  # int64, n = max(1, round(rate × maskable)); whole words may reach less


def predictions(rate: float, row_length: int) -> int:
    """The static P: the most predictions that a row of `row_length` tokens, [CLS] and [SEP] among them, can have."""
    return max(1, round(rate * (row_length - 2)))


def row_keys(seed: int, epoch_R: np.ndarray, row_R: np.ndarray) -> np.ndarray:
    """One uint64 key (R,) a row, from the run's seed, the row's epoch (R,) and its number in the file (R,)."""
    seed_bits = np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
    key_R = _mix(np.asarray(epoch_R, np.uint64), _mix(_SEED, seed_bits))
    return _mix(np.asarray(row_R, np.uint64), key_R)


def mask(
    token_ids_RT: np.ndarray,
    starts_word_RT: np.ndarray,
    maskable_RT: np.ndarray,
    keys_R: np.ndarray,
    *,
    rate: float,
    mask_share: float,
    random_share: float,
    whole_words: bool,
    mask_id: int,
    vocab_size: int,
    special_ids: frozenset[int],
    predictions: int,
) -> Masked:
    """Choose n = max(1, round(rate × maskable)) tokens a row and replace them.

    Args:
      token_ids_RT: integers, R rows of T tokens.
      starts_word_RT: bool, the token is the first of a word; read only with `whole_words`.
      maskable_RT: bool, the token may be predicted (not special, not padding).
      keys_R: uint64, from `row_keys`.
      rate: share of a row's maskable tokens.
      mask_share, random_share: of the predicted tokens, become [MASK] and a random ordinary token; the rest stays.
      whole_words: take whole words in random order, skipping a word that would pass n; never more than n tokens.
      special_ids: never drawn as random tokens.
      predictions: the static P, at least every row's n (`predictions(rate, T)`).

    A row without a maskable token has no prediction. Raises ValueError where a row's n is over P.
    """
    rows, length = token_ids_RT.shape
    maskable_R = maskable_RT.sum(1)
    wanted_R = np.minimum(np.maximum(1, np.rint(rate * maskable_R).astype(np.int64)), maskable_R)
    if rows and wanted_R.max() > predictions:
        raise ValueError(f"a row has {wanted_R.max()} predictions, but P is {predictions}")
    bits_RT = _mix(np.arange(length, dtype=np.uint64), _mix(_ORDER, keys_R)[:, None])
    if whole_words:
        chosen_RT = _choose_words(bits_RT, maskable_RT, starts_word_RT, wanted_R)
    else:
        order_RT = np.sort(_priorities(bits_RT, maskable_RT), axis=1)
        last_R = np.take_along_axis(order_RT, np.maximum(wanted_R - 1, 0)[:, None], 1)
        chosen_RT = maskable_RT & (_priorities(bits_RT, maskable_RT) <= last_R)

    row_N, position_N = np.nonzero(chosen_RT)
    reached_R = np.bincount(row_N, minlength=rows)
    slot_N = np.arange(len(row_N)) - np.repeat(np.cumsum(reached_R) - reached_R, reached_R)
    label_N = token_ids_RT[row_N, position_N].astype(np.int32)
    at_N = position_N.astype(np.uint64)
    share_N = _unit(_mix(at_N, _mix(_ACTION, keys_R)[row_N]))
    random_N = _ordinary_tokens(_mix(at_N, _mix(_TOKEN, keys_R)[row_N]), vocab_size, special_ids)
    kept_N = np.where(share_N < mask_share + random_share, random_N, label_N)
    replacement_N = np.where(share_N < mask_share, np.int32(mask_id), kept_N).astype(np.int32)

    input_ids_RT = token_ids_RT.astype(np.int32)
    input_ids_RT[row_N, position_N] = replacement_N
    filled: dict[str, np.ndarray] = {}
    for name, values_N in (("positions", position_N), ("labels", label_N), ("replacements", replacement_N)):
        filled[f"{name}_RP"] = np.zeros((rows, predictions), np.int32)
        filled[f"{name}_RP"][row_N, slot_N] = values_N
    filled["weights_RP"] = (np.arange(predictions) < reached_R[:, None]).astype(np.float32)
    return Masked(input_ids_RT=input_ids_RT, wanted_R=wanted_R, **filled)


def _choose_words(
    bits_RT: np.ndarray, maskable_RT: np.ndarray, starts_word_RT: np.ndarray, wanted_R: np.ndarray
) -> np.ndarray:
    """Whole words in the order of their random bits while they fit into `wanted_R`; bool (R, T).

    A prefix of the words fits at once; behind it only words not longer than what is left still can. So each round
    takes a whole prefix in every row, and a few rounds (bounded by the longest word) do what a walk would.
    """
    rows, length = maskable_RT.shape
    after_gap_RT = np.ones_like(maskable_RT)
    after_gap_RT[:, 1:] = ~maskable_RT[:, :-1]
    first_RT = maskable_RT & (starts_word_RT | after_gap_RT)
    long_RT = maskable_RT & (_sizes(first_RT, maskable_RT) > LONGEST_WORD)
    first_RT = first_RT | long_RT  # every token of a long word is a unit of its own
    size_RT = _sizes(first_RT, maskable_RT)

    most = max(1, int(first_RT.sum(1).max(initial=0)))  # units in the fullest row
    priority_RU = np.sort(_priorities(bits_RT, first_RT), axis=1)[:, :most]
    at_RU = (priority_RU & _low_bits()).astype(np.int64)  # a unit's first token
    real_RU = np.arange(most) < first_RT.sum(1)[:, None]
    size_RU = np.where(real_RU, np.take_along_axis(size_RT, at_RU, 1), 0)
    taken_RU, open_RU, left_R = np.zeros_like(real_RU), real_RU, wanted_R
    while True:
        open_RU = open_RU & (size_RU <= left_R[:, None])
        if not open_RU.any():
            break
        now_RU = open_RU & (np.cumsum(np.where(open_RU, size_RU, 0), 1) <= left_R[:, None])
        taken_RU, open_RU = taken_RU | now_RU, open_RU & ~now_RU
        left_R = left_R - np.where(now_RU, size_RU, 0).sum(1)

    taken_RT = np.zeros_like(maskable_RT)
    row_N, unit_N = np.nonzero(taken_RU)
    taken_RT[row_N, at_RU[row_N, unit_N]] = True
    unit_RT = np.cumsum(first_RT.ravel()).reshape(rows, length)  # 1, 2, … over the batch; 0 before the first
    by_unit = np.concatenate([[False], taken_RT.ravel()[first_RT.ravel()]])
    return maskable_RT & by_unit[unit_RT]


def _sizes(first_RT: np.ndarray, maskable_RT: np.ndarray) -> np.ndarray:
    """Tokens of the unit that each token belongs to; a unit reaches to the next True of `first_RT`. int64 (R, T)."""
    unit = np.cumsum(first_RT.ravel())
    return np.bincount(unit, weights=maskable_RT.ravel()).astype(np.int64)[unit].reshape(first_RT.shape)


def _priorities(bits_RT: np.ndarray, candidate_RT: np.ndarray) -> np.ndarray:
    """Random bits with the position in the low bits, so that values are unique and a sorted value says where it was."""
    position_T = np.arange(bits_RT.shape[1], dtype=np.uint64)
    return np.where(candidate_RT, bits_RT & ~_low_bits() | position_T, ~_low_bits() | position_T)


def _low_bits() -> np.uint64:
    return (np.uint64(1) << _TIE_BITS) - np.uint64(1)


def _mix(counter: np.ndarray | np.uint64, key: np.ndarray | np.uint64) -> np.ndarray:
    """64 random bits of (counter, key): the output function of splitmix64 (Steele et al. 2014) on key + step."""
    with np.errstate(over="ignore"):
        x = np.asarray(key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15), np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _unit(bits: np.ndarray) -> np.ndarray:
    """Random bits as float64 in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _ordinary_tokens(bits: np.ndarray, vocab_size: int, special_ids: frozenset[int]) -> np.ndarray:
    table = _ordinary_ids(vocab_size, special_ids)
    return table[((bits >> np.uint64(32)) * np.uint64(len(table)) >> np.uint64(32)).astype(np.int64)]


@functools.lru_cache(maxsize=8)
def _ordinary_ids(vocab_size: int, special_ids: frozenset[int]) -> np.ndarray:
    return np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.array(sorted(special_ids), np.int32))
