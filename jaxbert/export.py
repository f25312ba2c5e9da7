"""A folder that PyTorch users load: python -m jaxbert.export --workdir=DIR --out=DIR [--step=best|N] [--no-verify]

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  special_tokens_map.json
    README.md    the model card: what the run recorded

The folder is written under a temporary name beside --out, compared there with our own model through `transformers`, and
renamed only when everything agrees. Both sides compute on the CPU.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import jaxbert
from jaxbert import config, runs
from jaxbert.convert import exporter
from jaxbert.convert.key_map import to_torch
from jaxbert.convert.tokenizer import compare_with_transformers
from jaxbert.data.source import Validation, position_ids, read_documents
from jaxbert.data.stages import FULL_OR_READ_ONLY
from jaxbert.errors import BadInput, run
from jaxbert.evaluate import corpus_of, mask_probabilities

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
FILES = ("config.json", "model.safetensors", *TOKENIZER_FILES, "README.md")
MARK = "<!-- exported by jaxbert; SHA-256 of model.safetensors: {} -->"  # tells an earlier export from other folders
INSTALL = 'pip install "jaxbert[torch]"'

FLOAT32_TOLERANCE = 1e-4  # of logits, times max(1, the largest logit)
FLOAT64_TOLERANCE = 1e-8  # of logits
FLOAT64_PARAMETERS = 50_000_000  # a larger model is not compared in float64: twice the memory, many times the time
FILL_TOLERANCE = 1e-4  # of probabilities
TIE = 1e-5  # probabilities nearer than this may change places
ROWS, DOCUMENTS, FILLS, CHOICES = 8, 1000, 3, 5  # what is compared: rows, documents, texts to fill, tokens a mask
CANDIDATES = 4096  # held-out pieces that the rows are chosen from, by length

# Licences that Hugging Face's model-card metadata knows by name; any other goes into the card's text alone.
HUB_LICENCES = (
    *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "mit", "cc0-1.0", "pddl", "odbl", "unlicense"),
    *("cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0"),
    *("gfdl", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0"),
)


class VerificationFailed(RuntimeError):
    """The exported model is not ours: a fault of the conversion, of a library, or a damaged run (exit code 1)."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What was compared and found to agree."""

    rows: int
    lengths: tuple[int, int]  # tokens of the shortest and the longest of these rows
    differences: dict[str, float]  # dtype → largest difference of a logit from PyTorch's
    largest_logit: float
    documents: int  # whose token ids are equal
    texts: int  # that fill-mask answered alike
    versions: dict[str, str]  # of torch and transformers


def export(workdir: str | Path, out: str | Path, step: str = "latest", verify: bool = True) -> Verified | None:
    """Write the folder `out` for a run at a step ("latest", "best" or a number); None if it was not verified.

    An earlier export at `out` is replaced, nothing else is. Raises BadInput if the run, its corpus or torch is missing
    or `out` cannot be written, VerificationFailed with every difference found; then no folder appears.
    """
    out = Path(os.path.abspath(out))  # "." has no name to put a temporary folder beside
    _check_out(out)
    if verify:
        _quiet_transformers()
    trained = runs.load_run(workdir, step)
    module, settings = exporter(trained.config.model.name), trained.config.model
    corpus = None
    with contextlib.nullcontext() if verify else contextlib.suppress(BadInput):  # no corpus: the card says so
        corpus = corpus_of(trained)[1]
    state = to_torch(
        trained.model, module.masked_lm(settings), trained.tokenizer.vocab_size, module.torch_shapes(settings)
    )
    with _temporary_beside(out) as folder:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        hf_config = module.to_hf_config(settings, trained.tokenizer.vocab_size, trained.tokenizer.pad_id)
        runs.write_json(folder / "config.json", hf_config)
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors: for the owner alone
        _copy_tokenizer(trained.tokenizer.directory, folder, _most_tokens(trained))
        parameters = sum(array.size for array in state.values())
        verified = _verify(folder, trained, Path(workdir), parameters) if verify else None
        digest = _sha256(folder / "model.safetensors")
        card = _card(trained, Path(workdir), corpus, verified, parameters, module.HF_CLASS, digest)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _put_in_place(folder, out)
    return verified


# --- the folder ---


def _check_out(out: Path) -> None:
    """Refuse to replace anything but an empty folder or an export whose weights nobody has written over."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    weights, card = out / "model.safetensors", out / "README.md"
    if weights.is_file() and card.is_file() and {p.name for p in out.iterdir()} <= set(FILES):
        unchanged = MARK.format(_sha256(weights)) in card.read_text(encoding="utf-8", errors="replace")
        if unchanged:
            return
    raise BadInput(
        f"--out: {out} exists and is not an unchanged export of jaxbert; choose another folder or move it away"
    )


@contextlib.contextmanager
def _temporary_beside(out: Path) -> Iterator[Path]:
    """A fresh folder next to `out`, gone afterwards whatever happens. A disk that cannot be written is BadInput."""
    folder = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    for leftover in out.parent.glob(f".{out.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror}; choose another folder") from None
    try:
        yield folder
    except Exception as error:  # safetensors has its own type for a full disk
        number = error.errno if isinstance(error, OSError) else None
        if number not in FULL_OR_READ_ONLY and "No space left" not in str(error):
            raise
        raise BadInput(f"--out: cannot write {out}: {error}; make room or choose another folder") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(folder: Path, out: Path) -> None:
    _check_out(out)  # once more: verifying takes a while
    old = folder.with_name(f"{folder.name}-old")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _most_tokens(trained: runs.Run) -> int:
    model: Any = trained.config.model  # each encoder has its own fields
    return model.max_positions


def _mask_token(trained: runs.Run) -> str:
    return str(trained.tokenizer.tokenizer.id_to_token(trained.tokenizer.mask_id))


def _copy_tokenizer(source: Path, folder: Path, max_positions: int) -> None:
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    runs.write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": max_positions})


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- verification ---


def _quiet_transformers() -> None:
    """Import torch and transformers, offline and without progress bars. Raises BadInput where one is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise BadInput(
            f"{error.name} is not installed, so the export cannot be verified; {INSTALL}, or give --no-verify"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _verify(folder: Path, trained: runs.Run, workdir: Path, parameters: int) -> Verified:
    """Compare the written folder, as a user loads it, with our own model. Raises VerificationFailed."""
    directory, corpus = corpus_of(trained)
    count = corpus["splits"]["train"]["documents"]
    numbers = np.unique(np.linspace(0, count - 1, min(count, DOCUMENTS)).astype(int)).tolist()
    texts = [document["text"] for document in read_documents(directory, "train", numbers)]
    batch = _ragged_rows(Validation.open(directory / "validation"))
    length_B = (batch["segment_ids_BT"] > 0).sum(axis=1)
    problems, differences, largest = [], {}, 0.0
    for dtype in ("float32", "float64") if parameters < FLOAT64_PARAMETERS else ("float32",):
        theirs_BTV, unloaded = _torch_logits(folder, batch, dtype)
        problems += [f"{kind}: {', '.join(names)}" for kind, names in unloaded.items() if names]
        ours_BTV = our_logits(trained.model, batch, trained.tokenizer.vocab_size, dtype)
        if ours_BTV.shape != theirs_BTV.shape:
            raise VerificationFailed(f"logits have shape {theirs_BTV.shape} in PyTorch, {ours_BTV.shape} here")
        real_BT = batch["segment_ids_BT"] > 0
        largest = float(np.abs(ours_BTV[real_BT]).max())
        differences[dtype] = float(np.abs(ours_BTV[real_BT] - theirs_BTV[real_BT]).max())
        tolerance = FLOAT32_TOLERANCE * max(1.0, largest) if dtype == "float32" else FLOAT64_TOLERANCE
        if not differences[dtype] <= tolerance:  # NaN is no agreement
            problems.append(
                f"logits in {dtype} differ from PyTorch's by up to {differences[dtype]:.3g}, more than {tolerance:.3g}"
            )
    unequal = compare_with_transformers(folder, texts)
    if unequal:
        text, ours, theirs = unequal[0]
        problems.append(
            f"{len(unequal):,} of {len(texts):,} documents get other token ids from transformers, the first: "
            f"{text[:60]!r}: ours {ours[:12]}, theirs {theirs[:12]}"
        )
    fills = _fill_texts(workdir, directory)
    if not problems:  # the pipeline does not open a folder with tensors of other shapes
        problems += _compare_fills(folder, trained, fills)
    if problems:
        raise VerificationFailed(
            f"the export is not the model of the run, no folder was written: {'; '.join(dict.fromkeys(problems))}"
        )
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    lengths = int(length_B.min()), int(length_B.max())
    return Verified(len(length_B), lengths, differences, largest, len(texts), len(fills), versions)


def _ragged_rows(validation: Validation) -> dict[str, np.ndarray]:
    """Held-out pieces from the shortest to the longest, masks in place; the batch's arrays are (B, T) int32."""
    length_R = (validation[:CANDIDATES].segment_ids_RT > 0).sum(axis=1)
    order_R = np.argsort(length_R, kind="stable")
    chosen_B = order_R[np.linspace(0, len(order_R) - 1, min(ROWS, len(order_R))).astype(int)]
    piece, longest = validation[chosen_B], int(length_R[chosen_B].max())
    segment_ids_BT = piece.segment_ids_RT[:, :longest]
    return {
        "input_ids_BT": piece.input_ids_RT[:, :longest],
        "segment_ids_BT": segment_ids_BT,
        "position_ids_BT": position_ids(segment_ids_BT),
    }


def our_logits(model: Any, batch: dict[str, np.ndarray], vocab_size: int, dtype: str) -> np.ndarray:
    """Our masked-LM logits at every position, (B, T, V) in `dtype` ("float32" or "float64"), on the CPU.

    On the CPU because an accelerator's float32 products may be bfloat16 passes.
    """
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(dtype == "float64"), jax.default_device(cpu):
        cast = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), model)
        position_BT = np.broadcast_to(np.arange(batch["input_ids_BT"].shape[1]), batch["input_ids_BT"].shape)
        return np.asarray(cast(batch, jnp.asarray(position_BT, jnp.int32)))[..., :vocab_size]


def _torch_logits(folder: Path, batch: dict[str, np.ndarray], dtype: str) -> tuple[np.ndarray, dict[str, list[str]]]:
    """PyTorch's logits (B, T, V), and the names of tensors that did not find each other (tied ones are not missing)."""
    import torch
    from transformers import AutoModelForMaskedLM

    model, info = AutoModelForMaskedLM.from_pretrained(
        str(folder),
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in `info`, and named with everything else
        local_files_only=True,
    )
    with torch.inference_mode():
        logits_BTV = model.eval()(
            input_ids=torch.from_numpy(batch["input_ids_BT"]).long(),
            attention_mask=torch.from_numpy(batch["segment_ids_BT"] > 0).long(),
        ).logits.numpy()
    kinds = {"missing_keys": "not in the file", "unexpected_keys": "not in the model", "mismatched_keys": "other shape"}
    return logits_BTV, {told: sorted(map(str, info[kind])) for kind, told in kinds.items()}


def _fill_texts(workdir: Path, directory: Path) -> list[str]:
    """What evaluate was asked to fill, some held-out texts with a word masked, and one with two masked."""
    texts = [filled["text"] for filled in _read_json(workdir / "evaluation.json").get("fills", [])]
    cut = []
    for document in read_documents(directory, "validation"):
        words = document["text"].split()[:12]
        if len(words) >= 4:
            cut.append(words)
        if len(cut) == FILLS:
            break
    for words in cut:
        words[len(words) // 2] = "[MASK]"
        texts.append(" ".join(words))
    for words in cut[:1]:
        texts.append(" ".join(["[MASK]", *words[1:]]))
    return texts


def _compare_fills(folder: Path, trained: runs.Run, texts: list[str]) -> list[str]:
    """Where `pipeline("fill-mask")` answers otherwise than `jaxbert.evaluate --fill`."""
    from transformers import pipeline

    tokenizer, cpu = trained.tokenizer, jax.devices("cpu")[0]
    ours = dataclasses.replace(trained, model=jax.device_put(trained.model, cpu))
    mask = _mask_token(trained)
    fill_mask: Any = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), device="cpu", top_k=CHOICES)
    problems = []
    for text in texts:
        with jax.default_device(cpu):
            p_PV = mask_probabilities(ours, text)
        answers = fill_mask(text.replace("[MASK]", mask))
        if isinstance(answers[0], dict):  # one mask: no outer list
            answers = [answers]
        for p_V, choices in zip(p_PV, answers, strict=True):
            for rank_p, choice in zip(np.sort(p_V)[::-1], choices, strict=False):
                token, p = choice["token"], choice["score"]
                same_text = choice["token_str"] == tokenizer.decode([token])
                if not (same_text and abs(p_V[token] - p) <= FILL_TOLERANCE and abs(p_V[token] - rank_p) <= TIE):
                    problems.append(
                        f"fill-mask answers {choice['token_str']!r} with {p:.6f} in {text!r}; here it is "
                        f"{tokenizer.decode([token])!r} with {p_V[token]:.6f}, and that rank has {rank_p:.6f}"
                    )
    return problems[:1]


# --- the model card ---


def _card(
    trained: runs.Run,
    workdir: Path,
    corpus: dict[str, Any] | None,
    verified: Verified | None,
    parameters: int,
    hf_class: str,
    weights_sha256: str,
) -> str:
    """README.md: what the run and its corpus recorded, and nothing else."""
    settings, tokenizer = trained.config, trained.tokenizer
    licences = {source["licence"] for source in corpus["sources"]} if corpus else set()
    mask = _mask_token(trained)
    licence = licences.pop().lower() if len(licences) == 1 else ""
    front = {
        "language": settings.corpus.language,
        "license": licence if licence in HUB_LICENCES else "",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "mask_token": mask,
    }
    filled = _read_json(workdir / "evaluation.json").get("fills")
    example = filled[0]["text"] if filled else "… [MASK] …"
    return "\n".join(
        [
            "---",
            *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in front.items() if value),  # as YAML
            "---",
            MARK.format(weights_sha256),
            "",
            f"# {settings.model.name}{f' ({settings.corpus.language})' if settings.corpus.language else ''}",
            "",
            f"A masked language model, `{hf_class}` of transformers, {parameters:,} parameters, a vocabulary of "
            f"{tokenizer.vocab_size:,} tokens, texts of up to {_most_tokens(trained):,} tokens. Pretrained with "
            f"jaxbert {jaxbert.__version__}: step {trained.step:,}, {trained.loop['tokens']:,} tokens read.",
            "",
            "```python",
            "from transformers import pipeline",
            'fill_mask = pipeline("fill-mask", model="path/to/this/folder")',
            f"fill_mask({json.dumps(example.replace('[MASK]', mask), ensure_ascii=False)})",
            "```",
            "",
            *_card_scores(trained, workdir),
            *_card_text(corpus, bool(front["license"])),
            *_card_training(settings),
            *_card_verification(verified),
        ]
    )


def _card_scores(trained: runs.Run, workdir: Path) -> list[str]:
    """Held-out scores of this very step, from evaluate or else from the end of training."""
    recorded = _read_json(workdir / "evaluation.json"), _read_json(workdir / "summary.json").get("validation", {})
    scores = next((s for s in recorded if s.get("step") == trained.step), None)
    lines = ["## Held-out scores", ""]
    if scores is None:
        return [*lines, "None were recorded for this step.", ""]
    labels = {
        "loss": "loss (nats a masked token)",
        "unigram_baseline": "loss of unigram frequencies on the same tokens",
        "accuracy": "accuracy",
        "bits_per_character": "bits a character",
        "masked_tokens": "masked tokens",
    }
    lines += ["| | |", "|---|---|"]
    lines += [f"| {label} | {_number(scores[name])} |" for name, label in labels.items() if name in scores]
    for filled in scores.get("fills", []):
        masks = [", ".join(f"{_code(t) if t else 'space'} {p:.3f}" for t, p in choices) for choices in filled["masks"]]
        lines += ["", f"{_code(filled['text'])}: {'; '.join(masks)}"]
    return [*lines, ""]


def _card_text(corpus: dict[str, Any] | None, licence_named: bool) -> list[str]:
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


def _card_training(settings: config.Config) -> list[str]:
    lines = ["## Training", "", "| field | value |", "|---|---|"]
    for section in ("data", "model", "objective", "train", "optimizer", "schedule"):
        values = config.to_dict(getattr(settings, section))
        lines += [f"| {section}.{name} | {value} |" for name, value in values.items() if value not in (None, "")]
    return [*lines, ""]


def _card_verification(verified: Verified | None) -> list[str]:
    lines = ["## Verification", ""]
    if verified is None:
        return [*lines, "**This folder was not verified:** it was exported with `--no-verify`.", ""]
    versions = ", ".join(f"{name} {version}" for name, version in verified.versions.items())
    found = ", ".join(f"{difference:.2g} in {dtype}" for dtype, difference in verified.differences.items())
    left_out = "" if "float64" in verified.differences else " (float64: too large a model)"
    return [
        *lines,
        f"Loaded by {versions} on a CPU and compared with the JAX model before the folder appeared:",
        "",
        f"- logits of {verified.rows} held-out rows of {verified.lengths[0]} to {verified.lengths[1]} tokens: largest "
        f"difference {found}{left_out}, largest logit {verified.largest_logit:.4g}",
        f"- token ids of {verified.documents:,} documents: equal",
        f"- fill-mask on {verified.texts} texts: the same tokens, probabilities within {FILL_TOLERANCE}",
        "",
    ]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _code(text: str) -> str:
    """Text as Markdown code, whatever it holds."""
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{space}{text}{space}{fence}"


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the run, {} if it has none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main(argv: list[str]) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m jaxbert.export", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a training run")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an earlier export is replaced")
    parser.add_argument("--step", default="latest", help="latest, best (lowest held-out loss) or a number")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with PyTorch; the model card says so")
    flags = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy with a run that goes on
    verified = export(flags.workdir, flags.out, flags.step, not flags.no_verify)
    print(f"exported   {flags.out}")
    if verified is None:
        print("NOT verified (--no-verify), which its model card says")
        return
    found = ", ".join(f"{difference:.2e} ({dtype})" for dtype, difference in verified.differences.items())
    rows = f"{verified.rows} held-out rows of {verified.lengths[0]} to {verified.lengths[1]} tokens"
    print(f"logits     largest difference between ours and PyTorch's: {found}; on {rows}")
    print(f"ids        of {verified.documents:,} documents: equal")
    print(f"fill-mask  of {verified.texts} texts: the same tokens and probabilities")


if __name__ == "__main__":
    run(main)
