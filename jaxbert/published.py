"""What published tokenizers need for a language: figures to lay beside those of a corpus.

None is an estimate: each was printed by its authors, or is the quotient of counts that they printed. Sources:

FLORES-200 (2,009 sentences of news and encyclopedias in 200 languages): tokens from assets/tokenization_lengths.csv of
AleksandarPetrov/tokenization-fairness, commit 365c3f8, published with Petrov, La Malfa, Torr and Bibi, "Language Model
Tokenizers Introduce Unfairness Between Languages" (2023, arXiv:2305.15425). Words, between white space, and characters
were counted on the text that lies beside that table, joined as compute/compute_tokenizations.py does; the characters
are those of its column UTF-32. Languages that write words without white space are left out.

Wikipedia (the beginnings of 500 articles, 100,000 words between white space): README.md of NbAiLab/tokenizer-benchmark,
commit e67914c, which prints words a hundred tokens, cut to an integer; so two decimals at best. The sizes of its
tokenizers are there, too; those of the multilingual ones are rounded.

Universal Dependencies 2.3, in which punctuation marks are words: from the counts that Judit Ács published with
"Exploring BERT's Vocabulary" (2019), juditacs/snippets, deep_learning/bert_vocab_stats/bert_tokenizer_stats.tsv, all
treebanks of a language together.

Looked for without finding one printed: HerBERT, Bertinho, BERTimbau, BERTje, BERTurk. The README has KB-BERT, NB-BERT
and NorBERT as means over five languages only.
"""

import dataclasses

# Words between white space, characters, and tokens of XLM-RoBERTa, mT5 and cl100k_base, of the same text each time.
FLORES = {
    "af": (45246, 274530, 71571, 78558, 89171),
    "ar": (38396, 228923, 70160, 88560, 160485),
    "az": (37421, 282580, 68418, 88807, 139670),
    "be": (41677, 293469, 87245, 104504, 187319),
    "bg": (41810, 270630, 68968, 84216, 139501),
    "bn": (38262, 254327, 82135, 103680, 308325),
    "bs": (39782, 260762, 66919, 87222, 98989),
    "ca": (47738, 285853, 75451, 89612, 90427),
    "cs": (37647, 251082, 69647, 83670, 111264),
    "cy": (47104, 276951, 85327, 111445, 111804),
    "da": (42047, 266753, 65265, 75027, 85831),
    "de": (42663, 302377, 69727, 78142, 83450),
    "el": (46654, 310159, 86669, 108200, 271846),
    "en": (42855, 259170, 59656, 65729, 52835),
    "eo": (40725, 258512, 71512, 78270, 98813),
    "es": (50900, 308284, 71459, 86318, 81735),
    "et": (32749, 254538, 66864, 73511, 98826),
    "eu": (34658, 275448, 69305, 80064, 99592),
    "fa": (45960, 244860, 65918, 88203, 173333),
    "fi": (31293, 276102, 67990, 76281, 105276),
    "fo": (41363, 263787, 85972, 91884, 109406),
    "fr": (49764, 308489, 77352, 91954, 84407),
    "ga": (50432, 299807, 89323, 109777, 123062),
    "gl": (46386, 286720, 67114, 86400, 82499),
    "he": (34101, 201565, 67112, 80177, 193616),
    "hi": (50250, 258472, 74861, 104604, 253270),
    "hr": (38362, 255014, 65682, 85612, 97676),
    "hu": (36636, 272675, 70308, 82939, 113411),
    "hy": (37796, 287555, 82580, 103808, 527113),
    "id": (38880, 280788, 56004, 70942, 82006),
    "is": (40002, 255925, 73561, 86678, 113423),
    "it": (47295, 305238, 70965, 88132, 86628),
    "ka": (33710, 283885, 80173, 101748, 520316),
    "kk": (33906, 266102, 68428, 79112, 200493),
    "ko": (30194, 130986, 69124, 83718, 125737),
    "lb": (42329, 290166, 97961, 96291, 104985),
    "lt": (34256, 258253, 70001, 80627, 116635),
    "lv": (36221, 264388, 73546, 85736, 124411),
    "mk": (42027, 270378, 69908, 84820, 146208),
    "ms": (39666, 288891, 56764, 73097, 85585),
    "mt": (37740, 286521, 116915, 111373, 127435),
    "nb": (42123, 261039, 63780, 73405, 82508),
    "nl": (45065, 288665, 68075, 76684, 84254),
    "nn": (42782, 263026, 70057, 77387, 86536),
    "oc": (47852, 294944, 89419, 97576, 96606),
    "pl": (38288, 274970, 70891, 86127, 101102),
    "pt": (45822, 281590, 66406, 84640, 78313),
    "ro": (46446, 291717, 74034, 89729, 99201),
    "ru": (38816, 282208, 70031, 83361, 131496),
    "sk": (38492, 260044, 70420, 85374, 112877),
    "sl": (39492, 258309, 67649, 78923, 99575),
    "sq": (48241, 289969, 78642, 97346, 118970),
    "sr": (40433, 257321, 70646, 85556, 154192),
    "sv": (39957, 260666, 63927, 73261, 83368),
    "sw": (41652, 271792, 69335, 82050, 103109),
    "ta": (32909, 302271, 80444, 82947, 404265),
    "tr": (34301, 266383, 61972, 73434, 101176),
    "uk": (37566, 265408, 71931, 87227, 158296),
    "ur": (54297, 256560, 73620, 99921, 231974),
    "uz": (35587, 293146, 79559, 90504, 114577),
    "vi": (59918, 272596, 70314, 128452, 129258),
}
# Tokens that tokenizers made for one language need for the text of FLORES.
FLORES_OF_ONE = {"de": ("GottBERT", 58508), "en": ("RoBERTa", 52567), "fr": ("CamemBERT", 67031)}
# Tokenizer, its entries, words a hundred tokens on Wikipedia.
WIKIPEDIA = {
    "nb": ("NorMistral", 32768, 70),
    "nn": ("NorMistral", 32768, 66),
    "sv": ("RoBERTa of AI Sweden", 50265, 75),
}
# Tokens a word of multilingual BERT (119,547 entries).
UNIVERSAL_DEPENDENCIES = {
    **{"cs": 1.897, "da": 1.542, "de": 1.385, "en": 1.205, "es": 1.252, "fi": 2.188, "fr": 1.254, "gl": 1.162},
    **{"it": 1.299, "nl": 1.457, "no": 1.519, "pl": 1.879, "pt": 1.165, "sv": 1.620, "tr": 1.963},
}
CITED = {
    "FLORES-200": "Petrov et al., “Language Model Tokenizers Introduce Unfairness Between Languages” (2023)",
    "Wikipedia": "NbAiLab, tokenizer-benchmark (2024)",
    "Universal Dependencies 2.3": "counts published with Ács, “Exploring BERT’s Vocabulary” (2019)",
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published tokenizer on a text of one language."""

    tokenizer: str
    entries: str  # "" where the source does not say
    text: str  # a name of CITED
    tokens_a_word: str  # with the decimals that are known
    characters_a_token: str = ""  # white space among them; "" where it is not known
    marks_are_words: bool = False


def published(language: str) -> list[Published]:
    """What is known for a language (ISO 639-1; "no" is Bokmål), those first whose words stand between white space."""
    flores = {"no": "nb"}.get(language, language)
    found = []
    if flores in FLORES:
        words, characters, *tokens = FLORES[flores]
        multilingual = (("XLM-RoBERTa", "250,000"), ("mT5", "250,000"), ("cl100k_base (GPT-4)", "100,000"))
        counts = [(name, entries, n) for (name, entries), n in zip(multilingual, tokens, strict=True)]
        if flores in FLORES_OF_ONE:
            name, n = FLORES_OF_ONE[flores]
            counts.append((name, "", n))
        found += [
            Published(name, e, "FLORES-200", f"{n / words:.3f}", f"{characters / n:.3f}") for name, e, n in counts
        ]
    if flores in WIKIPEDIA:
        name, size, words = WIKIPEDIA[flores]
        found.append(Published(name, f"{size:,}", "Wikipedia", f"{100 / (words + 0.5):.2f}"))
    treebanks = {"nb": "no", "nn": "no"}.get(language, language)
    if treebanks in UNIVERSAL_DEPENDENCIES:
        ratio = f"{UNIVERSAL_DEPENDENCIES[treebanks]:.3f}"
        found.append(Published("multilingual BERT", "119,547", "Universal Dependencies 2.3", ratio, "", True))
    return found
