"""Cleaning: each step changes what it should and counts it; duplicates and the split do not depend on other data."""

import dataclasses
import hashlib
import sys
import unicodedata
from collections import Counter

import ftfy
import pytest
import xxhash

from jaxbert.config import Clean, Corpus
from jaxbert.data import clean, language
from jaxbert.data.documents import judge_sample
from jaxbert.data.readers import Document, Source, Unread
from jaxbert.errors import BadInput

SOURCE = Source("a", "files", "a", "", "", 0, "", "", ())
OFF = Clean(
    repair=False,
    control_characters=False,
    min_words=0,
    min_letters=0.0,
    identify_language=False,
    duplicates="off",
)
GALICIAN = (
    "A cidade medrou ao carón do río e hoxe viven nela máis de cen mil persoas.\n"
    "O concello aprobou onte unha nova ordenanza para protexer as casas vellas da ribeira.\n"
    "Cando chegou o inverno, os mariñeiros deixaron as dornas na praia e xuntáronse na taberna."
)
ENGLISH = "The city council approved a new regulation yesterday to protect the old houses by the river."
SPANISH = (
    "El ayuntamiento aprobó ayer una nueva ordenanza para proteger las casas viejas de la ribera.\n"
    "Cuando llegó el invierno, los marineros dejaron las barcas en la playa y se reunieron en la taberna."
)


def one(text: str, steps: Clean = OFF, language: str = "gl") -> clean.Cleaned:
    (cleaned,) = clean.clean_block([Document(text, "a#1", "a")], Corpus(language=language, clean=steps))
    assert cleaned.fate in clean.FATES
    return cleaned


def only(**fields) -> Clean:
    return dataclasses.replace(OFF, **fields)


# --- fates and counts ---


def test_with_every_step_off_paragraphs_pass_as_they_are():
    cleaned = one("a\x01 &amp;\n\n1 2\n")
    assert (cleaned.text, cleaned.fate, cleaned.paragraphs) == ("a\x01 &amp;\n1 2", "kept", {"kept": 2})


def test_a_document_of_white_space_or_nul_is_empty():
    assert one(" \n\t\n").fate == "empty"
    nul = one("\0\0", only(control_characters=True))
    assert (nul.fate, nul.changed["nul_bytes"]) == ("empty", 2)


def test_every_paragraph_is_counted_under_one_outcome():
    text = f"Curto\n1 2 3 4 5 6 7 8 9\n{ENGLISH}\n{GALICIAN}"
    cleaned = one(text, Clean())
    assert cleaned.text == GALICIAN
    assert cleaned.paragraphs == {"too_few_words": 1, "too_few_letters": 1, "language": 1, "kept": 3}
    assert cleaned.languages == {"en": 1}


def test_a_document_keeps_its_original_text_when_rejected():
    assert one("Un só", only(min_words=4)).text == "Un só"


def test_the_fate_is_language_when_most_of_the_text_went_for_it():
    foreign = one(f"Curto\n{ENGLISH}", Clean())
    assert (foreign.fate, foreign.detail) == ("language", "en")
    assert one("Curto\nMáis curto\n1 2 3 4 5", Clean()).fate == "no_paragraph_left"


def test_a_document_that_raises_is_rejected_with_its_error_and_the_others_are_cleaned(monkeypatch):
    def failing(text):
        if "bad" in text:
            raise RuntimeError("no luck")
        return text, 0

    monkeypatch.setattr(clean, "repair", failing)
    documents = [Document(t, f"a#{i}", "a") for i, t in enumerate(["good", "bad", "good too"])]
    cleaned = clean.clean_block(documents, Corpus(clean=only(repair=True)))
    assert [c.fate for c in cleaned] == ["kept", "error", "kept"]
    assert cleaned[1].detail == "a#1: RuntimeError: no luck"


# --- repair ---

REPAIRED = [
    ("mojibake", "O prÃ³ximo aÃ±o", "O próximo año"),
    ("entities", "pan &amp; vi&ntilde;o", "pan & viño"),
    ("decomposed", unicodedata.normalize("NFD", "canción"), "canción"),
    ("mojibake in NFD", unicodedata.normalize("NFD", "O prÃ³ximo aÃ±o"), "O próximo año"),
    ("C1 control", "xa\x85 e “así”", "xa… e “así”"),
    ("ligature", "o ﬁn", "o fin"),
    ("full width", "ＬＯＵＤ", "LOUD"),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in REPAIRED], ids=[case[0] for case in REPAIRED])
def test_repair_mends(text, expected):
    assert clean.repair(f"ok\n{text}") == (f"ok\n{expected}", 1)


@pytest.mark.parametrize("text", ["„Zażółć” – «así» ‘é’ “tal”", "x² ½ № ™ 10 µm", "A & B &co; C", "𝒳 é"])
def test_repair_leaves_alone_quotation_marks_compatibility_characters_and_plain_text(text):
    assert clean.repair(text) == (text, 0)


def test_repair_equals_ftfy_on_every_line_of_mojibake_in_many_encodings():
    lines = [
        line for t in (GALICIAN, ENGLISH, "Zażółć „gęślą” jaźń – 5 °C … ½", "â Ã Â ï¿½ Ð Ñ") for line in t.split("\n")
    ]
    for encoding in ("cp1252", "latin-1", "cp1250", "cp1251", "mac_roman"):
        for form in ("NFC", "NFD"):
            text = "\n".join(unicodedata.normalize(form, x.encode().decode(encoding, "replace")) for x in lines)
            expected = "\n".join(ftfy.fix_text(line, clean.FTFY) for line in text.split("\n"))
            assert clean.repair(text)[0] == expected


def test_repair_can_be_off():
    assert one("pan &amp; viño").text == "pan &amp; viño"
    assert one("pan &amp; viño", only(repair=True)).text == "pan & viño"


# --- control characters ---


def test_control_characters_go_and_are_counted_while_tabs_breaks_and_joiners_stay():
    text = "a\0b\x07c\td\u00ade\ufeff\nf\u200cg\u200dh"
    assert clean.remove_control_characters(text) == ("abc\tde\nf\u200cg\u200dh", 4)


def test_halves_of_surrogate_pairs_are_removed_so_that_text_can_be_written():
    cleaned = one("a\ud800b", only(control_characters=True))
    assert (cleaned.text, cleaned.changed["control_characters"]) == ("ab", 1)


# --- paragraph filters ---


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\r", "\n\n", "\u2028"])
def test_every_kind_of_line_break_ends_a_paragraph(separator):
    assert one(f"un{separator}dous").text == one(f"un{separator}dous", only(repair=True)).text == "un\ndous"


def test_min_words_counts_words_between_white_space():
    assert one("un dous tres\nun dous tres catro", only(min_words=4)).text == "un dous tres catro"


def test_min_letters_is_a_share_of_visible_characters():
    assert [n.tolist() for n in clean.count(["ab 12", "\u2028", "", "º 1\x1c²"])] == [
        [2, 0, 0, 3],
        [2, 0, 0, 1],
        [4, 0, 0, 3],
    ]
    assert one("abc 12\nab 12", only(min_letters=0.6)).text == "abc 12"


def test_vowel_signs_count_as_letters():
    assert [n.tolist() for n in clean.count(["हिन्दी"])] == [[1], [6], [6]]


def test_white_space_and_letters_are_what_python_says_of_every_character():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    kinds = clean.kinds(every).tolist()
    for c, kind in zip(every, kinds, strict=True):
        assert bool(kind & clean.WHITE) == c.isspace()
        assert bool(kind & clean.LETTER) == (c.isalpha() or unicodedata.category(c)[0] == "M")


# --- language ---


def test_english_between_galician_paragraphs_is_rejected_and_its_neighbours_stay():
    first, second, third = GALICIAN.split("\n")
    cleaned = one("\n".join([first, ENGLISH, second, ENGLISH + " Twice.", third]), only(identify_language=True))
    assert (cleaned.text, cleaned.languages) == (GALICIAN, {"en": 2})


def test_a_short_paragraph_takes_evidence_from_its_neighbours():
    short = "Copiar os datos seleccionados"
    steps = only(identify_language=True)
    assert one(short, steps).fate == "language"  # by itself it is taken for Spanish
    assert short in one(f"{GALICIAN}\n{short}", steps).text.split("\n")


def test_a_short_english_paragraph_does_not_become_galician_by_its_neighbours():
    cleaned = one(f"{GALICIAN}\nPrint this page now", only(identify_language=True))
    assert cleaned.text == GALICIAN


def test_spanish_is_not_galician():
    assert one(SPANISH, only(identify_language=True, language_threshold=0.2)).detail == "es"


def test_several_languages_can_be_accepted():
    steps = only(identify_language=True, languages=("es", "en"))
    cleaned = one(f"{SPANISH}\n{ENGLISH}\n{GALICIAN}", steps)
    assert cleaned.text == f"{SPANISH}\n{ENGLISH}"


def test_only_the_start_of_a_paragraph_is_looked_at():
    long = GALICIAN.replace("\n", " ") * 2
    assert len(long) > language.PARAGRAPH_CHARACTERS
    assert one(long + ENGLISH * 50, only(identify_language=True)).fate == "kept"


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        (Corpus(), "corpus.language: empty"),
        (Corpus(language="xx"), "not 'xx'"),
        (Corpus(language="gl", clean=Clean(languages=("gl", "zzz"))), "not 'zzz'"),
    ],
)
def test_a_language_that_the_identifier_does_not_know_stops_with_the_remedy(corpus, words):
    with pytest.raises(BadInput, match=f"{words}.*identify_language=false"):
        clean.check(corpus)


def test_languages_are_not_checked_when_identification_is_off():
    clean.check(Corpus(language="xx", clean=OFF))


def test_codes_that_the_identifier_calls_otherwise_are_known():
    clean.check(Corpus(language="nb"))


# --- duplicates ---


def cleaned_and_deduplicated(texts: list[str], mode: str) -> list[clean.Cleaned]:
    corpus = Corpus(clean=dataclasses.replace(OFF, duplicates=mode))
    return judge_sample([Document(t, f"a#{i}", "a") for i, t in enumerate(texts)], corpus, [SOURCE])


def test_fates_and_paragraphs_add_up_to_the_input():
    texts = ["", ENGLISH, GALICIAN, GALICIAN, f"{GALICIAN}\nUnha frase nova que ninguén escribiu antes.", "Curto", "\0"]
    corpus = Corpus(language="gl", clean=Clean())
    cleaned = judge_sample([Document(t, str(i), "a") for i, t in enumerate(texts)], corpus, [SOURCE])
    fates = Counter(c.fate for c in cleaned)
    assert fates == {"kept": 2, "empty": 2, "language": 1, "duplicate": 1, "no_paragraph_left": 1}
    assert sum((c.paragraphs for c in cleaned), Counter()).total() == 1 + 3 + 3 + 4 + 1


# --- removal lists ---


def removed(tmp_path, lines: str, documents: list[Document]) -> tuple[list[str], clean.Removal]:
    (tmp_path / "list.txt").write_text(lines)
    corpus = Corpus(clean=OFF, remove=(str(tmp_path / "list.txt"),))
    removal = clean.Removal(corpus)
    pairs = zip(documents, clean.clean_block(documents, corpus), strict=True)
    return [removal.apply(d, c).fate for d, c in pairs], removal


LISTED = Document("Unha frase  longa\n", "a/b.txt#7", "a", {"url": "https://example.org/x?y=1#z", "id": "W-7"})


@pytest.mark.parametrize(
    "line",
    [
        "a/b.txt#7",
        "a/b.txt",
        "https://example.org/x?y=1#z",
        "W-7",
        "  W-7\t",
        hashlib.sha256(LISTED.text.encode()).hexdigest(),
        hashlib.sha256(LISTED.text.encode()).hexdigest().upper(),
        xxhash.xxh3_128_hexdigest(b"Unha frase longa"),
    ],
)
def test_a_line_names_a_document_by_id_file_url_or_hash(tmp_path, line):
    other = Document("Outra", "a/b.txt.gz#71", "a", {"url": "https://example.org/x", "id": "W"})
    fates, removal = removed(tmp_path, f"# comment\n\n{line}\n", [LISTED, other])
    assert fates == ["removed", "kept"]
    assert removal.report()["unmatched"] == [] and removal.report()["lines"] == 1


def test_every_line_that_names_nothing_is_reported(tmp_path):
    _, removal = removed(tmp_path, "a/b.txt#8\nW-7\nkept\n" + "0" * 64, [LISTED])
    assert removal.report()["unmatched"] == ["a/b.txt#8", "kept", "0" * 64]


def test_several_lines_may_name_one_document_and_all_have_matched(tmp_path):
    fates, removal = removed(tmp_path, "W-7\na/b.txt#7\n", [LISTED])
    assert fates == ["removed"] and removal.report()["unmatched"] == []


def test_removed_comes_before_every_other_fate_and_leaves_no_text(tmp_path):
    (tmp_path / "list.txt").write_text("a#1\na#2\n")
    removal = clean.Removal(Corpus(remove=(str(tmp_path / "list.txt"),)))
    unread = Unread("a#2", "a", "unreadable", "broken", "text")
    for document, before in ((Document("", "a#1", "a"), "empty"), (unread, "unreadable")):
        after = removal.apply(document, clean.Cleaned("text", before))
        assert (after.fate, after.text) == ("removed", "")


def test_paragraphs_of_a_removed_document_are_counted_as_removed(tmp_path):
    (tmp_path / "list.txt").write_text("a#1")
    removal = clean.Removal(Corpus(remove=(str(tmp_path / "list.txt"),)))
    after = removal.apply(Document("", "a#1", "a"), clean.Cleaned("", "kept", paragraphs=Counter(kept=2, language=1)))
    assert after.paragraphs == {"removed": 3}


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8")])
def test_a_list_that_cannot_be_read_is_refused_with_its_name(tmp_path, content, why):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(BadInput, match=rf"corpus\.remove: .*list\.txt' cannot be read: {why}"):
        clean.check(Corpus(clean=OFF, remove=(str(tmp_path / "list.txt"),)))


# --- the validation split ---


def test_the_split_has_about_the_share_and_depends_on_the_text_alone():
    cleaned = cleaned_and_deduplicated([f"texto número {i}" for i in range(4000)], "off")
    splits = [clean.split_of(c, 0.05) for c in cleaned]
    assert 150 < splits.count("validation") < 250
    assert splits[:100] == [
        clean.split_of(c, 0.05) for c in cleaned_and_deduplicated([c.text for c in cleaned[:100]], "off")
    ]


def test_added_data_moves_no_document_across_though_it_takes_paragraphs():
    texts = [f"texto {i}\ncomún {i}" for i in range(200)]
    alone = cleaned_and_deduplicated(texts, "paragraph")
    among_others = cleaned_and_deduplicated([f"común {i}" for i in range(200)] + texts, "paragraph")[200:]
    assert [c.text for c in alone] != [c.text for c in among_others]
    assert [clean.split_of(c, 0.3) for c in alone] == [clean.split_of(c, 0.3) for c in among_others]


def test_white_space_does_not_decide_the_split():
    two = cleaned_and_deduplicated(["un dous", "un  dous"], "off")
    assert two[0].own_hash == two[1].own_hash
