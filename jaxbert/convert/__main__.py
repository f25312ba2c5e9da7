"""Published weights in: python -m jaxbert.convert --from=hf|m2|flax --source=FOLDER_OR_FILE --workdir=DIR
        [--head=fresh] [--tokenizer=FOLDER] [--cast]

    hf    a folder of transformers (BERT, ConvBERT, or an export of ours): safetensors or .bin, whole or in shards
    m2    M2-BERT as published: a Composer checkpoint's tensors or a .bin, its config.json beside it
    flax  BERT as transformers 4 wrote it for Flax: flax_model.msgpack

Writes an ordinary run directory at step 0: evaluate --fill, export and model.initialize_from read it. Every tensor of
the source is read or named as left out, and none of ours is left at its initial value, but a head under --head=fresh.
"""

import argparse
import dataclasses
import fnmatch
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxbert
from jaxbert import checkpoint, objectives, runs
from jaxbert import config as configs
from jaxbert.convert import importer, sources
from jaxbert.convert.key_map import Row, from_torch, to_torch
from jaxbert.convert.tokenizer import import_tokenizer
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput, run

# What a source may hold and nothing here reads: buffers, and heads for pairs of sentences. A module may name more.
IGNORE = ("*.position_ids", "*.pooler.dense.*", "cls.seq_relationship.*")
CASTABLE = ("float16", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class Imported:
    """What was read, for the command to tell."""

    config: configs.Config
    parameters: int
    left_out: list[str]  # tensors of the source that nothing here reads
    fresh: list[str]  # tensors of the head that was initialised
    cast: list[str]  # dtypes that became float32
    reserved: int  # entries added to the tokenizer


def convert(
    kind: str, source: str | Path, workdir: str | Path, *, head: str = "", tokenizer: str = "", cast: bool = False
) -> Imported:
    """Write the run directory `workdir`, whole or not at all.

    Raises BadInput naming the file, field or tensors if the source is not whole, holds what is not supported or does
    not fit, if it has no masked-LM head and `head` is not "fresh", or if `workdir` exists.
    """
    source, workdir = Path(source), Path(os.path.abspath(workdir))
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise BadInput(f"--workdir: {workdir} exists; choose another, or move it away")
    folder = source if source.is_dir() else source.parent
    if not source.exists():
        raise BadInput(f"--source: {source} is not there")
    model, state = READERS[kind](source, sources.read_config(folder))
    module = importer(model.name)
    rows = module.masked_lm(model)
    vocab_size = _vocabulary(state, rows)
    if model.num_layers > len(state):
        raise BadInput(f"config.json: {model.num_layers} layers, but the source has only {len(state)} tensors")
    temporary = workdir.with_name(f".{workdir.name}.tmp-{os.getpid()}")
    for leftover in workdir.parent.glob(f".{workdir.name}.tmp-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        reserved = import_tokenizer(Path(tokenizer) if tokenizer else folder, temporary / "tokenizer", vocab_size)
        settings = _recipe(model, vocab_size, Path(tokenizer) if tokenizer else folder)
        runs.write_json(temporary / "config.json", configs.to_dict(settings))
        objective = objectives.for_tokenizer(settings, TextTokenizer.load(temporary / "tokenizer"))
        shapes = module.torch_shapes(settings.model)
        fresh = _fresh_head(state, rows, objective, settings, head, shapes, vocab_size)
        ignore = (*IGNORE, *getattr(module, "IGNORE", ()))
        _check_floats(state, ignore, cast)
        tree = from_torch(
            state | fresh,
            rows,
            jax.eval_shape(objective.init, jax.random.key(0)),
            shapes,
            vocab_size=vocab_size,
            ignore=ignore,
            dtypes=("float32",),
            cast=CASTABLE if cast else (),
        )
        told = {"from": kind, "source": source.name, "sha256": _digest(state), "jaxbert": jaxbert.__version__}
        _save(temporary, jax.tree.map(jax.numpy.asarray, tree), {"step": 0, "tokens": 0, "imported": told})
        if workdir.is_dir():
            workdir.rmdir()
        temporary.rename(workdir)
    except OSError as error:
        raise BadInput(f"--workdir: cannot write {workdir}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Imported(
        config=settings,
        parameters=sum(array.size for array in to_torch(tree, rows, vocab_size, shapes).values()),
        left_out=sorted(name for name in state if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)),
        fresh=sorted(fresh),
        cast=sorted({array.dtype.name for array in state.values()} & set(CASTABLE)) if cast else [],
        reserved=reserved,
    )


# --- sources: a path and its config.json → the model's configuration, and arrays under the names of its key map ---


def _read_hf(source: Path, given: dict[str, Any]) -> tuple[configs.Model, dict[str, np.ndarray]]:
    model = _model(given)
    return model, _prefixed(_weights(source), importer(model.name).masked_lm(model))


def _read_flax(source: Path, given: dict[str, Any]) -> tuple[configs.Model, dict[str, np.ndarray]]:
    if given.get("model_type") != "bert":
        raise BadInput(f"config.json: model_type={given.get('model_type')!r}; --from=flax reads 'bert'")
    model, file = _model(given), source / sources.FLAX if source.is_dir() else source
    if not file.is_file():
        raise BadInput(f"--source: {source} holds no {sources.FLAX}")
    return model, _prefixed(sources.read_flax(file), importer(model.name).masked_lm(model))


def _read_m2(source: Path, given: dict[str, Any]) -> tuple[configs.Model, dict[str, np.ndarray]]:
    module = importer("m2_base")
    model, state = _model(given, "m2"), _weights(source)
    names = module.published_names(state)
    return model, _prefixed({names[name]: array for name, array in state.items()}, module.masked_lm(model))


READERS = {"hf": _read_hf, "m2": _read_m2, "flax": _read_flax}


def _model(given: dict[str, Any], family: str = "") -> configs.Model:
    """The configuration that config.json describes, by its model_type: "bert", or ours, "jaxbert_gmlp".

    Published weights of an encoder whose published code reads padding were trained with that: mask_mode "reference".
    """
    kind = family or given.get("model_type")
    if not isinstance(kind, str):
        raise BadInput('config.json: has no model_type; if it is BERT\'s, write "model_type": "bert" into it')
    family = kind.removeprefix("jaxbert_")
    if family not in configs.FAMILIES:
        raise BadInput(f"config.json: model_type={kind!r} is not supported (here: {', '.join(configs.FAMILIES)})")
    model = importer(family).from_hf_config(given)
    if "mask_mode" not in given and configs.family(family).Encoder.reference_reads_padding:
        model = dataclasses.replace(model, mask_mode="reference")
    return model


def _weights(source: Path) -> dict[str, np.ndarray]:
    if source.is_dir():
        return sources.read_weights(source)
    return (sources.read_safetensors if source.suffix == ".safetensors" else sources.read_pickle)(source)


def _prefixed(state: dict[str, np.ndarray], rows: list[Row]) -> dict[str, np.ndarray]:
    """Names as the key map has them: LayerNorm's old gamma and beta, and a body saved alone, without its prefix."""
    renamed = {}
    for name, array in state.items():
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            name = f"{name.removesuffix(old)}{new}" if name.endswith(old) else name
        if name in renamed:
            raise BadInput(f"--source: two tensors would be {name}: LayerNorm's weight and gamma, or bias and beta")
        renamed[name] = array
    prefix = rows[0].theirs.partition(".")[0] + "."
    if any(name.startswith(prefix) for name in renamed):
        return renamed
    return {f"{prefix}{name}": array for name, array in renamed.items()}


# --- the run ---


def _vocabulary(state: dict[str, np.ndarray], rows: list[Row]) -> int:
    """Rows of the word table."""
    table = next(row for row in rows if row.ours.startswith("encoder/") and row.transform == "vocabulary")
    for name in (table.theirs, *table.aliases):
        if name in state and state[name].ndim:
            return state[name].shape[0]
    raise BadInput(f"--source: has no {table.theirs}; its tensors: {', '.join(sorted(state)[:5])}, …")


def _check_floats(state: dict[str, np.ndarray], ignore: tuple[str, ...], cast: bool) -> None:
    """Raises BadInput if there are other floats than float32 and `cast` does not allow it. Integers never fit."""
    read = {n: a.dtype.name for n, a in state.items() if not any(fnmatch.fnmatchcase(n, pattern) for pattern in ignore)}
    for dtype in () if cast else CASTABLE:
        if names := [name for name, found in read.items() if found == dtype]:
            raise BadInput(
                f"--source: {len(names)} of its tensors are {dtype} (the first: {names[0]}), parameters are float32; "
                "--cast reads them as float32"
            )


def _fresh_head(
    state: dict[str, np.ndarray],
    rows: list[Row],
    objective: Any,
    settings: configs.Config,
    head: str,
    shapes: dict[str, tuple[int, ...]],
    vocab_size: int,
) -> dict[str, np.ndarray]:
    """The head's tensors at initial values, if the source has none and that is asked for; else nothing."""
    names = {name for row in rows if row.ours.startswith("head/") for name in (row.theirs, *row.aliases)}
    if not names or names & set(state):
        if head:
            raise BadInput("--head=fresh: the source has a masked-LM head; leave the flag out")
        return {}
    if head != "fresh":
        raise BadInput(
            "--source: holds no masked-LM head; --head=fresh initialises one, to be trained before it predicts anything"
        )
    model = jax.jit(objective.init)(jax.random.key(settings.train.init_seed))
    initial = to_torch(model, rows, vocab_size, shapes)
    return {row.theirs: initial[row.theirs] for row in rows if row.ours.startswith("head/")}


def _recipe(model: configs.Model, vocab_size: int, tokenizer: Path) -> configs.Config:
    """A resolved recipe around the model: no corpus, no steps."""
    positions: Any = model.max_positions
    return configs.resolve(
        configs.Config(
            tokenizer=configs.Tokenizer(kind="folder", vocab_size=vocab_size, folder=tokenizer.name),
            data=configs.Data(row_length=max(8, positions)),
            model=model,
            train=configs.Train(steps=0),
        )
    )


def _save(directory: Path, model: Any, loop: dict[str, Any]) -> None:
    saves = checkpoint.Checkpoints(directory / "checkpoints", configs.Checkpoint())
    saves.save(0, {"model": model}, loop, None)
    saves.close()
    try:
        runs.load_run(directory)
    except BadInput as error:
        raise BadInput(f"--workdir: the checkpoint was not written: {error}") from None


def _digest(state: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: it tells two sources apart however they were stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {state[name].shape}".encode())
        digest.update(np.ascontiguousarray(state[name]).view(np.uint8).data)
    return digest.hexdigest()


def main(argv: list[str]) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxbert.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="kind", required=True, choices=list(READERS), help="how the source is stored")
    parser.add_argument("--source", required=True, metavar="PATH", help="folder, or a file with config.json beside it")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory to write")
    parser.add_argument("--head", choices=["fresh"], default="", help="initialise the masked-LM head of a body alone")
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help="if it is not in the source's folder")
    parser.add_argument("--cast", action="store_true", help=f"read {', '.join(CASTABLE)} tensors as float32")
    flags = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    found = convert(
        flags.kind, flags.source, flags.workdir, head=flags.head, tokenizer=flags.tokenizer, cast=flags.cast
    )
    model: Any = found.config.model
    print(f"imported   {flags.workdir}: {model.name}, {found.parameters:,} parameters, mask_mode={model.mask_mode}")
    more = f", {found.reserved} of them added for rows of the table that no token had" if found.reserved else ""
    print(f"tokenizer  {found.config.tokenizer.vocab_size:,} entries{more}")
    for what, names in (("left out", found.left_out), ("cast", found.cast), ("head", found.fresh)):
        if names:
            how = {"cast": " became float32", "head": " at initial values: train it before it predicts"}.get(what, "")
            print(f"{what:10} {', '.join(names)}{how}")


if __name__ == "__main__":
    run(main)
