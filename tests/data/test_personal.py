"""Personal data: what is masked, what only looks like it and stays, and that matching takes linear time."""

import time

import pytest

from jaxbert.config import Clean, Corpus
from jaxbert.data import clean, personal
from jaxbert.data.readers import Document


def masked(text: str) -> tuple[str, dict[str, int]]:
    return personal.mask(text, True, True, True)


EMAILS = [
    ("Escriba a ana.pérez+x@correo.example.gal.", "Escriba a name@example.org."),
    ("<o'neil@a-b.ie>, a@b.co", "<name@example.org>, name@example.org"),
    ("mailto:x_y@sub.domain.org?subject=z", "mailto:name@example.org?subject=z"),
]
PHONES = [
    ("+34 981 123 456", "+00 000 000 000"),
    ("(+48221234567)", "(+00000000000)"),
    ("+46 (0)8-123 45 67", "+00 (0)0-000 00 00"),
    ("0034 981 12 34 56", "0000 000 00 00 00"),
    ("Tel.: 981 123 456 ou 12", "Tel.: 000 000 000 ou 12"),
    ("teléfono 981-12-34-56", "teléfono 000-00-00-00"),
    ("tel. (22) 123-45-67", "tel. (00) 000-00-00"),
    ("Telefonnummer: 08/1234567", "Telefonnummer: 00/0000000"),
    ("fax: 0912.345.678", "fax: 0000.000.000"),
]
# Numbers from the standards and from what authorities print as specimens, or made to fit.
NUMBERS = [
    ("ES91 2100 0418 4502 0005 1332", "ES00 0000 0000 0000 0000 0000"),
    ("GB82WEST12345698765432", "GB00XXXX00000000000000"),
    ("4111 1111 1111 1111", "0000 0000 0000 0000"),
    ("4111111111111111", "0000000000000000"),
    ("12345678Z", "00000000X"),
    ("X-1234567-L", "X-0000000-X"),
    ("44051401359", "00000000000"),  # PESEL
    ("02270803624", "00000000000"),  # of this century
    ("811218-9876", "000000-0000"),  # personnummer
    ("19811218-9876", "00000000-0000"),
    ("13097248022", "00000000000"),  # fødselsnummer
    ("131052-308T", "000000-000X"),  # henkilötunnus
    ("070761-4285", "000000-0000"),  # CPR
    ("736028/5163", "000000/0000"),  # rodné číslo
    ("10000000146", "00000000000"),  # T.C. kimlik
    ("86095742719", "00000000000"),  # Steuer-ID
]
LEFT_ALONE = [
    "user@host", "@autor", "a@b.1", "git@github.com:x"[:7], "3 @ 4.50", "x@", "versión 1.2.3.4", "2 + 10 000 000",
    "C++ 11 2014 2017", "00 10 20 30 40 50 60", "0012345678", "+5 °C", "+1 234", "kom 2010-2012", "1939-1945",
    "981 123 456", "12345678A", "44051401358", "811218-9875", "13097248023", "131052-308U", "736028/5164",
    "2024-05-17 12:30:00", "10000000145", "4111 1111 1111 1112", "0000000000000000", "ES91 2100 0418 4502 0005 1333",
    "tel. 112", "tel.: 11 - 12", "https://example.org/12345678901", "v44051401359", "1.44051401359", "GTK+ 3",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), EMAILS)
def test_addresses_become_one_address_and_are_counted(text, expected):
    assert masked(text) == (expected, {"masked_emails": expected.count("name@example.org")})


@pytest.mark.parametrize(("text", "expected"), PHONES)
def test_phone_numbers_keep_their_shape_without_their_digits(text, expected):
    found, counts = masked(f"Chame: {text}, grazas")
    assert (found, counts) == (f"Chame: {expected}, grazas", {"masked_phones": 1})


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_identity_account_and_card_numbers_that_fit_their_checksum_are_masked(text, expected):
    found, counts = masked(f"número {text}, válido")
    assert found == f"número {expected}, válido"
    assert counts == {"masked_identity_numbers": 1}


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_it_stays(text):
    assert masked(f"o {text} é") == (f"o {text} é", {})


def test_masking_twice_changes_nothing_more():
    text = "\n".join(case[0] for case in (*EMAILS, *PHONES, *NUMBERS))
    once, counts = masked(text)
    assert counts == {"masked_emails": 4, "masked_phones": len(PHONES), "masked_identity_numbers": len(NUMBERS)}
    assert masked(once)[0] == once


@pytest.mark.parametrize("step", ["mask_emails", "mask_phones", "mask_identity_numbers"])
def test_each_is_a_step_of_cleaning_that_is_off_unless_asked_for(step):
    off = Clean(repair=False, control_characters=False, min_words=0, min_letters=0.0, identify_language=False)
    text = "a@b.org\n+34 981 123 456\n12345678Z"
    (plain,) = clean.clean_block([Document(text, "a#1", "a")], Corpus(clean=off))
    assert plain.text == text and not plain.changed
    (one,) = clean.clean_block([Document(text, "a#1", "a")], Corpus(clean=Clean(**{**vars(off), step: True})))
    assert (
        one.changed == {step.replace("mask", "masked"): 1}
        and sum(a != b for a, b in zip(text.split("\n"), one.text.split("\n"), strict=True)) == 1
    )


@pytest.mark.parametrize(
    "piece", ["1", "+1", "a@", "a.", "+1 ", "1 ", "12-", "tel. 1", "(1) ", "AB12 ", "a@a.", "@", "1234 "]
)
def test_hostile_text_takes_linear_time(piece):
    text = piece * (200_000 // len(piece)) + "x"
    start = time.perf_counter()
    masked(text)
    assert time.perf_counter() - start < 2
