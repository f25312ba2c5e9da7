"""What a recipe is: frozen dataclasses, and how fields left at None are filled.

A recipe file (recipe_files.py) returns a `Config`. Fields left at None are filled late, by `resolve`, so that
`--config.model.name=bert_base` takes all of base's sizes and not the recipe's old ones.
"""

import dataclasses
import difflib
import importlib
import json
import types
import typing
from typing import Any, Literal

from jaxbert.errors import BadInput

# The first word of `model.name` → the module that declares `Config`, `SIZES` and the rest of the encoder protocol.
FAMILIES = {
    "bert": "jaxbert.models.bert",
    "convbert": "jaxbert.models.convbert",
    "gmlp": "jaxbert.models.gmlp",
    "amlp": "jaxbert.models.gmlp",  # gMLP with a tiny attention
    "m2": "jaxbert.models.m2",
    "hypermixer": "jaxbert.models.hypermixer",
}


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Limits of Rae et al. 2021 (arXiv:2112.11446, table A1) over which a document is rejected; shares of it."""

    filter: bool = False
    duplicate_lines: float = 0.30
    duplicate_line_characters: float = 0.20
    top_2_gram: float = 0.20  # characters in the most frequent n-gram
    top_3_gram: float = 0.18
    top_4_gram: float = 0.16
    duplicate_5_grams: float = 0.15  # characters in n-grams that were there before
    duplicate_6_grams: float = 0.14
    duplicate_7_grams: float = 0.13
    duplicate_8_grams: float = 0.12
    duplicate_9_grams: float = 0.11
    duplicate_10_grams: float = 0.10


@dataclasses.dataclass(frozen=True)
class Clean:
    """What happens to a document's text, in this order. Every step can be switched off, and every step counts."""

    repair: bool = True  # mojibake and HTML entities (ftfy), then Unicode NFC
    control_characters: bool = True  # remove control characters and NUL, keep newlines and tabs
    mask_emails: bool = False  # → name@example.org
    mask_phones: bool = False  # digits → 0: of numbers with + or 00, or after "tel." and the like
    mask_identity_numbers: bool = False  # digits → 0: identity, account and card numbers whose checksum fits
    min_words: int = 4  # of a paragraph; 0: off
    min_letters: float = 0.62  # share of letters among a paragraph's non-space characters; 0: off
    identify_language: bool = True  # off for languages that the identifier does not know
    languages: tuple[str, ...] = ()  # accepted; empty: `corpus.language` alone
    language_threshold: float = 0.5  # least probability of an accepted language
    repetition: Repetition = Repetition()
    duplicates: Literal["off", "document", "paragraph"] = "paragraph"  # paragraph: also repeated paragraphs go
    near_duplicates: float = 0.0  # least Jaccard similarity of word 5-grams at which the later goes (0.8); 0: off
    boilerplate: int = 0  # documents that have a line, from which on it goes from all of them; 0: off


MOST_WEIGHT = 100  # copies of a document are counted in a byte
ACROSS = ("duplicates", "near_duplicates", "boilerplate")  # of Clean: compare documents of all sources


@dataclasses.dataclass(frozen=True)
class Source:
    """Input with settings of its own. None: the corpus's; `clean` replaces the corpus's as a whole, but its fields
    ACROSS must be the same, because they compare documents of all sources. A weight of 2 makes every training document
    twice a part of rows, one of 0.5 half of the documents (source.py, `weighted`)."""

    input: tuple[str, ...] = ()  # as `Corpus.input`
    name: str = ""  # in corpus.json and in documents; empty: the entries of `input`
    weight: float = 1.0  # how often rows hold each training document (but see Phase); validation is never weighted
    clean: Clean | None = None
    licence: str | None = None
    attribution: str | None = None
    document: Literal["file", "line", "block"] | None = None
    text_field: str | None = None
    encoding: str | None = None

    @property
    def label(self) -> str:
        """What it is called: its name, or its input."""
        return self.name or ", ".join(self.input)

    def applied(self, corpus: "Corpus") -> "Corpus":
        """The corpus's settings as they are for this source's documents."""
        fields = ("clean", "licence", "attribution", "document", "text_field", "encoding")
        own = {name: value for name in fields if (value := getattr(self, name)) is not None}
        return dataclasses.replace(corpus, **own)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Where text comes from and where the prepared corpus lies."""

    input: tuple[str, ...] = ()  # paths, globs, URLs (gs://), `deb:name,name`, `tfds:name:split`
    sources: tuple[Source, ...] = ()  # more input, with settings of its own; only in a recipe file
    language: str = ""  # ISO 639-1 code
    directory: str = ""  # prepare writes here, train reads here; empty: data/<language>
    document: Literal["file", "line", "block"] = "block"  # what one document of a plain-text file is
    text_field: str = "text"  # of JSON lines, parquet and tfds
    encoding: str = "utf-8"  # of files that do not declare their own, such as cp1250 or latin-1
    invalid_utf8: Literal["error", "repair"] = "error"
    max_document_megabytes: float = 20.0  # a longer document (or line) is rejected and counted
    validation_share: float = 0.05  # of documents, by the hash of their cleaned text
    licence: str = ""  # of files that carry none themselves; goes into the model card
    attribution: str = ""
    workers: int = 0  # processes; 0: one a core
    remove: tuple[str, ...] = ()  # files of ids, URLs and hashes, a line each, of documents that must not be there
    benchmarks: tuple[str, ...] = ()  # files or folders of test data whose runs of words are looked for in documents
    benchmark_words: int = 13  # of a run
    benchmark_overlap: Literal["report", "remove"] = "report"  # what happens to documents that share one
    clean: Clean = Clean()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """How text becomes tokens."""

    kind: Literal["unigram", "bpe", "wordpiece", "folder"] = "unigram"
    vocab_size: int = 32_000
    folder: str = ""  # of an existing tokenizer, with kind = "folder"
    lowercase: bool = False  # accents stay
    split_digits: bool = False
    user_symbols: tuple[str, ...] = ()  # always one token
    reserved: int = 0  # unused entries [unused0], … for later
    threads: int = 1  # of the trainer: the unigram result depends on it, so it is part of the recipe
    train_megabytes: float = 50.0  # of text, sampled by hash, that the trainer sees; unigram takes 25 times its memory


@dataclasses.dataclass(frozen=True)
class Data:
    """What a training row is."""

    row_length: int = 128  # tokens
    pack: bool | None = None  # several documents share a row; None: where the encoder can
    stage: str = ""  # a directory on this host's own disk: rows are copied there before step 1; empty: read in place


@dataclasses.dataclass(frozen=True)
class Model:
    """What every encoder's configuration has; each file in `models/` adds its own fields.

    `name` is a published size; every other field that is None takes that size's value.
    """

    name: str = "bert_mini"
    num_layers: int | None = None
    hidden_size: int | None = None
    max_positions: int | None = None
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    hidden_dropout: float = 0.1
    norm_epsilon: float = 1e-12
    initializer_range: float = 0.02
    mask_mode: Literal["exact", "reference"] = "exact"  # reference: reads padding where the published code does
    rematerialize: Literal["none", "dots", "full"] = "none"  # products that the backward pass computes again
    unroll: int = 1  # layers that a step of the scan holds: all of a small model's on a CPU run 5 % faster
    initialize_from: str = ""  # a run, a step of it (`runs/a@1000`) or an imported folder: weights only, a new run

    @property
    def longest_row(self) -> int | None:
        """Tokens of the longest row that the encoder reads; None: any length."""
        return self.max_positions


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a run learns."""

    name: Literal["mlm"] = "mlm"
    mask_rate: float = 0.15  # of a row's maskable tokens
    mask_share: float = 0.8  # of the predicted tokens: becomes [MASK]
    random_share: float = 0.1  # becomes a random token; the rest stays
    whole_words: bool = False
    z_loss: float = 0.0  # × log² Z, Z the softmax's denominator, is added to what is minimised (PaLM: 1e-4)


@dataclasses.dataclass(frozen=True)
class Weight:
    """How often rows hold each training document of a source; as `Source.weight`."""

    source: str  # a source's name or input, or its name in corpus.json
    weight: float


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a run with rows of its own length, number and mixture.

    Its epochs are its own: each reads every row of its folder once, and its first steps begin one, unless an earlier
    phase has the same rows: then it goes on where that one stopped (rows of one document: with the next epoch).
    """

    until: float = 1.0  # its end: share of the run if 1 or below, else steps; the last phase's is 1: it ends the run
    row_length: int | None = None  # tokens; None: data.row_length
    batch_size: int | None = None  # rows; None: the positions of train.batch_size rows of data.row_length
    weights: tuple[Weight, ...] = ()  # of some sources, in place of Source.weight; others keep theirs


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, how large, from which seeds. Exactly one of steps, tokens, epochs is in force."""

    batch_size: int = 256  # rows of the global batch
    phases: tuple[Phase, ...] = ()  # one after the other; only in a recipe file; empty: one, of data.row_length
    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    seed: int = 0
    data_seed: int | None = None  # these three derive from `seed` unless given
    init_seed: int | None = None
    dropout_seed: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    log_every: int = 50  # steps
    accumulate: int = 1  # the batch goes through in this many parts
    bad_step: Literal["skip", "stop"] = "skip"  # a NaN or a spike: leave the step out, or stop (exit code 3)
    max_skipped: int = 20  # skipped steps in a row before the run stops all the same
    spike: float = 0.0  # a gradient norm over this many times its running mean is bad; 0: only NaN and infinity are
    check_first_loss: bool = True  # a fresh model must start within 0.5 of ln(vocabulary)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How gradients become an update (optim.py); as it stands AdamW without decay on biases and norms."""

    name: Literal["adamw", "lamb", "stable_adamw"] = "adamw"  # lamb: for batches of tens of thousands of rows
    learning_rate: float = 5e-4  # peak
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    decays: Literal["weights", "all"] = "weights"  # weights: not biases and norms; all: they too
    decay_follows: Literal["rate", "schedule"] = "rate"  # times weight_decay: the rate, or its share of the peak
    clip_norm: float = 1.0  # of the global gradient; 0: off
    bias_correction: bool = True  # False: BERT's published variant


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate over the run."""

    name: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    warmup: float = 0.06  # share of the run if below 1, else steps
    decay: float = 0.2  # of wsd: share of the run, or steps, at the end
    decay_shape: Literal["linear", "1-sqrt"] = "linear"  # of wsd: 1 − t or 1 − √t of the share t of the decay
    final: float = 0.0  # last learning rate, as a share of the peak


@dataclasses.dataclass(frozen=True)
class Override:
    """Which axes of the mesh split some parameters, in place of what their letters say (sharding.LETTERS)."""

    parameter: str  # its name or the end of its path, * and ? as in a shell: "word_VD", "blocks/*/bias_D"
    axes: tuple[str, ...]  # of each letter of the name in turn: "fsdp", "tensor" or "" (whole); ("", "fsdp") of VD


@dataclasses.dataclass(frozen=True)
class Sharding:
    """The mesh. -1: what is left of the devices. Several TPU slices divide `data`."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    overrides: tuple[Override, ...] = ()  # the first that fits a parameter counts; only in a recipe file


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When a run is saved, where, and which saves stay beside the best by held-out loss."""

    every: int = 1000  # steps
    keep_last: int = 2  # saves
    keep_every: int = 0  # steps, a multiple of `every`: saves that stay for good; 0: none
    max_failures: int = 3  # saves in a row that may fail (a full disk); one more ends the run
    timeout: float = 600  # seconds for a save to be on disk; where one process fails, the others wait so long for it
    directory: str = ""  # of one run, shared by all processes: a path or gs://…; empty: WORKDIR/checkpoints


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The held-out score. Piece length and rate are fixed when the corpus is prepared."""

    every: int = 1000  # steps
    rows: int = 0  # held-out pieces scored during training; 0: all
    batch_size: int = 64
    piece_length: int = 128  # tokens, with [CLS] and [SEP]
    mask_rate: float = 0.15
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds after which a process that makes no progress in a phase ends with code 75, to be started again; 0: never.

    So long that only what hangs gets there: a step of BERT-large with 256 rows of 512 tokens is 2.6e14 operations,
    three quarters of an hour at the 1e11 a second of a small CPU. On a pod, ten times what a run needs saves money.
    """

    compile: float = 7200  # of the step, for all shapes of rows
    restore: float = 3600  # of one checkpoint, or of the weights that a run starts from
    step: float = 3600  # one, with the wait for its data
    evaluate: float = 7200  # all of evaluation.rows
    save: float = 3600  # until the one before is on disk and this one is copied off the devices
    silence: float = 30  # of a peer, after which all others end; never 0


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole recipe."""

    corpus: Corpus = Corpus()
    tokenizer: Tokenizer = Tokenizer()
    data: Data = Data()
    model: Model = Model()
    objective: Objective = Objective()
    train: Train = Train()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    sharding: Sharding = Sharding()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    limits: Limits = Limits()


LENGTHS = ("steps", "tokens", "epochs")


def family(name: str) -> types.ModuleType:
    """The module of `models/` that knows the size `name` ("bert_mini" → jaxbert.models.bert)."""
    first = name.split("_")[0]
    if first not in FAMILIES:
        raise BadInput(f"model.name: no encoder is called {name!r}; encoders: {', '.join(FAMILIES)} (as in bert_mini)")
    return importlib.import_module(FAMILIES[first])


def named_model(name: str, **fields: Any) -> Model:
    """The configuration of a published size with some fields of its own: `named_model("bert_mini", num_layers=6)`."""
    return family(name).Config(name=name, **fields)


def phases(config: Config) -> list[tuple[str, Phase]]:
    """The phases of a resolved recipe, each with the name of the field of its row length; one if it gives none."""
    if not config.train.phases:
        return [("data.row_length", Phase(1.0, config.data.row_length, config.train.batch_size))]
    return [(f"train.phases[{i}].row_length", phase) for i, phase in enumerate(config.train.phases)]


def batch_field(row_length_field: str) -> str:
    """The field of a phase's batch size, from that of its row length, which `phases` gives."""
    return row_length_field.replace("data.row_length", "train.batch_size").replace("row_length", "batch_size")


def resolve(config: Config) -> Config:
    """Every field filled: the named size's fields, `corpus.directory`, `data.pack`, the three seeds, phases.

    Raises BadInput for an unknown size, or rows of several documents for an encoder that cannot read them.
    """
    module, train = family(config.model.name), config.train
    if config.model.name not in module.SIZES:
        close = difflib.get_close_matches(config.model.name, module.SIZES, 1, 0.0)[0]
        raise BadInput(
            f"model.name: no size {config.model.name!r}; the nearest is {close!r} of {', '.join(module.SIZES)}"
        )
    size = module.SIZES[config.model.name]
    missing: dict[str, Any] = {f: v for f, v in size.items() if getattr(config.model, f) is None}
    pack = _packs(config, module.Encoder)
    seeds: dict[str, Any] = {
        field: train.seed * 1000 + number
        for number, field in enumerate(("data_seed", "init_seed", "dropout_seed"), start=1)
        if getattr(train, field) is None
    }
    row_length, positions = config.data.row_length, train.batch_size * config.data.row_length
    filled = []
    for phase in train.phases:
        length = row_length if phase.row_length is None else phase.row_length
        rows = max(1, positions // max(1, length)) if phase.batch_size is None else phase.batch_size
        filled.append(dataclasses.replace(phase, row_length=length, batch_size=rows))
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **missing),
        data=dataclasses.replace(config.data, pack=pack),
        corpus=dataclasses.replace(
            config.corpus, directory=config.corpus.directory or f"data/{config.corpus.language}"
        ),
        train=dataclasses.replace(train, **seeds, phases=tuple(filled)),
    )


def _packs(config: Config, encoder: Any) -> bool:
    """Whether rows hold several documents. Raises BadInput if they are to and this encoder cannot read them."""
    reads_padding = config.model.mask_mode == "reference" and encoder.reference_reads_padding
    pack = config.data.pack if config.data.pack is not None else encoder.packs and not reads_padding
    if pack and not encoder.packs:
        raise BadInput(f"data.pack: {config.model.name} reads one document a row; set data.pack=false, or leave it out")
    if pack and reads_padding:
        raise BadInput(
            "model.mask_mode: 'reference' reads what stands beside a document in its row, as the published code does; "
            "set data.pack=false, or model.mask_mode=exact"
        )
    return pack


def to_dict(config: Any) -> dict[str, Any]:
    """A recipe as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`. Unknown fields raise BadInput (a run of another version of jaxbert)."""

    def build(cls: Any, given: dict[str, Any], where: str) -> Any:
        hints, known = typing.get_type_hints(cls), {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(given) - known):
            raise BadInput(f"{where}{unknown[0]}: no such field in this version of jaxbert")
        fields = {}
        for name, value in given.items():
            if name == "model":
                fields[name] = build(family(value["name"]).Config, value, "model.")
            else:
                fields[name] = typed(hints[name], value, f"{where}{name}")
        return cls(**fields)

    def typed(hint: Any, value: Any, where: str) -> Any:
        nested = next((h for h in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(h)), None)
        if isinstance(value, list):
            return tuple(typed(nested, v, f"{where}[{i}]") for i, v in enumerate(value)) if nested else tuple(value)
        return build(nested, value, f"{where}.") if nested and value is not None else value

    return build(Config, values, "")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names and both values of every leaf in which two `to_dict` results differ."""
    found = []
    for key in sorted(set(old) | set(new)):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append((name, a, b))
    return found
