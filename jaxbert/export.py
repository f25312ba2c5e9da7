"""A folder that PyTorch users load: python -m jaxbert.export --workdir=DIR --out=DIR [--step=best|N] [--average=K]
        [--native] [--no-verify]

    config.json  model.safetensors  tokenizer.json  tokenizer_config.json  special_tokens_map.json
    README.md    the model card: what the run recorded
    common.py  modeling_*.py    PyTorch classes of ours, where transformers has none that is exact under padding

The folder is written under a temporary name beside --out, compared there with our own model through `transformers`, and
renamed only when everything agrees. Both sides compute on the CPU.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxbert import runs
from jaxbert.card import MARK, Exported, Verified, mask_token, model_card, most_tokens, read_json
from jaxbert.convert import exporter
from jaxbert.convert.key_map import to_torch
from jaxbert.convert.tokenizer import compare_with_transformers
from jaxbert.data.source import Validation, read_documents
from jaxbert.data.stages import FULL_OR_READ_ONLY, folder_beside
from jaxbert.errors import BadInput, run
from jaxbert.evaluate import corpus_of, mask_probabilities

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
FILES = ("config.json", "model.safetensors", *TOKENIZER_FILES, "README.md")
CODE = Path(__file__).parent / "convert" / "torch_models"  # PyTorch files that an export carries
SHARED = "common.py"  # the one that all of them import
INSTALL = 'pip install "jaxbert[torch]"'

FLOAT32_TOLERANCE = 1e-4  # of logits, times max(1, the largest logit)
FLOAT64_TOLERANCE = 1e-8  # of logits
FLOAT64_PARAMETERS = 50_000_000  # a larger model is not compared in float64: twice the memory, many times the time
FILL_TOLERANCE = 1e-4  # of probabilities
TIE = 1e-5  # probabilities nearer than this may change places
ROWS, DOCUMENTS, FILLS, CHOICES = 8, 1000, 3, 5  # what is compared: rows, documents, texts to fill, tokens a mask
CANDIDATES = 4096  # held-out pieces that the rows are chosen from, by length
LONGEST = 128  # tokens of a made-up row


class VerificationFailed(RuntimeError):
    """The exported model is not ours: a fault of the conversion, of a library, or a damaged run (exit code 1)."""


def export(
    workdir: str | Path,
    out: str | Path,
    step: str = "latest",
    verify: bool = True,
    native: bool = False,
    average: int = 1,
) -> Verified | None:
    """Write the folder `out` for a run at a step ("latest", "best" or a number); None if it was not verified.

    `average`: of so many checkpoints, that step's and those before it, the parameters' mean.
    `native`: for transformers' own class even where it reads padding. An earlier export at `out` is replaced, nothing
    else is. Raises BadInput if the run, its corpus or torch is missing, transformers has no such class, or `out` cannot
    be written, VerificationFailed with every difference found; then no folder appears.
    """
    out = Path(os.path.abspath(out))  # "." has no name to put a temporary folder beside
    _check_out(out)
    if verify:
        _quiet_transformers()
    trained = runs.load_run(workdir, step, average)
    module, settings = exporter(trained.config.model.name), trained.config.model
    exported, to_config = _carried(module, settings, native)
    corpus = None
    with contextlib.nullcontext() if verify else contextlib.suppress(BadInput):  # no corpus: the card says so
        corpus = None if _imported(trained) else corpus_of(trained)[1]
    state = to_torch(
        trained.model, module.masked_lm(settings), trained.tokenizer.vocab_size, module.torch_shapes(settings)
    )
    with _temporary_beside(out) as folder:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        hf_config = to_config(settings, trained.tokenizer.vocab_size, trained.tokenizer.pad_id)
        runs.write_json(folder / "config.json", hf_config)
        shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors: for the owner alone
        for name in exported.code:
            shutil.copyfile(CODE / name, folder / name)
        _copy_tokenizer(trained.tokenizer.directory, folder, most_tokens(trained))
        parameters = sum(array.size for array in state.values())
        verified = _verify(folder, trained, Path(workdir), parameters, exported) if verify else None
        digest = _sha256(folder / "model.safetensors")
        text = model_card(trained, Path(workdir), corpus, exported, verified, parameters, digest)
        (folder / "README.md").write_text(text, encoding="utf-8")
        _put_in_place(folder, out)
    return verified


def _carried(module: Any, settings: Any, native: bool) -> tuple[Exported, Callable[..., dict[str, Any]]]:
    """The class that reads the folder, and what writes its config.json."""
    modeling = getattr(module, "MODELING", None)
    if modeling is None:
        return Exported(module.HF_CLASS), module.to_hf_config
    if native:
        if not hasattr(module, "to_native_config"):
            raise BadInput(f"--native: transformers has no class for {settings.name}; leave the flag out")
        return Exported(module.HF_CLASS, reads_padding=True), module.to_native_config
    return Exported(module.HF_CLASS, (modeling, SHARED), settings.mask_mode == "reference"), module.to_hf_config


def _imported(trained: runs.Run) -> bool:
    """Whether the run is published weights: then it has no corpus."""
    return "imported" in trained.loop


# --- the folder ---


def _check_out(out: Path) -> None:
    """Refuse to replace anything but an empty folder or an export whose weights nobody has written over."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    weights, card = out / "model.safetensors", out / "README.md"
    code = {SHARED, *(path.name for path in out.glob("modeling_*.py"))}
    if weights.is_file() and card.is_file() and {p.name for p in out.iterdir()} <= {*FILES, *code}:
        unchanged = MARK.format(_sha256(weights)) in card.read_text(encoding="utf-8", errors="replace")
        if unchanged:
            return
    raise BadInput(
        f"--out: {out} exists and is not an unchanged export of jaxbert; choose another folder or move it away"
    )


@contextlib.contextmanager
def _temporary_beside(out: Path) -> Iterator[Path]:
    """A fresh folder next to `out`, gone afterwards whatever happens. A disk that cannot be written is BadInput."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(folder_beside(out))
        except OSError as error:
            raise BadInput(f"--out: cannot write {out}: {error.strerror}; choose another folder") from None
        try:
            yield folder
        except Exception as error:  # safetensors has its own type for a full disk
            number = error.errno if isinstance(error, OSError) else None
            if number not in FULL_OR_READ_ONLY and "No space left" not in str(error):
                raise
            raise BadInput(f"--out: cannot write {out}: {error}; make room or choose another folder") from None


def _put_in_place(folder: Path, out: Path) -> None:
    _check_out(out)  # once more: verifying takes a while
    old = folder.with_name(f"{folder.name}-old")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    shutil.rmtree(old, ignore_errors=True)


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


@contextlib.contextmanager
def _own_modules_cache() -> Iterator[None]:
    """Code that a folder carries is copied by transformers before it is imported: here to a place that goes away."""
    from transformers import dynamic_module_utils as dynamic

    def loaded() -> dict[str, Any]:
        return {name: m for name, m in sys.modules.items() if name.split(".")[0] == "transformers_modules"}

    before, cache, path = loaded(), dynamic.HF_MODULES_CACHE, list(sys.path)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            for name in before:
                del sys.modules[name]
            dynamic.HF_MODULES_CACHE = temporary
            yield
        finally:
            dynamic.HF_MODULES_CACHE, sys.path[:] = cache, path
            for name in loaded():
                del sys.modules[name]
            sys.modules.update(before)


def _verify(folder: Path, trained: runs.Run, workdir: Path, parameters: int, exported: Exported) -> Verified:
    """Compare the written folder, as a user loads it, with our own model. Raises VerificationFailed."""
    batch, texts, cut = _made_up(trained) if _imported(trained) else _held_out(trained)
    fills = _fill_texts(workdir, cut)
    length_B, real_BT, code = batch["length_B"], batch["segment_ids_BT"] > 0, bool(exported.code)
    alone = exported.reads_padding and not code  # transformers' class reads it, ours does as the model does
    ours_alone = alone and trained.config.model.mask_mode == "reference"
    problems, differences, largest = [], {}, 0.0
    with _own_modules_cache():
        for dtype in ("float32", "float64") if parameters < FLOAT64_PARAMETERS else ("float32",):
            theirs, unloaded = _torch_model(folder, dtype, code)
            problems += [f"{kind}: {', '.join(names)}" for kind, names in unloaded.items() if names]
            theirs_BTV = _by_parts(functools.partial(_torch_logits, theirs), batch, alone)
            ours = functools.partial(our_logits, trained.model, vocab_size=trained.tokenizer.vocab_size, dtype=dtype)
            ours_BTV = _by_parts(ours, batch, ours_alone)
            if ours_BTV.shape != theirs_BTV.shape:
                raise VerificationFailed(f"logits have shape {theirs_BTV.shape} in PyTorch, {ours_BTV.shape} here")
            largest = float(np.abs(ours_BTV[real_BT]).max())
            differences[dtype] = float(np.abs(ours_BTV[real_BT] - theirs_BTV[real_BT]).max())
            tolerance = FLOAT32_TOLERANCE * max(1.0, largest) if dtype == "float32" else FLOAT64_TOLERANCE
            if not differences[dtype] <= tolerance:  # NaN is no agreement
                problems.append(
                    f"logits in {dtype} differ from PyTorch's by up to {differences[dtype]:.3g}, more than "
                    f"{tolerance:.3g}"
                )
        unequal = compare_with_transformers(folder, texts, trust_remote_code=code)
        if unequal:
            text, right, wrong = unequal[0]
            problems.append(
                f"{len(unequal):,} of {len(texts):,} documents get other token ids from transformers, the first: "
                f"{text[:60]!r}: ours {right[:12]}, theirs {wrong[:12]}"
            )
        if not problems:  # the pipeline does not open a folder with tensors of other shapes
            problems += _compare_fills(folder, trained, fills, code)
    if problems:
        raise VerificationFailed(
            f"the export is not the model of the run, no folder was written: {'; '.join(dict.fromkeys(problems))}"
        )
    return Verified(
        rows=len(length_B),
        lengths=(int(length_B.min()), int(length_B.max())),
        differences=differences,
        largest_logit=largest,
        documents=len(texts),
        texts=len(fills),
        fill_tolerance=FILL_TOLERANCE,
        held_out=not _imported(trained),
        padded=not alone,
        versions={name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    )


def _held_out(trained: runs.Run) -> tuple[dict[str, np.ndarray], list[str], Iterable[str]]:
    """Rows of the corpus, texts whose token ids are compared, texts to cut a mask into."""
    directory, corpus = corpus_of(trained)
    count = corpus["splits"]["train"]["documents"]
    numbers = np.unique(np.linspace(0, count - 1, min(count, DOCUMENTS)).astype(int)).tolist()
    texts = [document["text"] for document in read_documents(directory, "train", numbers)]
    held_out = (document["text"] for document in read_documents(directory, "validation"))
    return _ragged_rows(Validation.open(directory / "validation")), texts, held_out


def _made_up(trained: runs.Run) -> tuple[dict[str, np.ndarray], list[str], Iterable[str]]:
    """The same of random tokens, for weights that came without a corpus."""
    tokenizer, random = trained.tokenizer, np.random.default_rng(0)
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), list(tokenizer.special_ids))
    longest = min(most_tokens(trained), LONGEST)
    length_B = np.linspace(min(3, longest), longest, ROWS).astype(np.int32)
    ids_BT = random.choice(ordinary, (ROWS, longest))
    ids_BT = np.where(random.random(ids_BT.shape) < 0.15, tokenizer.mask_id, ids_BT)
    ids_BT[:, 0] = tokenizer.cls_id
    ids_BT[np.arange(ROWS), length_B - 1] = tokenizer.sep_id
    texts = [tokenizer.decode(random.choice(ordinary, 12)) for _ in range(DOCUMENTS)]
    return _batch(ids_BT, (np.arange(longest) < length_B[:, None]).astype(np.int32)), texts, texts


def _ragged_rows(validation: Validation) -> dict[str, np.ndarray]:
    """Held-out pieces from the shortest to the longest, masks in place."""
    length_R = (validation[:CANDIDATES].segment_ids_RT > 0).sum(axis=1)
    order_R = np.argsort(length_R, kind="stable")
    chosen_B = order_R[np.linspace(0, len(order_R) - 1, min(ROWS, len(order_R))).astype(int)]
    piece, longest = validation[chosen_B], int(length_R[chosen_B].max())
    return _batch(piece.input_ids_RT[:, :longest], piece.segment_ids_RT[:, :longest])


def _batch(ids_BT: np.ndarray, segment_ids_BT: np.ndarray) -> dict[str, np.ndarray]:
    """One document a row; every array int32."""
    return {
        "input_ids_BT": np.where(segment_ids_BT > 0, ids_BT, 0).astype(np.int32),
        "segment_ids_BT": segment_ids_BT,
        # Through padding, as PyTorch counts them: what reads padding reads its positions.
        "position_ids_BT": np.broadcast_to(np.arange(ids_BT.shape[1], dtype=np.int32), ids_BT.shape),
        "length_B": (segment_ids_BT > 0).sum(axis=1, dtype=np.int32),
    }


def _by_parts(
    logits: Callable[[dict[str, np.ndarray]], np.ndarray], batch: dict[str, np.ndarray], alone: bool
) -> np.ndarray:
    """Logits (B, T, V) of the batch, or of each of its rows without padding."""
    if not alone:
        return logits(batch)
    most, rows = batch["input_ids_BT"].shape[1], []
    for b, length in enumerate(batch["length_B"]):
        row = {
            name: array[b : b + 1, :length] if name.endswith("_BT") else array[b : b + 1]
            for name, array in batch.items()
        }
        rows.append(np.pad(logits(row), ((0, 0), (0, most - length), (0, 0))))
    return np.concatenate(rows)


def our_logits(model: Any, batch: dict[str, np.ndarray], vocab_size: int, dtype: str) -> np.ndarray:
    """Our masked-LM logits at every position, (B, T, V) in `dtype` ("float32" or "float64"), on the CPU.

    On the CPU because an accelerator's float32 products may be bfloat16 passes.
    """
    cpu = jax.devices("cpu")[0]
    with jax.enable_x64(dtype == "float64"), jax.default_device(cpu):
        cast = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), model)
        position_BT = np.broadcast_to(np.arange(batch["input_ids_BT"].shape[1]), batch["input_ids_BT"].shape)
        logits = jax.jit(lambda model, batch, positions_BP: model(batch, positions_BP))
        return np.asarray(logits(cast, batch, jnp.asarray(position_BT, jnp.int32)))[..., :vocab_size]


def _torch_model(folder: Path, dtype: str, code: bool) -> tuple[Any, dict[str, list[str]]]:
    """The folder's model in PyTorch, and the names of tensors that did not find each other (tied ones are found)."""
    import torch
    from transformers import AutoModelForMaskedLM

    model, info = AutoModelForMaskedLM.from_pretrained(
        str(folder),
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in `info`, and named with everything else
        local_files_only=True,
        trust_remote_code=code,
    )
    kinds = {"missing_keys": "not in the file", "unexpected_keys": "not in the model", "mismatched_keys": "other shape"}
    return model.eval(), {told: sorted(map(str, info[kind])) for kind, told in kinds.items()}


def _torch_logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """PyTorch's logits (B, T, V)."""
    import torch

    with torch.inference_mode():
        return model(
            input_ids=torch.from_numpy(batch["input_ids_BT"]).long(),
            attention_mask=torch.from_numpy(batch["segment_ids_BT"] > 0).long(),
        ).logits.numpy()


def _fill_texts(workdir: Path, texts: Iterable[str]) -> list[str]:
    """What evaluate was asked to fill, some other texts with a word masked, and one with two masked."""
    fills = [filled["text"] for filled in read_json(workdir / "evaluation.json").get("fills", [])]
    cut = list(itertools.islice((words for text in texts if len(words := text.split()[:12]) >= 4), FILLS))
    for words in cut:
        words[len(words) // 2] = "[MASK]"
        fills.append(" ".join(words))
    return fills + [" ".join(["[MASK]", *words[1:]]) for words in cut[:1]]


def _compare_fills(folder: Path, trained: runs.Run, texts: list[str], code: bool) -> list[str]:
    """Where `pipeline("fill-mask")` answers otherwise than `jaxbert.evaluate --fill`."""
    from transformers import pipeline

    tokenizer, cpu = trained.tokenizer, jax.devices("cpu")[0]
    ours = dataclasses.replace(trained, model=jax.device_put(trained.model, cpu))
    mask = mask_token(trained)
    fill_mask: Any = pipeline(
        "fill-mask",
        model=str(folder),
        tokenizer=str(folder),
        device="cpu",
        top_k=CHOICES,
        trust_remote_code=code,
    )
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


def main(argv: list[str]) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m jaxbert.export", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of a training run")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an earlier export is replaced")
    parser.add_argument("--step", default="latest", help="latest, best (lowest held-out loss) or a number")
    parser.add_argument("--average", type=int, default=1, metavar="K", help="mean of K checkpoints, up to that step's")
    parser.add_argument("--native", action="store_true", help="transformers' own class, though it reads padding")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with PyTorch; the model card says so")
    flags = parser.parse_args(argv)
    if flags.average < 1:
        raise BadInput(f"--average: {flags.average}; give the number of checkpoints, 1 or more")
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be busy with a run that goes on
    verified = export(flags.workdir, flags.out, flags.step, not flags.no_verify, flags.native, flags.average)
    print(f"exported   {flags.out}")
    if verified is None:
        print("NOT verified (--no-verify), which its model card says")
        return
    found = ", ".join(f"{difference:.2e} ({dtype})" for dtype, difference in verified.differences.items())
    kind = "held-out rows" if verified.held_out else "rows of random tokens"
    alone = "" if verified.padded else ", each alone"
    rows = f"{verified.rows} {kind} of {verified.lengths[0]} to {verified.lengths[1]} tokens{alone}"
    print(f"logits     largest difference between ours and PyTorch's: {found}; on {rows}")
    print(f"ids        of {verified.documents:,} {'documents' if verified.held_out else 'made-up texts'}: equal")
    print(f"fill-mask  of {verified.texts} texts: the same tokens and probabilities")


if __name__ == "__main__":
    run(main)
