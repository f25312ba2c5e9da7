"""Training a tokenizer, its folder, and what TextTokenizer says about text."""

import json
import pickle
import re
import sys
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxbert import config
from jaxbert.data import tokenizer as module
from jaxbert.data import train_tokenizer as training
from jaxbert.data.tokenizer import SPECIAL, TextTokenizer
from jaxbert.data.train_tokenizer import train
from jaxbert.errors import BadInput
from tests.pseudo_galician import HARD, documents

KINDS = ("unigram", "bpe", "wordpiece")
TEXTS = documents(200)
OTHER_TEXTS = [*documents(30, seed=7), *HARD]
NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
OPTIONS = {"lowercase": True, "split_digits": True, "user_symbols": ("<br>", "Ñandú"), "reserved": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextTokenizer]:
    """trained(kind, **fields): a tokenizer of 700 entries, trained once for all tests that ask for it."""
    made: dict[str, TextTokenizer] = {}

    def get(kind: str, **fields: object) -> TextTokenizer:
        name = f"{kind}-{len(fields)}"
        if name not in made:
            directory = tmp_path_factory.mktemp("tokenizers") / name
            train(iter(TEXTS), config.Tokenizer(kind=kind, vocab_size=700, **fields), directory)
            made[name] = TextTokenizer.load(directory)
        return made[name]

    return get


def pieces(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [tokenizer.tokenizer.id_to_token(i) for i in tokenizer.encode([text])[0][0]]


def special(tokenizer: TextTokenizer) -> list[int | None]:
    """Ids of padding, unknown, start, end and mask."""
    return [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]


def collapsed(text: str) -> str:
    return re.sub(r"[\s▁]+", " ", text).strip()


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("kind", KINDS)
def test_fixed_entries_come_first_and_the_size_is_the_recipes(trained, kind, options):
    tokenizer = trained(kind, **options)
    assert tokenizer.vocab_size == tokenizer.tokenizer.get_vocab_size() == 700
    names = [*SPECIAL, *(["[unused0]", "[unused1]", "[unused2]", "<br>", "ñandú"] if options else [])]
    assert [tokenizer.tokenizer.id_to_token(i) for i in range(len(names))] == names
    assert special(tokenizer) == [0, 1, 2, 3, 4]
    assert tokenizer.special_ids == set(range(8 if options else 5))


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_decoding_gives_nfc_text_back_up_to_white_space(trained, kind, lowercase):
    tokenizer = trained(kind, **(OPTIONS if lowercase else {}))
    for text in OTHER_TEXTS:
        expected = unicodedata.normalize("NFC", text)
        expected = expected.replace("İ", "i").lower() if lowercase else expected
        assert collapsed(tokenizer.decode(tokenizer.encode([text])[0][0])) == collapsed(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_any_white_space_is_one_space_and_none_ends_the_text(trained, kind):
    normalize = trained(kind).tokenizer.normalizer.normalize_str
    assert normalize("a  b\t\u00a0c\r\nd\u2028e▁f \u3000") == "a b c d e f"


@pytest.mark.parametrize("kind", KINDS)
def test_lowercasing_keeps_accents_and_leaves_no_stray_dot_on_i(trained, kind):
    normalize = trained(kind, **OPTIONS).tokenizer.normalizer.normalize_str
    assert normalize("ÁÑÇ ÅÄÖ Łódź İSTANBUL I\u0307zmir") == "áñç åäö łódź istanbul izmir"


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_written_in_the_text_stay_text(trained, kind, options):
    tokenizer = trained(kind, **options)
    for text in HARD:
        assert not set(tokenizer.encode([text])[0][0].tolist()) & (tokenizer.special_ids - {tokenizer.unk_id})


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_written_byte_piece_is_not_read_as_that_byte(trained, kind):
    assert "<0x41>" not in pieces(trained(kind), "<0x41>")  # none of these characters but digits is in the text


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_special_tokens_in_the_training_text_are_learned_as_text(tmp_path, kind):
    texts = [f"{text} a[MASK]b o [MASK] foi <0x41>" for text in TEXTS]
    train(iter(texts), config.Tokenizer(kind=kind, vocab_size=700), tmp_path / "tokenizer")
    tokenizer = TextTokenizer.load(tmp_path / "tokenizer")
    ids = tokenizer.encode(["a[MASK]b o [MASK] foi"])[0][0]
    assert tokenizer.mask_id not in ids and tokenizer.decode(ids) == "a[MASK]b o [MASK] foi"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_tokenizer_json_segments_as_sentencepiece_does(trained, kind):
    tokenizer = trained(kind)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.directory / "sentencepiece.model"))
    lines = [collapsed(unicodedata.normalize("NFC", text)) for text in OTHER_TEXTS if len(text) < 200]
    assert [ids.tolist() for ids, _ in tokenizer.encode(lines)] == reference.encode(lines)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_same_text_and_threads_give_the_same_bytes(tmp_path, monkeypatch, kind):
    threads, train_it = [], sentencepiece.SentencePieceTrainer.train

    def watched(**settings):
        threads.append(settings["num_threads"])
        train_it(**settings)

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", staticmethod(watched))
    recipe = config.Tokenizer(kind=kind, vocab_size=500, threads=2)
    reports = [train(iter(TEXTS), recipe, tmp_path / name) for name in ("a", "b")]
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    assert reports[0] == reports[1] and reports[0]["reproducible"]
    assert threads == [2, 2]


def test_the_report_says_that_wordpiece_is_not_reproducible(trained):
    report = json.loads((trained("wordpiece").directory / module.REPORT).read_text())
    assert not report["reproducible"] and "not reproducible" in report["note"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_starts_where_its_pre_token_starts(trained, kind):
    tokenizer = trained(kind)
    assert tokenizer.starts_word_V is not None
    encodings = tokenizer.tokenizer.encode_batch(OTHER_TEXTS, add_special_tokens=False)
    for (ids, starts), encoding in zip(tokenizer.encode(OTHER_TEXTS), encodings, strict=True):
        slow_ids, slow_starts = TextTokenizer._encode_by_pretokens(encoding)
        np.testing.assert_array_equal(ids, slow_ids)
        np.testing.assert_array_equal(starts, slow_starts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_word_bits_count_the_words(trained, kind):
    text = "O can, á noite, non durmiu: 1998."
    pattern = r"\w+|[^\w\s]" if kind == "wordpiece" else r"\S+"
    ((_, starts),) = trained(kind).encode([text])
    assert starts.sum() == len(re.findall(pattern, text)) and starts.dtype == bool and starts[0]


NASTY = [" a", "a ", "a  b\n\nc", "", "  ", "▁x ▁", "a▁b", "[MASK] e [SEP]", "\u00a0a", "a\u2003b", "e\u0301 é",
         "漢字 かな", "ª º ² İ", "<0x0A> [unused1] <0xFF>", "x" * 5000, "x" * 5000 + " y"]  # fmt: skip


WHITE = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()]  # \x1c to \x1f among them


def random_texts(count: int, seed: int = 0) -> list[str]:
    """White space of every kind beside what NFC composes, reorders or takes apart, what is lowered, and bytes."""
    random = np.random.default_rng(seed)
    composing = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c)]
    composing += [*map(chr, range(0x1100, 0x1200)), *"\u0344\u09be\u0bbe\u0fb5\U000110ba\u212b\u1fef\u2126"]
    alphabets = [
        WHITE,
        WHITE,
        [" ", "\n", "\r\n"],
        composing,
        list("aeioAÅıİßΣςǅ"),
        ["▁", "[MASK]", "<0x0A>", "\0", "😀"],
    ]
    drawn = (
        random.integers(len(alphabets), size=(count, 24)),
        random.random((count, 24)),
        random.integers(25, size=count),
    )
    return [
        "".join(alphabets[a][int(share * len(alphabets[a]))] for a, share in zip(of, shares, strict=True))[:length]
        for of, shares, length in zip(*drawn, strict=True)
    ]


@pytest.mark.parametrize("options", [{}, {"lowercase": True}], ids=["plain", "lowercase"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_words_encoded_one_by_one_and_kept_give_the_ids_of_the_whole_text(trained, monkeypatch, kind, options):
    tokenizer = trained(kind, **options)
    assert tokenizer.words_apart
    texts = [*NASTY, *HARD, *TEXTS, *random_texts(600), *(f"a{c}\u0301 b{c}{c}" for c in WHITE), *NASTY]
    whole = [e.ids for e in tokenizer.tokenizer.encode_batch(texts, add_special_tokens=False)]
    for size in (1, 7, len(texts)):
        for start in range(0, len(texts), size):
            block = texts[start : start + size]
            encoded = tokenizer.encode(block)
            assert len(encoded) == len(block)
            for (ids, starts), text, expected in zip(encoded, block, whole[start:], strict=False):
                assert ids.tolist() == expected and ids.dtype == np.int32, text
                assert starts.tolist() == tokenizer.starts_word_V[ids].tolist()
        monkeypatch.setattr(module, "MOST_KNOWN", 3)


def test_nothing_is_composed_across_white_space_nor_becomes_white_space(trained):
    others = "x".join(
        c for c in map(chr, range(sys.maxunicode + 1)) if not c.isspace() and not "\ud800" <= c <= "\udfff"
    )
    assert not re.search(r"\s", unicodedata.normalize("NFC", others) + others.lower())
    assert not unicodedata.normalize("NFC", "".join(WHITE)).strip()
    normalize = trained("unigram").tokenizer.normalizer.normalize_str
    marks = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c) or "\u1160" <= c <= "\u11ff"]
    for space in set(WHITE) - set(module._SPLIT_ELSEWHERE):
        assert normalize("".join(f"a{space}{c}" for c in marks)) == "a " + "a ".join(map(normalize, marks))


def test_words_that_were_met_are_kept_and_forgotten_when_their_ids_are_many(monkeypatch):
    known = module.KnownWords()
    asked: list[str] = []

    def encode(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(words)
        lengths = np.array(list(map(len, words)))
        return np.frombuffer("".join(words).encode(), np.uint8).astype(np.int32), lengths

    for text in ("ab c ab", "c d", ""):
        (ids,) = known.ids_of([text.split()], encode)
        assert bytes(ids.tolist()).decode() == text.replace(" ", "")
    assert asked == ["ab", "c", "d"] and known.ids_of([], encode) == []
    monkeypatch.setattr(module, "MOST_KNOWN", 3)
    for text in ("e", "ab"):
        known.ids_of([text.split()], encode)
    assert asked == ["ab", "c", "d", "e", "ab"] and len(known.ids) == 3


def test_a_text_that_cannot_be_encoded_leaves_nothing_half_known(trained):
    tokenizer = TextTokenizer.load(trained("unigram").directory)
    with pytest.raises(TypeError):  # by `tokenizers`, of half a character
        tokenizer.encode(["un \ud800 dous"])
    ((ids, _),) = tokenizer.encode(["dous tres"])
    assert ids.tolist() == tokenizer.tokenizer.encode("dous tres", add_special_tokens=False).ids


def test_threads_that_share_a_tokenizer_get_the_ids_of_one(trained, monkeypatch):
    """As Beam's threads do."""
    monkeypatch.setattr(module, "MOST_KNOWN", 500)
    tokenizer = TextTokenizer.load(trained("bpe").directory)
    texts = [" ".join(f"{word}{n}" for word in text.split()) for n in range(4) for text in TEXTS]
    expected = [e.ids for e in tokenizer.tokenizer.encode_batch(texts, add_special_tokens=False)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = [ids.tolist() for ((ids, _),) in pool.map(tokenizer.encode, ([text] for text in texts))]
    finally:
        sys.setswitchinterval(interval)
    assert found == expected


def test_words_are_encoded_one_by_one_only_where_white_space_alone_separates_them(trained):
    assert not trained("wordpiece").words_apart and not trained("unigram", **OPTIONS).words_apart


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_symbol_is_one_token_and_a_word_of_its_own(trained, kind):
    tokenizer = trained(kind, **OPTIONS)
    for symbol, written in (("<br>", "<br>"), ("ñandú", "ÑANDÚ")):
        for text in (f"dixo{written}que", f"{written} que", f"dixo {written}", f"{written}{written}"):
            ids, starts = tokenizer.encode([text])[0]
            at = np.flatnonzero(ids == tokenizer.tokenizer.token_to_id(symbol))
            assert len(at) == text.count(written) and starts[at].all()


@pytest.mark.parametrize("kind", KINDS)
def test_split_digits_gives_every_digit_a_token(trained, kind):
    assert re.findall(r"\d+", " ".join(pieces(trained(kind, **OPTIONS), "en 1998 e 2024"))) == list("19982024")
    assert len(re.findall(r"\d+", " ".join(pieces(trained(kind), "en 12 e 14")))) < 4


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_characters_add_up_to_the_text_and_the_space_put_before_it(trained, kind):
    tokenizer = trained(kind)
    for text in OTHER_TEXTS:
        normalized = tokenizer.tokenizer.normalizer.normalize_str(text)
        expected = len(normalized) + (normalized[:1] not in ("", " "))
        assert tokenizer.characters(tokenizer.encode([text])[0][0]).sum() == expected


def test_characters_of_a_character_in_bytes_add_up_to_one(trained):
    counts = trained("unigram").characters(trained("unigram").encode(["a😀"])[0][0])
    assert counts.dtype == np.int32 and counts.tolist()[-4:] == [1, 0, 0, 0]


def test_wordpiece_characters_leave_out_the_hashes_and_count_the_space_before_a_word(trained):
    tokenizer = trained("wordpiece")
    ids = np.array([tokenizer.tokenizer.token_to_id(piece) for piece in ("a", "##a", "[UNK]", "[MASK]")])
    assert tokenizer.characters(ids).tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_in_a_sentence_takes_the_space_before_it(trained, kind):
    tokenizer = trained(kind)
    before, between = (tokenizer.encode([part])[0][0].tolist() for part in ("O", " foi,"))
    stop = tokenizer.tokenizer.token_to_id(".")  # no space is put between a mask and what follows it
    expected = [2, *before, 4, *between, 4, stop, 3]
    assert tokenizer.encode_with_masks("O [MASK] foi, [MASK].").tolist() == expected
    assert tokenizer.tokenizer.get_added_tokens_decoder()[4].lstrip
    assert tokenizer.mask_id not in tokenizer.encode(["O [MASK] foi"])[0][0]  # documents are read as before


def test_a_pair_has_token_types_zero_and_one(trained):
    tokenizer = trained("unigram")
    a, b = (ids.tolist() for ids, _ in tokenizer.encode(["a", "b"]))
    encoding = tokenizer.tokenizer.encode("a", "b")
    assert encoding.ids == [2, *a, 3, *b, 3]
    assert encoding.type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_pickling_keeps_special_tokens_in_documents_text(trained):
    copy = pickle.loads(pickle.dumps(trained("bpe")))
    assert copy.mask_id not in copy.encode(["[MASK]"])[0][0]
    assert copy.fingerprint == trained("bpe").fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_larger_than_the_text_supports_names_the_largest_that_works(tmp_path, kind):
    with pytest.raises(BadInput, match=r"tokenizer\.vocab_size: 90000 is more .* largest that works is \d+") as error:
        train(iter(TEXTS), config.Tokenizer(kind=kind, vocab_size=90_000), tmp_path / "t")
    assert not list(tmp_path.iterdir())  # nothing is left behind
    most = int(re.search(r"works is (\d+)", str(error.value))[1])
    if kind != "wordpiece":  # its trainer may find one piece more or less the next time
        train(iter(TEXTS), config.Tokenizer(kind=kind, vocab_size=most), tmp_path / "t")
        assert TextTokenizer.load(tmp_path / "t").vocab_size == most
        with pytest.raises(BadInput, match=f"tokenizer.vocab_size: {most + 1} "):
            train(iter(TEXTS), config.Tokenizer(kind=kind, vocab_size=most + 1), tmp_path / "u")


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_without_room_for_its_fixed_entries_names_the_smallest_that_works(tmp_path, kind):
    with pytest.raises(BadInput, match=r"tokenizer\.vocab_size: 20 has no room .* smallest that works is \d+") as error:
        train(iter(TEXTS), config.Tokenizer(kind=kind, vocab_size=20), tmp_path / "t")
    least = int(re.search(r"works is (\d+)", str(error.value))[1])
    train(iter(TEXTS), config.Tokenizer(kind=kind, vocab_size=least), tmp_path / "t")


def test_no_text_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="needs text to train on"):
        train(iter(["", " \n "]), config.Tokenizer(vocab_size=500), tmp_path / "t")


@pytest.mark.parametrize("symbols", [("",), ("a b",), ("[MASK]",), ("<0x41>",), ("<br>", "<br>")])
def test_a_symbol_that_cannot_be_a_token_is_bad_input(tmp_path, symbols):
    with pytest.raises(BadInput, match="tokenizer.user_symbols"):
        train(iter(TEXTS), config.Tokenizer(vocab_size=700, user_symbols=symbols), tmp_path / "t")


def test_what_the_trainer_skips_is_counted_and_long_paragraphs_are_cut(tmp_path):
    paragraph = " ".join(TEXTS[0].split() * 50)
    texts = [*TEXTS, paragraph, "x" * 5000, "unha liña con ▅ nela", "unha liña con \0 nela"]
    report = train(iter(texts), config.Tokenizer(vocab_size=500), tmp_path / "t")
    assert report["skipped_lines"] == {"longer_than_4192_bytes": 1, "reserved_character": 2}
    assert report["lines"] == 2 * len(TEXTS) + -(-len(paragraph.encode()) // training.LONGEST_LINE)
    assert report["documents"] == report["documents_used"] == len(texts)


def test_a_large_text_is_sampled_by_hash_whatever_its_order(tmp_path):
    recipe = config.Tokenizer(train_megabytes=0.02)
    normalizer = module.text_normalizer(recipe.lowercase)
    lines, counts = training._training_lines(iter(TEXTS), recipe, normalizer)
    assert training._training_lines(iter(TEXTS[::-1]), recipe, normalizer) == (lines, counts)
    assert counts["bytes_used"] == sum(len(line.encode()) + 1 for line in lines) - counts["documents_used"] <= 20_000
    assert 10 < counts["documents_used"] < counts["documents"] == len(TEXTS)


def test_the_folder_appears_whole_and_leftovers_of_a_killed_run_go(tmp_path, monkeypatch):
    (tmp_path / "t.tmp-1").mkdir()
    at_renaming = set()

    def rename(temporary: Path, directory: Path) -> None:
        at_renaming.update(path.name for path in temporary.iterdir())
        temporary.rename(directory)

    monkeypatch.setattr(training.os, "replace", rename)
    train(iter(TEXTS), config.Tokenizer(vocab_size=500), tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert at_renaming == {path.name for path in (tmp_path / "t").iterdir()}
    files = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "sentencepiece.model", module.REPORT}
    assert at_renaming == files


def test_a_finished_folder_is_not_trained_again(tmp_path):
    train(iter(TEXTS), config.Tokenizer(vocab_size=500), tmp_path / "t")
    with pytest.raises(BadInput, match="exists already"):
        train(iter(TEXTS), config.Tokenizer(vocab_size=500), tmp_path / "t")


@pytest.mark.parametrize("kind", KINDS)
def test_training_prints_nothing(tmp_path, capfd, kind):
    train(iter(TEXTS), config.Tokenizer(kind=kind, vocab_size=500), tmp_path / "t")
    assert capfd.readouterr() == ("", "")


# ---- an existing folder


def write_folder(directory: Path, tokenizer: Tokenizer, **settings: object) -> Path:
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def bert_like(directory: Path, **settings: object) -> Path:
    """WordPiece with ids in BERT's order, cut at 8 tokens and padded, as sentence-transformers saves it."""
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "can", "gat", "##o", "[", "]", "mask", "cls"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return write_folder(directory, tokenizer, tokenizer_class="BertTokenizer", mask_token="[MASK]", **settings)


def use(folder: Path, directory: Path, **fields: object) -> TextTokenizer:
    train(iter([]), config.Tokenizer(kind="folder", folder=str(folder), **fields), directory)
    return TextTokenizer.load(directory)


def test_an_existing_folder_keeps_its_ids_and_cuts_nothing(tmp_path):
    tokenizer = use(bert_like(tmp_path / "a", model_max_length=64), tmp_path / "b")
    assert special(tokenizer) == [0, 2, 3, 4, 5]
    assert tokenizer.special_ids == {0, 1, 2, 3, 4, 5}
    ids, starts = tokenizer.encode(["gato " * 20])[0]
    assert ids.tolist() == [7, 8] * 20 and starts.tolist() == [True, False] * 20
    assert tokenizer.encode(["[MASK]"])[0][0].tolist() == [9, 11, 10]
    assert tokenizer.encode_with_masks("can [MASK]").tolist() == [3, 6, 5, 4]
    settings = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["model_max_length"] == 64


def test_a_byte_level_folder_without_unknown_token_counts_words_and_characters(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = ["<s>", "<pad>", "</s>", "<mask>", *alphabet]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(entries)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel()
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "mask_token": {"content": "<mask>"}}
    loaded = use(write_folder(tmp_path / "a", tokenizer, **names), tmp_path / "b")
    ids, starts = loaded.encode(["é un ñu"])[0]
    assert starts.tolist() == [True, False, True, False, False, True, False, False, False]
    assert loaded.characters(ids).tolist() == [1, 0, 1, 1, 1, 1, 1, 0, 1]
    assert loaded.unk_id is None and loaded.special_ids == {0, 1, 2, 3}
    assert loaded.encode_with_masks("a[MASK]").tolist() == [0, entries.index("a"), 3, 2]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_word_bits_of_a_folder_follow_its_pre_tokenizer(tmp_path, scheme, split):
    entries = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *module.BYTES, "▁", *"canto"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(entries)}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    loaded = use(write_folder(tmp_path / "a", tokenizer), tmp_path / "b")
    starts = loaded.encode(["cñ to"])[0][1]
    prefix = [True] if scheme != "never" else []
    assert starts.tolist() == [*prefix, scheme == "never", False, False, split, False, False]


def test_a_unigram_folder_reads_no_special_token_out_of_text(tmp_path):
    vocabulary = [(t, 0.0) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    vocabulary += [(c, -3.0) for c in "▁<>/sampkd"]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = dict(zip(NAMES, ("<pad>", "<unk>", "<s>", "</s>", "<mask>"), strict=True))
    loaded = use(write_folder(tmp_path / "a", tokenizer, **names), tmp_path / "b")
    assert not set(loaded.encode(["<s> a<mask> </s>"])[0][0].tolist()) & loaded.special_ids


def test_a_folder_without_mask_token_is_refused(tmp_path):
    folder = bert_like(tmp_path / "a")
    layout = json.loads((folder / "tokenizer.json").read_text().replace("[MASK]", "[OTHER]"))
    (folder / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(BadInput, match=r"no mask_token \('\[MASK\]' is not in its vocabulary\)"):
        use(folder, tmp_path / "b")


def test_a_folder_without_tokenizer_json_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"holds no tokenizer\.json"):
        use(tmp_path, tmp_path / "b")


def test_a_broken_tokenizer_json_is_refused(tmp_path):
    folder = bert_like(tmp_path / "a")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="is no readable tokenizer"):
        use(folder, tmp_path / "b")


def test_options_that_an_existing_folder_cannot_take_are_refused(tmp_path):
    with pytest.raises(BadInput, match="tokenizer.lowercase"):
        use(bert_like(tmp_path / "a"), tmp_path / "b", lowercase=True)
