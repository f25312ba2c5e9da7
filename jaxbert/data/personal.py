"""Masking of e-mail addresses, phone numbers and identity numbers: what can be told by its form, and no names.

Precision before recall: a number is one only with a mark (+, "tel.") or a checksum that fits, since a wrong match
destroys a version, a sum or an identifier of a program. What is masked keeps its shape, so that a model still meets it:
an address becomes ADDRESS, every digit of a number 0 and a letter that belongs to it X.
"""

import datetime
import re
from collections import Counter
from collections.abc import Callable

ADDRESS = "name@example.org"

# Local part and domain as addresses in use are (RFC 5321 allows more), the last label of letters: no version, no path.
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w](?:[\w.+%'-]{0,62}[\w])?@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
)
# International: + and 8 to 15 digits (E.164), in groups or not, an area code or "(0)" in brackets among them; 00 only
# with groups, since identifiers begin with it, too. Every group needs its separator: so matching takes linear time.
_INTERNATIONAL = re.compile(
    r"(?<![\w.,+/-])(?:\+[1-9]\d{0,14}|00[1-9]\d{0,2}(?=[ .\-/\u00a0(]))"
    r"(?:[ .\-/\u00a0]?\(\d{1,4}\)[ .\-/\u00a0]?\d{1,14})?(?:[ .\-/\u00a0]\d{2,14}){0,6}(?!\w)"
)
# National: a number that a word announces, in the languages that corpora.md names and the large ones around them. Short
# words, which mean other things too, need a full stop or colon.
_NATIONAL = re.compile(r"(?<![\d(])\(?\d[\d ().\-/\u00a0]{4,18}\d(?!\w)")
_ANNOUNCING = re.compile(
    r"(?<!\w)(?:(?:tel[eé]fonos?|telefones?|telefon(?:nummer|u|em|ie)?|telefoon(?:nummer)?|telephone|"
    r"phone(?: number)?|téléphone|puhelin)[.:]?|"
    r"(?:tel|telef|telf|tél|tfno?|tlf|ph|fax|m[oó]bil|m[oó]vil|mobile|handy|kom[oó]rka|kom|puh|gsm|cep)[.:]{1,2})"
    r"[ \u00a0]?(?:(?:nr|no|n\.º|č)[.:]?[ \u00a0])?$",
    re.IGNORECASE,
)
_BEFORE = 24  # characters, in which that word and what follows it find room
_DIGIT = re.compile(r"\d")
_NUMBER = re.compile(r"\d[\dA-Z ().\-/\u00a0]{4,}?\d")  # is in all that is looked for; most lines have none


def mask(text: str, emails: bool, phones: bool, identity_numbers: bool) -> tuple[str, Counter[str]]:
    """(text with what is asked for masked, how many "masked_emails", "masked_phones", "masked_identity_numbers").

    Identity numbers come before phone numbers: their checksums say more than a form.
    """
    counts: Counter[str] = Counter()
    if emails and "@" in text:
        text, counts["masked_emails"] = _EMAIL.subn(ADDRESS, text)
    if (identity_numbers or phones) and _NUMBER.search(text):
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if _NUMBER.search(line):
                lines[i] = _mask_numbers(line, phones, identity_numbers, counts)
        text = "\n".join(lines)
    return text, +counts


def _mask_numbers(line: str, phones: bool, identity_numbers: bool, counts: Counter[str]) -> str:
    if identity_numbers:
        line, count = _substitute(_CANDIDATE, _identity, line)
        counts["masked_identity_numbers"] += count
    if phones:
        line, international = _substitute(_INTERNATIONAL, lambda m: _zeros(m[0]) if _e164(m[0]) else None, line)
        line, announced = _substitute(_NATIONAL, _announced, line)
        counts["masked_phones"] += international + announced
    return line


def _substitute(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str | None], text: str) -> tuple[str, int]:
    """As `subn`, but None leaves a match as it is and does not count."""
    count = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal count
        new = replace(match)
        count += new is not None and new != match[0]  # masked already: not again
        return match[0] if new is None else new

    return pattern.sub(replacement, text), count


def _zeros(text: str) -> str:
    return _DIGIT.sub("0", text)


def _e164(text: str) -> bool:
    return 8 <= sum(map(str.isdigit, text)) <= 15


def _announced(match: re.Match[str]) -> str | None:
    before = match.string[max(0, match.start() - _BEFORE) : match.start()]
    if not 6 <= sum(map(str.isdigit, match[0])) <= 15 or not _ANNOUNCING.search(before):
        return None
    return _zeros(match[0])


# --- identity numbers ---

# Anything that might be one, cut out first; which it is, if any, the checks below decide on the text without spaces.
_CANDIDATE = re.compile(
    r"(?<![\w.,+/-])(?:"
    r"(?P<iban>[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?)"
    r"|(?P<card>\d{4}(?P<gap>[ -])\d{4}(?P=gap)\d{4}(?P=gap)\d{1,7}|3\d{3}[ -]\d{6}[ -]\d{5})"
    r"|(?P<spain>(?:\d{8}|[XYZ]-?\d{7})-?[A-Z])"
    r"|(?P<nordic>\d{6}(?:\d\d)?[-+]\d{4})"
    r"|(?P<finland>\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y])"
    r"|(?P<czech>\d{6}/\d{4})"
    r"|(?P<eleven>\d{11})"
    r"|(?P<number>3[47]\d{13}|[2456]\d{15})"
    r")(?![\w]|[.,-]\d)"
)


def _identity(match: re.Match[str]) -> str | None:
    text = match[0]
    bare = re.sub(r"[ -]", "", text) if match.lastgroup not in ("nordic", "finland", "czech") else text
    if not any(check(bare) for check in _CHECKS[match.lastgroup]):
        return None
    masked = _zeros(text)
    if match["iban"]:  # the country and what separates it stay
        return masked[:2] + re.sub("[A-Z]", "X", masked[2:])
    return re.sub("[A-Z]", "X", masked)


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _iban(text: str) -> bool:
    """ISO 13616: the rest of a division by 97 is 1."""
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _date(day: int, month: int, year: int) -> bool:
    """Whether there is such a day in the 20th or the 21st century, `year` of two digits."""
    for century in (1900, 2000):
        try:
            datetime.date(century + year, month, day)
        except ValueError:
            continue
        return True
    return False


def _spain(text: str) -> bool:
    """DNI and NIE: the letter is the number modulo 23."""
    number = int(text[:-1].translate(str.maketrans("XYZ", "012")))
    return text[-1] == "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] and number > 0


def _sweden(text: str) -> bool:
    """Personnummer: a date (day + 60: samordningsnummer), then Luhn over its last ten digits."""
    digits = re.sub("[-+]", "", text)[-10:]
    year, month, day = (int(digits[i : i + 2]) for i in (0, 2, 4))
    return _date(day - 60 if day > 60 else day, month, year) and _luhn(digits)


def _denmark(text: str) -> bool:
    """CPR: a date; the checksum has been given up in 2007."""
    return len(text) == 11 and text[6] == "-" and _date(int(text[:2]), int(text[2:4]), int(text[4:6]))


def _finland(text: str) -> bool:
    """Henkilötunnus: a date, and the number modulo 31."""
    correct = "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(text[:6] + text[7:10]) % 31] == text[10]
    return correct and _date(int(text[:2]), int(text[2:4]), int(text[4:6]))


def _czech(text: str) -> bool:
    """Rodné číslo (Czech and Slovak): a date (month + 50 women, + 20 and + 70 since 2004), divisible by 11."""
    year, month, day = (int(text[i : i + 2]) for i in (0, 2, 4))
    number = int(text.replace("/", ""))
    return _date(day, month % 50 - (20 if month % 50 > 20 else 0), year) and (
        number % 11 == 0 or (number // 10 % 11 == 10 and number % 10 == 0)
    )


def _weighted(digits: str, weights: tuple[int, ...], modulus: int) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False)) % modulus


def _poland(digits: str) -> bool:
    """PESEL: a date with the century in the month, weights 1 3 7 9, modulo 10."""
    month = int(digits[2:4])
    checked = _weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10) == 0
    return checked and _date(int(digits[4:6]), month % 20, int(digits[:2]))


def _norway(digits: str) -> bool:
    """Fødselsnummer: a date (day + 40: D-nummer), two checksums modulo 11."""
    day = int(digits[:2])
    checked = not _weighted(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1), 11) and not _weighted(
        digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1), 11
    )
    return checked and _date(day - 40 if day > 40 else day, int(digits[2:4]), int(digits[4:6]))


def _turkey(digits: str) -> bool:
    """T.C. kimlik numarası: two checksums modulo 10."""
    d = [int(c) for c in digits]
    return d[0] > 0 and (7 * sum(d[0:9:2]) - sum(d[1:8:2])) % 10 == d[9] and sum(d[:10]) % 10 == d[10]


def _germany(digits: str) -> bool:
    """Steuerliche Identifikationsnummer: one digit twice or thrice among ten, and ISO 7064 MOD 11,10."""
    product = 10
    for d in digits[:10]:
        product = ((int(d) + product - 1) % 10 + 1) * 2 % 11
    times = Counter(digits[:10])
    repeated = len(times) in (8, 9) and max(times.values()) <= 3
    return repeated and digits[0] != "0" and (11 - product) % 10 == int(digits[10])


_CHECKS: dict[str | None, tuple[Callable[[str], bool], ...]] = {
    "iban": (_iban,),
    "card": (_luhn,),
    "spain": (_spain,),
    "nordic": (_sweden, _denmark),
    "finland": (_finland,),
    "czech": (_czech,),
    "eleven": (_poland, _norway, _turkey, _germany),
    "number": (_luhn,),
}
