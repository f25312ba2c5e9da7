"""Published weights in: python -m jaxbert.convert --from=hf|m2|flax --source=FOLDER_OR_FILE --workdir=DIR
        [--head=fresh] [--tokenizer=FOLDER] [--cast]
A new vocabulary on an old checkpoint: python -m jaxbert.convert --from=run --source=RUN[@STEP] --workdir=DIR
        --tokenizer=FOLDER --method=copy|mean|similarity [--corpus=DIR]
        [--positions=N --positions_method=tile|interpolate]

    hf    a folder of transformers (BERT, ConvBERT, or an export of ours): safetensors or .bin, whole or in shards
    m2    M2-BERT as published: a Composer checkpoint's tensors or a .bin, its config.json beside it
    flax  BERT as transformers 4 wrote it for Flax: flax_model.msgpack
    run   a run of ours or an imported folder, which stays as it is: all its weights, but rows for the tokens of another
          tokenizer (convert/vocabulary.py says which), a longer table of positions, or both

Writes an ordinary run directory at step 0: evaluate --fill, export and model.initialize_from read it. Every tensor of
the source is read or named as left out, and none of ours is left at its initial value, but a head under --head=fresh.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxbert
from jaxbert import checkpoint, objectives, runs
from jaxbert import config as configs
from jaxbert.convert import importer, sources, vocabulary
from jaxbert.convert.key_map import Row, flatten, from_torch, to_torch
from jaxbert.convert.tokenizer import import_tokenizer
from jaxbert.data.stages import folder_beside
from jaxbert.data.tokenizer import REPORT, TextTokenizer
from jaxbert.errors import BadInput, run

# What a source may hold and nothing here reads: buffers, and heads for pairs of sentences. A module may name more.
IGNORE = ("*.position_ids", "*.pooler.dense.*", "cls.seq_relationship.*")
CASTABLE = ("float16", "bfloat16", "float64")
POSITIONS = "encoder/embeddings/position_TD"  # the table of encoders that have one
MOST_POSITIONS = 1 << 20  # config.py's longest row


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
    _check_absent(workdir)
    folder = source if source.is_dir() else source.parent
    if not source.exists():
        raise BadInput(f"--source: {source} is not there")
    model, state = READERS[kind](source, sources.read_config(folder))
    module = importer(model.name)
    rows = module.masked_lm(model)
    vocab_size = _vocabulary(state, rows)
    if model.num_layers > len(state):
        raise BadInput(f"config.json: {model.num_layers} layers, but the source has only {len(state)} tensors")
    with _appearing(workdir) as temporary:
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


# --- a run of ours under another vocabulary ---


@dataclasses.dataclass(frozen=True)
class Replaced:
    """What became of a run, for the command to tell."""

    config: configs.Config
    plan: vocabulary.Plan | None  # None: the vocabulary stays
    tables: list[str]  # parameters with a row a token
    old_vocab_size: int
    old_positions: int


def replace_vocabulary(
    source: str | Path,
    workdir: str | Path,
    *,
    tokenizer: str = "",
    method: str = "",
    corpus: str = "",
    positions: int = 0,
    positions_method: str = "",
) -> Replaced:
    """Write the run directory `workdir` with the weights of the run `source` (a directory, or DIR@STEP), whole or not
    at all: for another tokenizer, or for more positions, or both. `source` is only read.

    `corpus`: what `similarity` learns from; empty: the prepared corpus that the tokenizer's folder lies in.
    Raises BadInput naming the flag if a folder is missing or is not what it should be, if `workdir` exists or would
    change `source`, if the tokenizer lacks a role, and if the encoder has no table of positions or not fewer.
    """
    place, _, step = str(source).partition("@")
    workdir = Path(os.path.abspath(workdir))
    _check_flags(Path(place), workdir, tokenizer, method, corpus, positions, positions_method)
    old = runs.load_run(place, step or "latest")
    model: Any = old.config.model
    if positions:
        _check_positions(old, positions)
    model = dataclasses.replace(model, initialize_from="", max_positions=positions or model.max_positions)
    folder = Path(tokenizer) if tokenizer else old.tokenizer.directory
    with _appearing(workdir) as temporary:
        if (folder / REPORT).is_file():  # ours: byte for byte, a corpus is known by its tokenizer's SHA-256
            shutil.copytree(folder, temporary / "tokenizer")
        else:
            import_tokenizer(folder, temporary / "tokenizer", None)
        new = TextTokenizer.load(temporary / "tokenizer")
        learned = Path(corpus or Path(os.path.abspath(folder)).parent)
        plan = vocabulary.plan(old.tokenizer, new, method, learned) if tokenizer else None
        settings = _recipe(model, new.vocab_size, folder)
        runs.write_json(temporary / "config.json", configs.to_dict(settings))
        objective = objectives.for_tokenizer(settings, new)
        tree, tables = _replaced(old.model, objective, settings.train.init_seed, plan, positions_method)
        state = {name: np.asarray(leaf) for name, leaf in flatten(old.model).items()}
        told: dict[str, Any] = {"from": "run", "source": Path(place).name, "step": old.step, "sha256": _digest(state)}
        told |= {"jaxbert": jaxbert.__version__}
        if plan is not None:
            counts = {"shared": plan.shared, "composed": plan.composed, "fresh": plan.fresh}
            told["vocabulary"] = {"method": method, "from": old.tokenizer.vocab_size, "to": new.vocab_size, **counts}
        if positions:
            told["positions"] = {"method": positions_method, "from": old.config.model.max_positions, "to": positions}
        if "imported" in old.loop:
            told["before"] = old.loop["imported"]
        _save(temporary, tree, {"step": 0, "tokens": 0, "imported": told})
    return Replaced(settings, plan, tables, old.tokenizer.vocab_size, old.config.model.max_positions)


def _check_flags(
    source: Path, workdir: Path, tokenizer: str, method: str, corpus: str, positions: int, positions_method: str
) -> None:
    """Everything that shows before a weight is read."""
    if not runs.is_run(source):
        what = "is a file" if source.exists() else "is not there"
        what = "holds no run (config.json and checkpoints/)" if source.is_dir() else what
        raise BadInput(
            f"--source: {source} {what}; give the --workdir of jaxbert.train, or of jaxbert.convert --from=hf"
        )
    if workdir.resolve().is_relative_to(source.resolve()):
        raise BadInput(
            f"--workdir: {workdir} is --source or lies in it, which stays as it is; choose another directory"
        )
    _check_absent(workdir)
    if not tokenizer and not positions:
        raise BadInput(
            "--from=run: nothing to change; give --tokenizer=FOLDER with --method, or --positions=N, or both"
        )
    if bool(tokenizer) != bool(method):
        raise BadInput(f"--tokenizer and --method={'|'.join(vocabulary.METHODS)}: give both, or neither")
    if tokenizer and not Path(tokenizer).is_dir():
        raise BadInput(f"--tokenizer: {tokenizer} is no folder; give one with tokenizer.json, as a corpus's tokenizer/")
    if corpus and method != "similarity":
        raise BadInput("--corpus: only --method=similarity learns from one; leave it out")
    if bool(positions) != bool(positions_method):
        raise BadInput("--positions=N and --positions_method=tile|interpolate: give both, or neither")


def _check_positions(old: runs.Run, positions: int) -> None:
    """Raises BadInput unless the run's encoder knows positions by a table alone, one with fewer rows."""
    have: Any = old.config.model.max_positions
    by_position = [name for name in flatten(old.model) if "T" in name.rpartition("_")[2]]
    if by_position != [POSITIONS]:
        why = f"also computes from {', '.join(n for n in by_position if n != POSITIONS)}" if by_position else "has none"
        raise BadInput(
            f"--positions: lengthens a table of positions, as bert's and convbert's; {old.config.model.name} {why}; "
            "leave it out"
        )
    if not have < positions <= MOST_POSITIONS:
        raise BadInput(
            f"--positions: {positions} is not more than the {have} that the run has, or over {MOST_POSITIONS:,}; "
            "a shorter data.row_length needs no shorter table"
        )


def _replaced(
    old_model: Any, objective: Any, seed: int, plan: vocabulary.Plan | None, positions_method: str
) -> tuple[Any, list[str]]:
    """The objective's model from the old one's leaves, and the names of those with a row a token."""
    old, abstract = flatten(old_model), jax.eval_shape(objective.init, jax.random.key(0))
    wanted = flatten(abstract)
    tables = [name for name in wanted if "V" in name.rpartition("_")[2]] if plan else []
    fresh = {}
    if tables:  # only these are computed
        init = jax.jit(lambda key: {n: leaf for n, leaf in flatten(objective.init(key)).items() if n in tables})
        fresh = init(jax.random.key(seed))
    leaves = []
    for name, leaf in wanted.items():
        array = np.asarray(old[name])
        if plan is not None and name in tables:
            array = plan.table(array, np.asarray(fresh[name]))
        elif name == POSITIONS and len(array) < leaf.shape[0]:
            array = vocabulary.extend_positions(array, leaf.shape[0], positions_method)
        if array.shape != leaf.shape:
            raise RuntimeError(f"{name} would have the shape {array.shape} in a model that wants {leaf.shape}")
        leaves.append(jax.numpy.asarray(array))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), tables


# --- the run ---


def _check_absent(workdir: Path) -> None:
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise BadInput(f"--workdir: {workdir} exists; choose another, or move it away")


@contextlib.contextmanager
def _appearing(workdir: Path) -> Iterator[Path]:
    """A folder beside `workdir` that becomes it when the block is through, and else goes away."""
    try:
        with folder_beside(workdir) as temporary:
            yield temporary
            if workdir.is_dir():
                workdir.rmdir()
            temporary.rename(workdir)
    except OSError as error:
        raise BadInput(f"--workdir: cannot write {workdir}: {error.strerror or error}") from None


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
    parser.add_argument("--from", dest="kind", required=True, choices=[*READERS, "run"], help="how it is stored")
    parser.add_argument("--source", required=True, metavar="PATH", help="folder, or a file with config.json beside it")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory to write")
    parser.add_argument("--head", choices=["fresh"], default="", help="initialise the masked-LM head of a body alone")
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help="not the source's; of a run: the new one")
    parser.add_argument("--cast", action="store_true", help=f"read {', '.join(CASTABLE)} tensors as float32")
    ours = parser.add_argument_group("with --from=run")
    ours.add_argument("--method", choices=vocabulary.METHODS, default="", help="of vectors for tokens that are new")
    ours.add_argument("--corpus", default="", metavar="DIR", help="of similarity, if the tokenizer lies in none")
    ours.add_argument("--positions", type=int, default=0, metavar="N", help="rows of a longer table of positions")
    ours.add_argument("--positions_method", choices=vocabulary.POSITION_METHODS, default="", help="how it is made")
    flags = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    if flags.kind == "run":
        _replace(flags)
    else:
        _import(flags)


def _import(flags: argparse.Namespace) -> None:
    if given := [name for name in ("method", "corpus", "positions", "positions_method") if getattr(flags, name)]:
        raise BadInput(f"--{given[0]}: belongs to --from=run; import the weights first, then convert that run")
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


def _replace(flags: argparse.Namespace) -> None:
    if flags.head or flags.cast:
        raise BadInput(f"--{'head' if flags.head else 'cast'}: is for weights of others; leave it out with --from=run")
    options = ("tokenizer", "method", "corpus", "positions", "positions_method")
    found = replace_vocabulary(flags.source, flags.workdir, **{name: getattr(flags, name) for name in options})
    model: Any = found.config.model
    print(f"converted  {flags.workdir}: {model.name}, the weights of {flags.source}")
    if found.plan is not None:
        plan, size = found.plan, found.config.tokenizer.vocab_size
        print(f"tokenizer  {size:,} entries in place of {found.old_vocab_size:,}: in {', '.join(found.tables)}")
        how = {"mean": "the mean of old pieces", "similarity": "of similar shared tokens"}.get(flags.method, "none")
        print(f"shared     {plan.shared:,} ({plan.shared / size:.1%}): the old vector")
        print(f"composed   {plan.composed:,} ({plan.composed / size:.1%}): {how}")
        print(f"fresh      {plan.fresh:,} ({plan.fresh / size:.1%}): drawn anew")
    if flags.positions:
        print(f"positions  {flags.positions:,} in place of {found.old_positions:,} ({flags.positions_method})")


if __name__ == "__main__":
    run(main)
