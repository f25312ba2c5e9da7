"""Text for tests: made-up sentences that look like Galician, and strings that tokenizers stumble over."""

import random

_ONSETS = ("b", "c", "ch", "d", "f", "g", "l", "m", "n", "ñ", "p", "r", "s", "t", "v", "x", "br", "tr", "")
_NUCLEI = ("a", "e", "i", "o", "u", "á", "é", "í", "ó", "ú", "ei", "ou", "ia")
_CODAS = ("", "", "", "n", "s", "r", "l")

HARD = (
    "", " ", "   ", "  dous  espazos ", "\ttab\tinterno", "fin \n", "a\u00a0b", "a\r\nb", "\u2028sep\u2029",
    "\u3000wide", "[MASK]", " [MASK] x", "x [MASK]", "a[MASK]b [CLS] [SEP][PAD] [UNK] [unused0] [unused1]",
    "<0x41><0xFF>", "▁ literal ▁", "e\u0301 é", "a\u0300\u0301\u0302", "漢字テスト", "مرحبا", "ﬁgura ① Ⅻ ½",
    "ſ \u212a Å", "emoji 😀👍🏽 👩\u200d👩\u200d👧", "İ i\u0307 İstanbul", "a\x00b", "\x01\x7f", "\ufeffBOM",
    "\u200b\u200dzero", "\ufffd\ufffd", "\U0010ffff", "A" * 300, "o" * 5000, "1234567890 10 000", "“aspas” —guión…",
    "I’m don't", "º ª", "<s> </s> <mask> <|endoftext|>", "##ing # ##", "<br>x<br> y <br>", "<br>", "x <br>",
)  # fmt: skip


def documents(count: int, seed: int = 0) -> list[str]:
    """`count` documents of two paragraphs each from a lexicon of 1,000 words; the same for the same seed."""
    lexicon_random, chooser = random.Random(0), random.Random(seed + 1)
    syllable = lambda: "".join(lexicon_random.choice(part) for part in (_ONSETS, _NUCLEI, _CODAS))  # noqa: E731
    lexicon = ["".join(syllable() for _ in range(lexicon_random.randint(1, 4))) for _ in range(1000)]

    def sentence() -> str:
        words = [lexicon[min(999, int(chooser.expovariate(0.005)))] for _ in range(chooser.randint(4, 14))]
        words.insert(chooser.randrange(len(words)), str(chooser.randint(1, 2030)))
        return f"{words[0].capitalize()} {' '.join(words[1:-1])}, {words[-1]}{chooser.choice('.!?')}"

    return ["\n".join(" ".join(sentence() for _ in range(3)) for _ in range(2)) for _ in range(count)]
