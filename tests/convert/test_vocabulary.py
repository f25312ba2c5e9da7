"""A new vocabulary on an old run: whose vector each token takes, what stays, what is counted, what is refused."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import sparse
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Pipeline

from jaxbert import config as configs
from jaxbert import errors, evaluate, export, objectives, runs, train
from jaxbert.convert import __main__ as command
from jaxbert.convert import static, vocabulary
from jaxbert.convert.key_map import flatten
from jaxbert.convert.tokenizer import import_tokenizer
from jaxbert.convert.vocabulary import Meaning
from jaxbert.data.tokenizer import BYTES, SPECIAL, TextTokenizer, byte_alphabet, entries
from tests.models.encoders import SMALL
from tests.models.test_encoders import EVERY_OTHERS_SLOW

COUNTS = ("shared", "composed", "fresh")
TABLES = ("encoder/embeddings/word_VD", "head/bias_V", "head/output_VD")


# --- small tokenizers of each kind ---


def write(folder: Path, model, pre_tokenizer, decoder, normalizer=None, symbols=()) -> Path:
    pipeline = Pipeline(model)
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        pipeline.normalizer = normalizer
    pipeline.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    pipeline.add_tokens([AddedToken(symbol, special=False) for symbol in symbols])
    folder.mkdir(parents=True)
    pipeline.save(str(folder / "tokenizer.json"))
    return folder


def wordpiece(folder: Path, pieces) -> Path:
    """As BERT's uncased: lower case, no accents, punctuation apart."""
    vocabulary = {piece: i for i, piece in enumerate((*SPECIAL, *pieces))}
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return write(folder, model, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(), normalizers.BertNormalizer())


def unigram(folder: Path, pieces, symbols=()) -> Path:
    """As ours: ▁ before a word, byte pieces, and the characters of special tokens, which may stand in a text."""
    pieces = [*pieces, *sorted(set("".join((*SPECIAL, *BYTES))) - set(pieces))]
    scored = [(name, -1e6) for name in (*SPECIAL, *BYTES)] + [(piece, -5.0) for piece in pieces]
    model = models.Unigram(scored, unk_id=1, byte_fallback=True)
    metaspace = pre_tokenizers.Metaspace("▁", prepend_scheme="first")
    return write(folder, model, metaspace, decoders.Replace("▁", " "), symbols=symbols)


def byte_level(folder: Path, pieces, merges=()) -> Path:
    """As RoBERTa's: every byte a character, Ġ before a word."""
    names = [*SPECIAL, *sorted(byte_alphabet()), *pieces]
    model = models.BPE({name: i for i, name in enumerate(names)}, list(merges), unk_token=None)
    return write(folder, model, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def ids(tokenizer: TextTokenizer) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(entries(tokenizer.tokenizer))}


def made_of(old_folder: Path, new_folder: Path, method: str) -> dict[str, dict[str, float]]:
    """New piece → {old piece: weight}."""
    old, new = TextTokenizer.load(old_folder), TextTokenizer.load(new_folder)
    found = vocabulary.plan(old, new, method)
    assert found.shared + found.composed + found.fresh == new.vocab_size
    names, mixing = entries(old.tokenizer), found.mixing_VU.toarray()
    return {
        piece: {names[k]: float(w) for k, w in enumerate(mixing[i]) if w}
        for i, piece in enumerate(entries(new.tokenizer))
    }


# --- what a token stands for ---

WORDS = ("casa", "ca", "##sa", "a", "b", "##a", "##b", ".", "##.", "##ción")


@pytest.fixture
def old_wordpiece(tmp_path):
    return wordpiece(tmp_path / "wordpiece", WORDS)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("▁casa", {"casa": 1.0}),
        ("casa", {}),
        ("▁a", {"a": 1.0}),
        ("a", {"##a": 1.0}),
        ("ción", {"##ción": 1.0}),
        ("▁Casa", {}),
        (".", {".": 1.0}),
        ("▁.", {".": 1.0}),
        ("▁", {}),
        ("<0x41>", {}),
        ("[CLS]", {"[CLS]": 1.0}),
        ("[MASK]", {"[MASK]": 1.0}),
    ],
)
def test_a_shared_token_has_the_same_text_at_the_same_place_of_a_word(piece, expected, old_wordpiece, tmp_path):
    pieces = [p for p in ("▁casa", "casa", "▁a", "a", "ción", "▁Casa", ".", "▁.", "▁")]
    assert made_of(old_wordpiece, unigram(tmp_path / "new", pieces), "copy")[piece] == expected


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("▁casa", {"casa": 1.0}),
        ("▁Casa", {"casa": 1.0}),  # the old tokenizer has no capitals
        ("▁casá", {"casa": 1.0}),  # and no accents
        ("casa", {"casa": 1.0}),  # there is no ##ca: as a word of its own
        ("▁casasa", {"casa": 0.5, "##sa": 0.5}),
        ("▁caaa", {"ca": 1 / 3, "##a": 2 / 3}),
        ("aab", {"##a": 2 / 3, "##b": 1 / 3}),
        (").", {".": 1.0}),  # ) is [UNK] there
        ("▁xyz", {}),
        ("▁", {}),
    ],
)
def test_the_mean_is_of_the_pieces_that_the_old_tokenizer_cuts_at_this_place_of_a_word(
    piece, expected, old_wordpiece, tmp_path
):
    pieces = ["▁casa", "▁Casa", "▁casá", "casa", "▁casasa", "▁caaa", "aab", ").", "▁xyz", "▁"]
    assert made_of(old_wordpiece, unigram(tmp_path / "new", pieces), "mean")[piece] == pytest.approx(expected)


OLD = {
    "wordpiece": lambda folder: wordpiece(folder, ("ca", "##ca", "##sa", "sa")),
    "unigram": lambda folder: unigram(folder, ("▁ca", "ca", "sa", "▁sa")),
    "byte_level": lambda folder: byte_level(
        folder, ("ca", "sa", "Ġca", "Ġsa"), [("c", "a"), ("s", "a"), ("Ġ", "ca"), ("Ġ", "sa")]
    ),
}
START = {"wordpiece": "{}", "unigram": "▁{}", "byte_level": "Ġ{}"}
INSIDE = {"wordpiece": "##{}", "unigram": "{}", "byte_level": "{}"}
NEW = {
    "wordpiece": lambda folder: wordpiece(folder, ("casa", "##casa", "ca", "##ca")),
    "unigram": lambda folder: unigram(folder, ("▁casa", "casa", "▁ca", "ca")),
    "byte_level": lambda folder: byte_level(folder, ("casa", "Ġcasa", "ca", "Ġca")),
}


@pytest.mark.parametrize("new", NEW)
@pytest.mark.parametrize("old", OLD)
def test_every_kind_of_tokenizer_is_cut_by_every_other(old, new, tmp_path):
    found = made_of(OLD[old](tmp_path / "old"), NEW[new](tmp_path / "new"), "mean")
    first, inside = START[old].format, INSIDE[old].format
    assert found[START[new].format("ca")] == {first("ca"): 1.0}
    assert found[INSIDE[new].format("ca")] == {inside("ca"): 1.0}
    assert found[START[new].format("casa")] == {first("ca"): 0.5, inside("sa"): 0.5}
    assert found[INSIDE[new].format("casa")] == {inside("ca"): 0.5, inside("sa"): 0.5}


def test_special_tokens_go_by_role_whatever_they_are_called(tmp_path):
    folder = unigram(tmp_path / "old", ("▁a",))
    text = (folder / "tokenizer.json").read_text()
    names = {"[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}
    for ours, theirs in names.items():
        text = text.replace(ours, theirs)
    (folder / "tokenizer.json").write_text(text)
    roles = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    found = made_of(folder, unigram(tmp_path / "new", ("▁a", "▁b")), "copy")
    assert {name: found[name] for name in names} == {ours: {theirs: 1.0} for ours, theirs in names.items()}
    assert found["[PAD]"] == {"[PAD]": 1.0} and found["[UNK]"] == {"[UNK]": 1.0}


def test_bytes_are_bytes_and_symbols_are_text(tmp_path):
    tokenizer = TextTokenizer.load(unigram(tmp_path / "bytes", ("▁a",), symbols=("→x",)))
    found, at = vocabulary.meanings(tokenizer, "--source"), ids(tokenizer)
    assert found[at["<0xE1>"]] == Meaning("bytes", "\xe1") and found[at["→x"]] == Meaning("text", "→x")
    tokenizer = TextTokenizer.load(byte_level(tmp_path / "level", ("Ġca", "Ã¡")))
    found, at = vocabulary.meanings(tokenizer, "--source"), ids(tokenizer)
    assert found[at["Ġca"]] == Meaning("text", "ca", True) and found[at["Ã¡"]] == Meaning("text", "á", False)
    assert found[at["Ã"]] == Meaning("bytes", "\xc3") and found[at["Ġ"]] is None


def test_a_byte_that_both_have_is_shared(tmp_path):
    found = made_of(byte_level(tmp_path / "old", ()), unigram(tmp_path / "new", ("▁a",)), "mean")
    assert found["<0xC3>"] == {"Ã": 1.0} and found["<0x41>"] == {}


# --- runs: every encoder ---


def make_run(folder: Path, model: configs.Model, tokenizer: Path) -> runs.Run:
    """A run at step 0 whose every parameter is drawn, biases too."""
    folder.mkdir()
    import_tokenizer(tokenizer, folder / "tokenizer", None)
    loaded = TextTokenizer.load(folder / "tokenizer")
    settings = command._recipe(model, loaded.vocab_size, tokenizer)
    runs.write_json(folder / "config.json", configs.to_dict(settings))
    objective = objectives.for_tokenizer(settings, loaded)
    random = np.random.default_rng(0)

    def drawn(name, leaf):
        array = random.normal(0, 0.1, leaf.shape).astype(np.float32)
        if "V" in name.rpartition("_")[2]:
            array[loaded.vocab_size :] = 0
        return jax.numpy.asarray(array)

    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    leaves = [drawn(name, leaf) for name, leaf in flatten(abstract).items()]
    command._save(folder, jax.tree.unflatten(jax.tree.structure(abstract), leaves), {"step": 0, "tokens": 0})
    return runs.load_run(folder)


def named(family: str) -> configs.Model:
    """The small form under a name that `resolve` knows."""
    sizes = {"bert": "bert_tiny", "convbert": "convbert_small", "gmlp": "gmlp_base", "amlp": "amlp_base"}
    sizes |= {"m2": "m2_80M", "hypermixer": "hypermixer_tiny"}
    return dataclasses.replace(SMALL[family], name=sizes[family.split("_")[0]])


OLD_PIECES = ("casa", "ca", "##sa", "a", "##a", ".", *(f"##{c}{d}" for c in "bcdefgh" for d in "bcdefghijklmnopqr"))
NEW_PIECES = ("▁casa", "▁a", "a", ".", "▁casaa", "▁Casa", "▁zz")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizers")
    return wordpiece(place / "old", OLD_PIECES), unigram(place / "new", NEW_PIECES)


def arrays(run: runs.Run) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(run.model).items()}


@EVERY_OTHERS_SLOW
def test_every_encoder_takes_a_vocabulary_and_keeps_the_rest(name, folders, tmp_path):
    old = make_run(tmp_path / "old", named(name), folders[0])
    found = command.replace_vocabulary(tmp_path / "old", tmp_path / "new", tokenizer=str(folders[1]), method="mean")
    new = runs.load_run(tmp_path / "new")
    assert found.tables == [name for name in arrays(old) if name in TABLES]
    was, at = ids(old.tokenizer), ids(new.tokenizer)
    assert new.config.model == dataclasses.replace(old.config.model, initialize_from="")
    for name, array in arrays(new).items():
        before = arrays(old)[name]
        if name not in TABLES:
            np.testing.assert_array_equal(array, before, strict=True, err_msg=name)
            continue
        np.testing.assert_array_equal(array[at["▁casa"]], before[was["casa"]])
        np.testing.assert_array_equal(array[at["[MASK]"]], before[was["[MASK]"]])
        np.testing.assert_allclose(array[at["▁casaa"]], (before[was["casa"]] + before[was["##a"]]) / 2, rtol=1e-6)
        assert not array[new.tokenizer.vocab_size :].any()
        fresh, drawn = array[at["▁zz"]], before[: old.tokenizer.vocab_size]
        assert not (drawn == fresh).all(axis=tuple(range(1, drawn.ndim))).any()
        assert fresh.any() == (array.ndim == 2)  # a fresh row of a table is drawn, a fresh bias is 0


def test_fresh_rows_are_those_of_a_fresh_model(folders, tmp_path):
    make_run(tmp_path / "old", named("bert"), folders[0])
    command.replace_vocabulary(tmp_path / "old", tmp_path / "new", tokenizer=str(folders[1]), method="copy")
    new = runs.load_run(tmp_path / "new")
    initial = flatten(jax.jit(new.objective.init)(jax.random.key(new.config.train.init_seed)))
    fresh = [i for piece, i in ids(new.tokenizer).items() if piece in ("▁zz", "▁casaa", "▁Casa", "▁", *BYTES)]
    word_VD = "encoder/embeddings/word_VD"
    np.testing.assert_array_equal(arrays(new)[word_VD][fresh], np.asarray(initial[word_VD])[fresh])


def test_a_vocabulary_of_the_same_kind_of_tokenizer_gives_the_old_predictions(folders, tmp_path):
    """Tokens in another order: the same text has the same states and the same probabilities."""
    old = make_run(tmp_path / "old", named("bert"), folders[0])
    other = wordpiece(tmp_path / "other", OLD_PIECES[::-1])
    command.replace_vocabulary(tmp_path / "old", tmp_path / "new", tokenizer=str(other), method="copy")
    new = runs.load_run(tmp_path / "new")
    text = "casa [MASK] ca."
    before, after = (evaluate.mask_probabilities(run, text)[0] for run in (old, new))
    was, at = ids(old.tokenizer), ids(new.tokenizer)
    np.testing.assert_allclose([after[at[p]] for p in OLD_PIECES], [before[was[p]] for p in OLD_PIECES], rtol=1e-5)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_source_stays_as_it_is_and_the_result_says_where_it_comes_from(folders, tmp_path, capsys):
    make_run(tmp_path / "old", named("bert"), folders[0])
    before = snapshot(tmp_path / "old")
    flags = [f"--source={tmp_path / 'old'}", f"--tokenizer={folders[1]}", f"--workdir={tmp_path / 'new'}"]
    command.main(["--from=run", "--method=mean", *flags])
    assert snapshot(tmp_path / "old") == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    told, record = capsys.readouterr().out, runs.load_run(tmp_path / "new").loop["imported"]["vocabulary"]
    size = TextTokenizer.load(folders[1]).vocab_size
    assert record["shared"] == len(SPECIAL) + 4 and record["composed"] == 3  # ▁casa ▁a a . and ▁casaa ▁Casa A
    sizes = {"from": TextTokenizer.load(folders[0]).vocab_size, "to": size}
    assert {name: record[name] for name in record if name not in COUNTS} == {"method": "mean", **sizes}
    assert sum(record[name] for name in COUNTS) == size
    for name in COUNTS:
        assert f"{name:10} {record[name]:,} (" in told


def test_a_folder_of_ours_is_taken_byte_for_byte(tiny_corpus, folders, tmp_path):
    make_run(tmp_path / "old", named("bert"), folders[0])
    theirs = Path(tiny_corpus.corpus.directory) / "tokenizer"
    command.replace_vocabulary(tmp_path / "old", tmp_path / "new", tokenizer=str(theirs), method="mean")
    assert snapshot(tmp_path / "new" / "tokenizer") == snapshot(theirs)


def test_a_step_of_a_run_can_be_named_and_a_second_change_remembers_the_first(folders, tmp_path):
    make_run(tmp_path / "old", named("bert"), folders[0])
    command.replace_vocabulary(f"{tmp_path / 'old'}@0", tmp_path / "new", tokenizer=str(folders[1]), method="copy")
    command.replace_vocabulary(tmp_path / "new", tmp_path / "longer", positions=50, positions_method="tile")
    first, second = (runs.load_run(tmp_path / name).loop["imported"] for name in ("new", "longer"))
    assert first["step"] == 0 and first["source"] == "old" and second["before"] == first


@pytest.mark.slow
def test_a_run_starts_from_the_result_and_export_verifies_it(tiny_corpus, tiny_run, folders, tmp_path):
    pytest.importorskip("torch")
    make_run(tmp_path / "old", tiny_corpus.model, folders[0])
    theirs = Path(tiny_corpus.corpus.directory) / "tokenizer"
    command.replace_vocabulary(tmp_path / "old", tmp_path / "new", tokenizer=str(theirs), method="similarity")
    model = dataclasses.replace(tiny_corpus.model, initialize_from=str(tmp_path / "new"))
    summary = train.train(dataclasses.replace(tiny_corpus, model=model), tmp_path / "run")
    assert summary["validation"]["loss"] < 7
    export.export(tmp_path / "new", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "was replaced by one of 600" in card and "(`similarity`)" in card


# --- similarity ---


def test_sparsemax_is_the_projection_on_the_simplex():
    scores = np.random.default_rng(0).normal(size=(20, 7))
    found = static.sparsemax(scores)
    assert (found >= 0).all() and np.allclose(found.sum(1), 1) and (found == 0).any()
    for row, weights in zip(scores, found, strict=True):  # Karush, Kuhn and Tucker: one threshold for all that is kept
        threshold = (row - weights)[weights > 0]
        assert np.ptp(threshold) < 1e-9 and (row[weights == 0] <= threshold[0] + 1e-9).all()
    np.testing.assert_allclose(static.sparsemax(np.array([[3.0, 0.0]])), [[1.0, 0.0]])


def write_tokens(folder: Path, documents, vocab_size: int) -> Path:
    folder.mkdir(parents=True)
    flat = np.concatenate([np.asarray(d) for d in documents])
    (flat << 1).astype("<u2" if vocab_size <= 1 << 15 else "<u4").tofile(folder / "tokens.bin")
    np.cumsum([0, *map(len, documents)]).astype("<i8").tofile(folder / "offsets.bin")
    return folder


def test_tokens_of_the_same_company_are_neighbours(tmp_path):
    """Ids 0 to 9 stand only among 20 to 29, 10 to 19 only among 30 to 39; 40 is seen once, 41 never."""
    random, documents = np.random.default_rng(0), []
    for number in range(400):
        side = number % 2
        documents.append(
            np.stack(
                [random.integers(10 * side, 10 * side + 10, 6), random.integers(20 + 10 * side, 30 + 10 * side, 6)]
            ).T.ravel()
        )
    vectors = static.static_vectors(write_tokens(tmp_path / "t", [*documents, np.array([40, 0])], 50), 50)
    assert not vectors[40].any() and not vectors[41].any()
    found = static.neighbours(vectors, np.arange(1, 20), np.array([0, 40, 41]))
    chosen, weights = found[0]
    assert len(chosen) and weights.sum() == pytest.approx(1) and weights[chosen < 10].sum() > 0.99
    assert not len(found[1][0]) and not len(found[2][0])


def test_information_is_positive_pointwise_and_mutual_with_smoothed_contexts():
    counts = np.array([[0.0, 6.0, 1.0], [6.0, 2.0, 3.0], [1.0, 3.0, 0.0]])
    found = static._positive_information(sparse.csr_array(counts)).toarray()
    token, context = counts.sum(1) / counts.sum(), counts.sum(0) ** 0.75 / (counts.sum(0) ** 0.75).sum()
    ratio = counts / counts.sum() / (token[:, None] * context)
    expected = np.maximum(0, np.log(ratio, out=np.zeros((3, 3)), where=ratio > 0))
    assert (expected > 0).any() and (ratio[counts > 0] < 1).any()
    np.testing.assert_allclose(found, expected)


def test_pairs_are_counted_within_documents_and_fall_with_the_distance(tmp_path):
    documents = [np.array([1, 2, 3]), np.array([4]), np.array([1, 5])]
    counts, seen = static._pairs(write_tokens(tmp_path / "t", documents, 50), 6)
    dense = counts.toarray()
    assert seen.tolist() == [0, 2, 1, 1, 1, 1]
    assert dense[1, 2] == dense[2, 1] == 1.0 and dense[1, 3] == pytest.approx(0.8) and dense[1, 5] == 1.0
    assert dense[3, 4] == dense[4, 1] == dense[3, 1] - 0.8 == 0.0


def test_similarity_takes_shared_tokens_alone_and_the_same_ones_every_time(tiny_corpus, folders, tmp_path):
    directory = Path(tiny_corpus.corpus.directory)
    new = TextTokenizer.load(directory / "tokenizer")
    words = [p.removeprefix("▁") for p in entries(new.tokenizer) if p.startswith("▁") and len(p) > 2][:40]
    old = TextTokenizer.load(wordpiece(tmp_path / "old", words))
    first, second = (vocabulary.plan(old, new, "similarity", directory) for _ in range(2))
    assert first.shared and first.composed and first.fresh
    assert np.array_equal(first.mixing_VU.toarray(), second.mixing_VU.toarray())
    sums = np.asarray(first.mixing_VU.sum(axis=1)).ravel()
    assert np.all(np.isclose(sums, 1) | (sums == 0)) and (first.mixing_VU.toarray() >= 0).all()
    at = ids(old)
    assert set(first.mixing_VU.indices) <= {at[w] for w in words} | set(range(len(SPECIAL)))


# --- positions ---


@pytest.mark.parametrize("family", ["bert", "convbert_grouped"])
def test_positions_are_tiled_or_stretched_and_all_else_stays(family, folders, tmp_path):
    old = make_run(tmp_path / "old", named(family), folders[0])
    before = arrays(old)[command.POSITIONS]
    for method in vocabulary.POSITION_METHODS:
        command.replace_vocabulary(tmp_path / "old", tmp_path / method, positions=79, positions_method=method)
        new = runs.load_run(tmp_path / method)
        assert new.config.model.max_positions == 79 and new.loop["imported"]["positions"]["to"] == 79
        after = arrays(new)
        table = after.pop(command.POSITIONS)
        assert all(np.array_equal(array, arrays(old)[name]) for name, array in after.items())
        if method == "tile":
            np.testing.assert_array_equal(table, np.concatenate([before, before[:39]]))
        else:  # 40 → 79: every old one, and the means of neighbours between them
            np.testing.assert_allclose(table[::2], before, rtol=1e-6)
            np.testing.assert_allclose(table[1::2], (before[1:] + before[:-1]) / 2, rtol=1e-5, atol=1e-7)
        if family == "bert":
            evaluate.mask_probabilities(new, "casa " * 60 + "[MASK]")


def test_one_position_can_be_repeated_and_stretched():
    one = np.ones((1, 3), np.float32)
    for method in vocabulary.POSITION_METHODS:
        np.testing.assert_array_equal(vocabulary.extend_positions(one, 4, method), np.ones((4, 3)))


# --- what is refused: exit code 2, one message ---


@pytest.fixture(scope="module")
def refusing(folders, tmp_path_factory):
    place = tmp_path_factory.mktemp("refused")
    make_run(place / "run", named("bert"), folders[0])
    make_run(place / "gmlp", named("gmlp"), folders[0])
    make_run(place / "m2", named("m2"), folders[0])
    (place / "empty").mkdir()
    (place / "full").mkdir()
    (place / "full" / "file").write_text("")
    write(place / "no_roles", models.WordLevel({"a": 0}, unk_token="a"), pre_tokenizers.Whitespace(), decoders.Fuse())
    text = (place / "no_roles" / "tokenizer.json").read_text().replace("[MASK]", "[HIDDEN]")
    (place / "no_roles" / "tokenizer.json").write_text(text)
    ends = models.BPE({"a</w>": 0, "a": 1}, [], end_of_word_suffix="</w>")
    write(place / "ends", ends, pre_tokenizers.Whitespace(), decoders.BPEDecoder())
    write(place / "unmarked", models.BPE({"a": 0}, []), pre_tokenizers.Whitespace(), decoders.Fuse())
    shutil.copytree(place / "run", place / "torn")
    shutil.rmtree(place / "torn" / "checkpoints")
    (place / "torn" / "checkpoints").mkdir()
    return place


TOKENIZER = ("--tokenizer={new}", "--method=mean")
REFUSED = {
    "missing source": (("--source={place}/none", *TOKENIZER), "--source: .*none is not there"),
    "empty source": (("--source={place}/empty", *TOKENIZER), "--source: .*empty holds no run"),
    "a Hugging Face folder": (("--source={new}", *TOKENIZER), "--source: .* holds no run"),
    "no checkpoint": (("--source={place}/torn", *TOKENIZER), "torn/checkpoints has no checkpoint"),
    "no such step": (("--source={place}/run@7", *TOKENIZER), "--step: '7' is not latest"),
    "missing tokenizer": (("--tokenizer={place}/none", "--method=copy"), "--tokenizer: .*none is no folder"),
    "no tokenizer in it": (("--tokenizer={place}/empty", "--method=copy"), "empty: holds no tokenizer.json"),
    "no roles": (("--tokenizer={place}/no_roles", "--method=copy"), "has no mask_token"),
    "ends of words": (("--tokenizer={place}/ends", "--method=copy"), "--tokenizer: .* marks the ends of words"),
    "no marks": (("--tokenizer={place}/unmarked", "--method=copy"), "--tokenizer: .* do not tell where words start"),
    "same directory": ((*TOKENIZER, "--workdir={place}/run"), "--workdir: .* is --source or lies in it"),
    "inside the source": ((*TOKENIZER, "--workdir={place}/run/new"), "--workdir: .* is --source or lies in it"),
    "full workdir": ((*TOKENIZER, "--workdir={place}/full"), "--workdir: .*full exists"),
    "nothing to do": ((), "nothing to change"),
    "no method": (("--tokenizer={new}",), "--tokenizer and --method="),
    "no new tokenizer": (("--method=mean",), "nothing to change"),
    "no corpus": (("--tokenizer={new}", "--method=similarity"), "--corpus: .* is no prepared corpus"),
    "corpus in vain": ((*TOKENIZER, "--corpus={place}"), "--corpus: only --method=similarity"),
    "head": ((*TOKENIZER, "--head=fresh"), "--head: is for weights of others"),
    "cast": ((*TOKENIZER, "--cast"), "--cast: is for weights of others"),
    "no positions method": (("--positions=80",), "--positions=N and --positions_method"),
    "method without positions": ((*TOKENIZER, "--positions_method=tile"), "--positions=N and --positions_method"),
    "fewer positions": (("--positions=40", "--positions_method=tile"), "--positions: 40 is not more than the 40"),
    "negative": (("--positions=-1", "--positions_method=tile"), "--positions: -1 is not more"),
    "too many": (("--positions=9999999", "--positions_method=tile"), "--positions: 9999999 is not more"),
    "no table": (("--source={place}/gmlp", "--positions=80", "--positions_method=tile"), "lengthens a table"),
    "filters": (("--source={place}/m2", "--positions=80", "--positions_method=tile"), "lengthens a table"),
    "of others": (("--from=hf", "--method=mean"), "--method: belongs to --from=run"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_message_and_leaves_nothing(case, refusing, folders, tmp_path, monkeypatch, capsys):
    given, message = REFUSED[case]
    defaults = ("--from=run", "--source={place}/run", f"--workdir={tmp_path / 'new'}")
    flags = [flag.format(place=refusing, new=folders[1]) for flag in (*defaults, *given)]
    monkeypatch.setattr(sys, "argv", ["convert", *flags])
    before = snapshot(refusing)
    with pytest.raises(SystemExit) as exit:
        errors.run(command.main)
    told = capsys.readouterr().err
    assert exit.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
    assert snapshot(refusing) == before and not list(tmp_path.iterdir())
    assert re.search(message, told), told
