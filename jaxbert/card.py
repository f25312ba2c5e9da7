"""The model card of an export: README.md, what the run and its corpus recorded, and nothing else."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jaxbert
from jaxbert import config, runs

MARK = "<!-- exported by jaxbert; SHA-256 of model.safetensors: {} -->"  # tells an earlier export from other folders

# Licences that Hugging Face's model-card metadata knows by name; any other goes into the card's text alone.
HUB_LICENCES = (
    *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "mit", "cc0-1.0", "pddl", "odbl", "unlicense"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
    *("gfdl", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0"),
)


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was compared and found to agree."""

    rows: int
    lengths: tuple[int, int]  # tokens of the shortest and the longest of these rows
    differences: dict[str, float]  # dtype → largest difference of a logit from PyTorch's
    largest_logit: float
    documents: int  # whose token ids are equal
    texts: int  # that fill-mask answered alike
    fill_tolerance: float  # of probabilities
    held_out: bool  # rows and documents are the corpus's; else made up of random tokens
    padded: bool  # the rows were compared in one padded batch; else each alone
    versions: dict[str, str]  # of torch and transformers


@dataclasses.dataclass(frozen=True)
class Exported:
    """How PyTorch users load the folder."""

    hf_class: str
    code: tuple[str, ...] = ()  # files of ours that hold this class; none: it is transformers' own
    reads_padding: bool = False  # a padded row answers otherwise than alone


def model_card(
    trained: runs.Run,
    workdir: Path,
    corpus: dict[str, Any] | None,
    exported: Exported,
    verified: Verified | None,
    parameters: int,
    weights_sha256: str,
) -> str:
    """README.md of a run's export; `corpus` is its corpus.json, if it has one."""
    settings, tokenizer = trained.config, trained.tokenizer
    licences = {source["licence"] for source in corpus["sources"]} if corpus else set()
    mask = mask_token(trained)
    licence = licences.pop().lower() if len(licences) == 1 else ""
    front = {
        "language": settings.corpus.language,
        "license": licence if licence in HUB_LICENCES else "",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "mask_token": mask,
    }
    filled = read_json(workdir / "evaluation.json").get("fills")
    example = filled[0]["text"] if filled else "… [MASK] …"
    trust = ", trust_remote_code=True" if exported.code else ""
    imported = trained.loop.get("imported")
    origin = (
        f"Imported by jaxbert {imported['jaxbert']} from {_code(imported['source'])}, not trained here."
        if imported
        else f"Pretrained with jaxbert {jaxbert.__version__}: {_steps(trained)}, {trained.loop['tokens']:,} tokens "
        "read."
    )
    return "\n".join(
        [
            "---",
            *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items() if value),  # as YAML
            "---",
            MARK.format(weights_sha256),
            "",
            f"# {settings.model.name}{f' ({settings.corpus.language})' if settings.corpus.language else ''}",
            "",
            f"A masked language model, `{exported.hf_class}` {_whose(exported)}, {parameters:,} parameters, a "
            f"vocabulary of {tokenizer.vocab_size:,} tokens, texts of up to {most_tokens(trained):,} tokens. {origin}",
            "",
            "```python",
            "from transformers import pipeline",
            f'fill_mask = pipeline("fill-mask", model="path/to/this/folder"{trust})',
            f"fill_mask({json.dumps(example.replace('[MASK]', mask), ensure_ascii=False)})",
            "```",
            "",
            *_padding(exported),
            *_scores(trained, workdir),
            *(_imported_text(imported) if imported else _text(corpus, bool(front["license"]))),
            *_training(settings, ("model",) if imported else TRAINING),
            *_verification(verified),
        ]
    )


TRAINING = ("data", "model", "objective", "train", "optimizer", "schedule")


def most_tokens(trained: runs.Run) -> int:
    """The longest row that the model reads."""
    model: Any = trained.config.model  # each encoder has its own fields
    return model.max_positions


def mask_token(trained: runs.Run) -> str:
    """The mask as the tokenizer writes it."""
    return str(trained.tokenizer.tokenizer.id_to_token(trained.tokenizer.mask_id))


def _steps(trained: runs.Run) -> str:
    if trained.averaged:
        return f"the mean of the parameters of steps {', '.join(f'{step:,}' for step in trained.averaged)}"
    return f"step {trained.step:,}"


def _whose(exported: Exported) -> str:
    if not exported.code:
        return "of transformers"
    return f"from {' and '.join(_code(name) for name in exported.code)} in this folder"


def _padding(exported: Exported) -> list[str]:
    """What padding does, where a reader could not guess it, and what the code asks for."""
    lines = []
    if exported.code:
        lines += [
            "Every `from_pretrained` needs `trust_remote_code=True`: it runs the Python files of this folder.",
            "",
        ]
    if exported.reads_padding:
        lines += [
            f"**`{exported.hf_class}` reads padding:** a padded text is answered otherwise than the text alone, "
            "whatever `attention_mask` says. Give it one text at a time, or texts of equal length.",
            "",
        ]
    elif exported.code:
        lines += ["With its `attention_mask`, padded on the right, a text in a batch is answered as it is alone.", ""]
    return lines


def _scores(trained: runs.Run, workdir: Path) -> list[str]:
    """Held-out scores of this very step, from evaluate or else from the end of training."""
    recorded = read_json(workdir / "evaluation.json"), read_json(workdir / "summary.json").get("validation", {})
    scores = next((s for s in recorded if s.get("step") == trained.step), None)
    lines = ["## Held-out scores", ""]
    if trained.averaged:
        return [*lines, "None were recorded for this mean of several steps.", ""]
    if scores is None:
        return [*lines, "None were recorded for this step.", ""]
    labels = {
        "loss": "loss (nats a masked token)",
        "unigram_baseline": "loss of unigram frequencies on the same tokens",
        "accuracy": "accuracy",
        "bits_per_character": "bits a character",
        "masked_tokens": "masked tokens",
    }
    given = {label: scores[name] for name, label in labels.items() if name in scores}
    if given:
        lines += ["| | |", "|---|---|", *(f"| {label} | {_number(value)} |" for label, value in given.items())]
    else:
        lines += ["The held-out loss was not computed: there is no prepared corpus."]
    for filled in scores.get("fills", []):
        masks = [", ".join(f"{_code(t) if t else 'space'} {p:.3f}" for t, p in choices) for choices in filled["masks"]]
        lines += ["", f"{_code(filled['text'])}: {'; '.join(masks)}"]
    return [*lines, ""]


def _imported_text(imported: dict[str, Any]) -> list[str]:
    replaced, lines = imported.get("vocabulary"), []
    if replaced:
        lines = [
            f"Their vocabulary of {replaced['from']:,} tokens was replaced by one of {replaced['to']:,}: vectors of "
            f"{replaced['shared']:,} shared tokens are the old ones, {replaced['composed']:,} are composed of old ones "
            f"({_code(replaced['method'])}), {replaced['fresh']:,} are untrained.",
            "",
        ]
    return [
        "## Text",
        "",
        f"Not recorded: these weights come from {_code(imported['source'])} (read as {imported['from']}; SHA-256 of "
        f"its tensors {imported['sha256']}). See there for what they were trained on, and for their licence.",
        "",
        *lines,
    ]


def _text(corpus: dict[str, Any] | None, licence_named: bool) -> list[str]:
    lines = ["## Text", ""]
    if corpus is None:
        return [*lines, "The prepared corpus was not there when this folder was exported, so it is not described.", ""]
    fates = ", ".join(f"{count:,} {fate.replace('_', ' ')}" for fate, count in corpus["fates"].items() if count)
    lines += [f"{corpus['documents']:,} documents: {fates}.", ""]
    lines += ["| | documents | characters | tokens |", "|---|---|---|---|"]
    for split, counts in corpus["splits"].items():
        tokens = corpus["tokens"][split]
        lines.append(f"| {split} | {counts['documents']:,} | {counts['characters']:,} | {tokens:,} |")
    lines += ["", "Sources:", ""]
    for source in corpus["sources"]:
        # A path on somebody's disk says nothing to a reader, and may say too much.
        name = Path(source["name"]).name if Path(source["name"]).is_absolute() else source["name"]
        facts = [
            f"- {_code(name)}" + (f" {source['version']}" if source["version"] else ""),
            f"{source['documents'].get('kept', 0):,} documents kept",
            f"licence: {source['licence'] or 'none recorded'}",
            *([f"attribution: {' '.join(source['attribution'].split())}"] if source["attribution"] else []),
            f"SHA-256 {source['sha256']}",
        ]
        lines.append("; ".join(facts))
    if licence_named:
        lines += ["", "The licence in this card's head is the one recorded for all of this text."]
    tokenizer = corpus["tokenizer"]
    trainer = f", trained by {tokenizer['trainer']}" if "trainer" in tokenizer else ""
    return [*lines, "", f"Tokenizer: {tokenizer['kind']}, {tokenizer['vocab_size']:,} tokens{trainer}.", ""]


def _training(settings: config.Config, sections: tuple[str, ...]) -> list[str]:
    lines = ["## Training" if len(sections) > 1 else "## Sizes", "", "| field | value |", "|---|---|"]
    for section in sections:
        values = config.to_dict(getattr(settings, section))
        if "initialize_from" in values:  # a path on somebody's disk, as above
            values["initialize_from"] = Path(values["initialize_from"]).name
        for i, phase in enumerate(values.pop("phases", ())):
            values[f"phases[{i}]"] = _phase(phase)
        lines += [f"| {section}.{name} | {value} |" for name, value in values.items() if value not in (None, "")]
    return [*lines, ""]


def _phase(phase: dict[str, Any]) -> str:
    """A phase of a finished run, whose bounds are in steps."""
    until = "the end" if phase["until"] == 1 else f"step {phase['until']:,.0f}"
    weights = [
        f"{_code(Path(w['source']).name)} weighted {w['weight']:g}"
        for w in phase["weights"]  # no paths, as above
    ]
    return ", ".join([f"to {until}: {phase['batch_size']} rows of {phase['row_length']} tokens", *weights])


def _verification(verified: Verified | None) -> list[str]:
    lines = ["## Verification", ""]
    if verified is None:
        return [*lines, "**This folder was not verified:** it was exported with `--no-verify`.", ""]
    versions = ", ".join(f"{name} {version}" for name, version in verified.versions.items())
    found = ", ".join(f"{difference:.2g} in {dtype}" for dtype, difference in verified.differences.items())
    left_out = "" if "float64" in verified.differences else " (float64: too large a model)"
    rows, texts = ("held-out rows", "documents") if verified.held_out else ("rows of random tokens", "made-up texts")
    how = "in one padded batch" if verified.padded else "each row alone, without padding"
    return [
        *lines,
        f"Loaded by {versions} on a CPU and compared with the JAX model before the folder appeared:",
        "",
        f"- logits of {verified.rows} {rows} of {verified.lengths[0]} to {verified.lengths[1]} tokens, {how}: largest "
        f"difference {found}{left_out}, largest logit {verified.largest_logit:.4g}",
        f"- token ids of {verified.documents:,} {texts}: equal",
        f"- fill-mask on {verified.texts} texts: the same tokens, probabilities within {verified.fill_tolerance}",
        "",
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _code(text: str) -> str:
    """Text as Markdown code, whatever it holds."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{space}{text}{space}{fence}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the run, {} if it has none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
