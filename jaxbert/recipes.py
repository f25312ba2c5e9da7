"""What recipes share: `small`, an encoder of one language that two cores train in about ten minutes; and what those of
full size read, and how they fit a machine."""

import dataclasses
from typing import Any

from jaxbert.config import (
    Checkpoint,
    Clean,
    Config,
    Corpus,
    Data,
    Evaluation,
    Objective,
    Optimizer,
    Phase,
    Repetition,
    Schedule,
    Source,
    Tokenizer,
    Train,
    named_model,
)
from jaxbert.errors import BadInput

# Debian packages with catalogues in every language that configs/ has a recipe for; many others are in them, too.
COMMON = "evolution-common digikam-data vlc-l10n k3b-i18n kgoldrunner kate5-data"


def small(language: str, packages: str, *, threshold: float = 0.5, **corpus: Any) -> Config:
    """BERT of 4 layers and width 128 with 8,192 tokens of its own, on text out of Debian packages.

    In configs/gl.py and docs/languages.md stands what was measured. A recipe that wants something else says
    `dataclasses.replace(small(…), train=…)`, or gets it by a flag.

    Args:
      language: ISO 639-1 code, as packages have it in their paths (nb, not no).
      packages: names with spaces between them, each of which must hold text in the language; `Translation-XX` is apt's
        list of descriptions (data/debian.py).
      threshold: `corpus.clean.language_threshold`, the least probability of the language that keeps a paragraph;
        docs/new-language.md says how to find it.
      corpus: other fields of `config.Corpus`; `sources` come behind the packages.
    """
    fields: dict[str, Any] = {
        # not data/<language>, which the demo and everybody's own text have
        "directory": f"data/{language}_full",
        "validation_share": 0.05,
        "clean": Clean(language_threshold=threshold, near_duplicates=0.8, boilerplate=20),
    }
    return Config(
        corpus=Corpus(input=(f"deb:{','.join(packages.split())}",), language=language, **fields | corpus),
        tokenizer=Tokenizer(kind="unigram", vocab_size=8192),
        data=Data(row_length=128),
        model=named_model(
            "bert_L4_D128",
            max_positions=128,
            attention_start="local",
            initializer_range=0.05,
            hidden_dropout=0.0,  # a small model of few epochs: it underfits
            attention_dropout=0.0,
            unroll=4,
        ),
        objective=Objective(mask_rate=0.25),  # of training rows; the held-out rate is 15 %, evaluation.mask_rate
        train=Train(batch_size=32, tokens=20_480_000, log_every=100),  # 5,200 steps or so
        optimizer=Optimizer(learning_rate=2e-3),
        schedule=Schedule(name="linear", warmup=0.1),
        evaluation=Evaluation(every=1000),
        checkpoint=Checkpoint(every=1000),
    )


def wikipedia_and_web() -> Corpus:
    """Text for encoders of full size, where the user puts or links it: wikipedia/*.xml*.bz2 and web/**/*.parquet.

    Wikipedia counts twice. Pages of the web have to pass limits on repetition (config.Repetition) that lists in an
    encyclopedia would not, and lose addresses and numbers of persons. The language is for the command line to say.
    """
    both = Clean(near_duplicates=0.8, boilerplate=1000)
    web = dataclasses.replace(
        both, repetition=Repetition(filter=True), mask_emails=True, mask_phones=True, mask_identity_numbers=True
    )
    return Corpus(
        sources=(
            Source(("wikipedia/*.xml*.bz2",), name="wikipedia", weight=2.0, licence="CC-BY-SA-4.0"),
            Source(("web/**/*.parquet",), name="web", clean=web),
        ),
        validation_share=0.002,
        clean=both,
    )


# Machine → rows of 128 tokens that a device of it holds at once, for base and large, and its devices. Estimates from
# the memory of a device, 16, 32 and 80 GB; where they are wrong, train.accumulate is the flag that helps.
MACHINES = {"v5e-16": ((64, 16), 16), "v4-8": ((128, 32), 4), "h100": ((512, 128), 1)}


def accumulate(machine: str, size: str, positions: int) -> int:
    """Parts in which a batch of so many positions goes through a machine. Raises BadInput for an unknown machine."""
    if machine not in MACHINES:
        raise BadInput(f"--config: no machine {machine!r}; write FILE:MACHINE with one of {', '.join(MACHINES)}")
    (base, large), devices = MACHINES[machine]
    return max(1, positions // (128 * devices * {"base": base, "large": large}[size]))


def ramp(first: int, last: int, by: int, positions: float, row_length: int) -> tuple[Phase, ...]:
    """Phases whose batches grow from `first` rows by `by` to `last`, before the first of `last` about `positions`.

    Each size has the same number of steps, and the rate knows nothing of sizes: ModernBERT's way (Warner et al. 2024,
    arXiv:2412.13663, §2.2; AnswerDotAI/ModernBERT, src/sequence_packer.py, BatchSizeWarmupScheduler). The step is
    compiled for every size, so `by` should make few: ModernBERT-base has six. `train.accumulate` divides all of them.

    Raises BadInput if steps of `by` do not lead from `first` to `last`, or a size would have less than two steps.
    """
    sizes = range(first, last, by)
    if not sizes or (last - first) % by:
        raise BadInput(
            f"a ramp from {first} to {last} rows by {by}: choose a difference that leads from one to the other"
        )
    steps = positions / (sum(sizes) * row_length)
    if steps < 2:
        raise BadInput(
            f"a ramp over {positions:,.0f} positions has {steps:.1f} steps of each of {len(sizes)} sizes: give more"
        )
    grown = [Phase(until=float(round(steps * number)), batch_size=rows) for number, rows in enumerate(sizes, start=1)]
    return (*grown, Phase(batch_size=last))
