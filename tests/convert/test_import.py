"""Published weights in: what comes back out is what went in, and what cannot be read is one message and exit code 2."""

import json
import os
import pickle
import re
import shutil
import struct
import sys
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import load_file, save_file

from jaxbert import errors, evaluate, export, runs
from jaxbert.convert import __main__ as command
from jaxbert.convert import exporter
from jaxbert.convert.key_map import flatten
from jaxbert.data.tokenizer import SPECIAL, TextTokenizer
from tests.models.encoders import SMALL

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "."]  # 58
VOCAB = 60  # two rows more than there are pieces
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
CLASSES = {
    "bert": lambda: transformers.BertForPreTraining(transformers.BertConfig(**SIZES)),
    "convbert": lambda: transformers.ConvBertForMaskedLM(
        transformers.ConvBertConfig(**SIZES, embedding_size=12, num_groups=2, conv_kernel_size=5)
    ),
}
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def randomly(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def write_tokenizer(folder: Path, pieces=PIECES) -> None:
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")


@pytest.fixture(scope="module", params=CLASSES)
def source(request, tmp_path_factory):
    """A folder of transformers as the Hub has them: safetensors, config.json, vocab.txt."""
    return make_source(request.param, tmp_path_factory.mktemp("sources") / request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_source("bert", tmp_path_factory.mktemp("bert") / "source")


def make_source(name, folder):
    randomly(CLASSES[name]()).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def imported(source, workdir, kind="hf", **options) -> runs.Run:
    command.convert(kind, source, workdir, **options)
    return runs.load_run(workdir)


def equal(a: runs.Run, b: runs.Run) -> bool:
    ours, theirs = flatten(a.model), flatten(b.model)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name])) for name in ours
    )


# --- what comes in ---


def test_the_run_computes_what_transformers_computes(source, tmp_path):
    trained = imported(source, tmp_path / "run")
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(source)
    ids_BT = np.random.default_rng(0).integers(5, VOCAB, (3, 17)).astype(np.int32)
    batch = {
        "input_ids_BT": ids_BT,
        "segment_ids_BT": np.ones_like(ids_BT),
        "position_ids_BT": np.tile(np.arange(17, dtype=np.int32), (3, 1)),
        "length_B": np.full(3, 17, np.int32),
    }
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids_BT).long()).logits.numpy()
    found = export.our_logits(trained.model, batch, VOCAB, "float32")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_import_export_import_changes_no_bit(source, tmp_path):
    first = imported(source, tmp_path / "first")
    export.export(tmp_path / "first", tmp_path / "exported", verify=False)
    ours, theirs = load_file(tmp_path / "exported" / "model.safetensors"), load_file(source / "model.safetensors")
    assert set(theirs) - set(ours) <= {
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
        *("cls.seq_relationship.weight", "cls.seq_relationship.bias"),
    }
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], strict=True, err_msg=name)
    second = imported(tmp_path / "exported", tmp_path / "second")
    assert equal(first, second) and first.config.model == second.config.model
    tokenizers = [(tmp_path / run / "tokenizer" / "tokenizer.json").read_bytes() for run in ("first", "second")]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.slow
def test_the_export_of_imported_weights_is_verified_on_made_up_rows(source, tmp_path, capsys):
    imported(source, tmp_path / "run")
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'exported'}"])
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "rows of random tokens of 3 to 40 tokens" in card and "made-up texts: equal" in card
    assert f"Imported by jaxbert 0.1.0 from `{source.name}`" in card and str(tmp_path) not in card
    assert "rows of random tokens" in capsys.readouterr().out


@pytest.mark.slow
def test_a_native_convbert_is_verified_row_by_row_and_its_card_warns(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ROWS", 3)  # each is a compile of its own
    convbert = make_source("convbert", tmp_path / "source")
    first = imported(convbert, tmp_path / "run")
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'native'}", "--native"])
    card = (tmp_path / "native" / "README.md").read_text()
    assert "`ConvBertForMaskedLM` reads padding:" in card and "each row alone, without padding" in card
    assert not list((tmp_path / "native").glob("*.py"))
    assert type(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "native")) is (
        transformers.ConvBertForMaskedLM
    )
    assert equal(first, imported(tmp_path / "native", tmp_path / "again"))


@pytest.fixture(scope="module")
def convbert_run(tmp_path_factory):
    """Imported weights whose export carries code."""
    place = tmp_path_factory.mktemp("convbert")
    imported(make_source("convbert", place / "source"), place / "run")
    return place / "run"


@pytest.mark.slow
def test_verifying_an_export_with_code_leaves_none_of_it_in_the_users_cache(convbert_run, tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    path = list(sys.path)
    export.export(convbert_run, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").glob("*.py")} == {"common.py", "modeling_convbert.py"}
    assert not (tmp_path / "cache").exists() and sys.path == path
    assert dynamic_module_utils.HF_MODULES_CACHE == str(tmp_path / "cache")
    assert not [name for name in sys.modules if name.startswith("transformers_modules")]


def test_an_earlier_export_with_code_is_replaced_and_one_with_another_file_is_not(convbert_run, tmp_path):
    for _ in range(2):
        export.export(convbert_run, tmp_path / "out", verify=False)
    (tmp_path / "out" / "mine.py").write_text("")
    with pytest.raises(errors.BadInput, match="not an unchanged export"):
        export.export(convbert_run, tmp_path / "out", verify=False)


def test_native_is_refused_where_transformers_has_no_class():
    with pytest.raises(errors.BadInput, match="--native: transformers has no class for gmlp"):
        export._carried(exporter("gmlp_base"), SMALL["gmlp"], native=True)


def test_rows_of_the_table_that_no_token_has_become_reserved_entries(bert, tmp_path, capsys):
    command.main(["--from=hf", f"--source={bert}", f"--workdir={tmp_path / 'run'}"])
    assert "60 entries, 2 of them added for rows of the table that no token had" in capsys.readouterr().out
    tokenizer = TextTokenizer.load(tmp_path / "run" / "tokenizer")
    assert tokenizer.vocab_size == VOCAB and {58, 59} <= tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode(["abc."])[0][0]) == "abc."


def test_what_is_left_out_is_named(bert, tmp_path, capsys):
    command.main(["--from=hf", f"--source={bert}", f"--workdir={tmp_path / 'run'}"])
    told = capsys.readouterr().out
    assert "left out   bert.pooler.dense.bias, bert.pooler.dense.weight, cls.seq_relationship.bias" in told


def test_the_run_answers_fill_and_says_that_it_has_no_held_out_score(bert, tmp_path, capsys):
    imported(bert, tmp_path / "run")
    evaluate.main([f"--workdir={tmp_path / 'run'}", "--fill", "a [MASK] b"])
    told = capsys.readouterr().out
    assert "a [MASK] b" in told and "no corpus, so no held-out score" in told
    assert list(json.loads((tmp_path / "run" / "evaluation.json").read_text())) == ["step", "tokens", "fills"]
    with pytest.raises(errors.BadInput, match="imported weights"):
        evaluate.main([f"--workdir={tmp_path / 'run'}"])


# --- other forms of the same tensors ---


def state_of(folder):
    return load_file(folder / "model.safetensors")


def as_bin(state, folder):
    (folder / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(array.copy()) for name, array in state.items()}, folder / "pytorch_model.bin")


def in_shards(state, folder, suffix=".safetensors"):
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    files = {name: f"shard-{i % 3}{suffix}" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: state[name].copy() for name in names if files[name] == file}
        if suffix == ".bin":
            torch.save({name: torch.from_numpy(array) for name, array in part.items()}, folder / file)
        else:
            save_file(part, folder / file)
    index = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    (folder / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def as_old_bin(state, folder):
    """LayerNorm's gamma and beta, the tied tables and the positions' buffer, as the first releases wrote them."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in state.items()
    }
    renamed["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    renamed["bert.embeddings.position_ids"] = np.arange(40)[None]
    as_bin(renamed, folder)


FORMS = {
    "one .bin": as_bin,
    "safetensors in shards": in_shards,
    ".bin in shards": lambda state, folder: in_shards(state, folder, ".bin"),
    "gamma and beta": as_old_bin,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_folder_gives_the_same_weights(form, bert, tmp_path):
    shutil.copytree(bert, tmp_path / "source")
    FORMS[form](state_of(bert), tmp_path / "source")
    assert equal(imported(bert, tmp_path / "a"), imported(tmp_path / "source", tmp_path / "b"))


def test_links_to_the_hubs_cache_are_followed(bert, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "source").mkdir()
    for i, path in enumerate(bert.iterdir()):
        shutil.copyfile(path, tmp_path / "blobs" / str(i))
        (tmp_path / "source" / path.name).symlink_to(tmp_path / "blobs" / str(i))
    assert equal(imported(bert, tmp_path / "a"), imported(tmp_path / "source", tmp_path / "b"))


def write_flax(state, folder):
    """As transformers 4 wrote it: kernels (in, out), scales, embeddings, layers by their numbers."""
    tree = {}
    for name, array in state.items():
        *parents, last = name.split(".")
        if last == "weight":
            last = "embedding" if parents[-1].endswith("_embeddings") else "kernel"
            last = "scale" if parents[-1] == "LayerNorm" else last
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = array.T if last == "kernel" else array
    (folder / "flax_model.msgpack").write_bytes(serialization.to_bytes(tree))


@pytest.fixture
def flax(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "flax")
    (tmp_path / "flax" / "model.safetensors").unlink()
    write_flax(state_of(bert), tmp_path / "flax")
    return tmp_path / "flax"


def test_flax_weights_are_those_of_pytorch(flax, bert, tmp_path):
    assert equal(imported(bert, tmp_path / "a"), imported(flax, tmp_path / "b", "flax"))


def test_flax_arrays_in_chunks_are_put_together(flax, bert, tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    write_flax(state_of(bert), flax)
    assert b"__msgpack_chunked_array__" in (flax / "flax_model.msgpack").read_bytes()
    assert equal(imported(bert, tmp_path / "a"), imported(flax, tmp_path / "b", "flax"))


# --- heads, dtypes, tokenizers ---


@pytest.fixture
def body(bert, tmp_path):
    """BertModel alone: no head, and names without the prefix."""
    model = transformers.BertModel.from_pretrained(bert)
    model.save_pretrained(tmp_path / "body")
    write_tokenizer(tmp_path / "body")
    return tmp_path / "body"


def test_a_body_alone_gets_a_fresh_head_that_is_named(body, bert, tmp_path, capsys):
    command.main(["--from=hf", f"--source={body}", f"--workdir={tmp_path / 'run'}", "--head=fresh"])
    told = capsys.readouterr().out
    assert "head       cls.predictions.bias, cls.predictions.transform" in told and "at initial values" in told
    fresh, whole = runs.load_run(tmp_path / "run"), imported(bert, tmp_path / "whole")
    found, expected = flatten(fresh.model.encoder), flatten(whole.model.encoder)
    assert all((np.asarray(found[name]) == np.asarray(expected[name])).all() for name in expected)
    assert (np.asarray(fresh.model.head.norm.scale_D[...]) == 1).all()
    assert 0.01 < np.asarray(fresh.model.head.transform_DE[...]).std() < 0.03


def test_half_precision_is_cast_where_that_is_asked_for_and_said(bert, tmp_path, capsys):
    shutil.copytree(bert, tmp_path / "source")
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in state_of(bert).items()}
    save_file(half, tmp_path / "source" / "model.safetensors")
    command.main(["--from=hf", f"--source={tmp_path / 'source'}", f"--workdir={tmp_path / 'run'}", "--cast"])
    assert "cast       bfloat16 became float32" in capsys.readouterr().out
    table_VD = np.asarray(runs.load_run(tmp_path / "run").model.encoder.embedding_VD)[:VOCAB]
    np.testing.assert_array_equal(table_VD, half["bert.embeddings.word_embeddings.weight"].astype(np.float32))


def test_a_vocab_txt_is_read_with_its_options(bert, tmp_path):
    for lower in (True, False):
        shutil.copytree(bert, tmp_path / f"source{lower}")
        (tmp_path / f"source{lower}" / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        tokenizer = imported(tmp_path / f"source{lower}", tmp_path / f"run{lower}").tokenizer
        theirs = transformers.BertTokenizerFast(str(bert / "vocab.txt"), do_lower_case=lower)
        for text in ("abc. xyz", "ABC", "äb"):
            ids = [tokenizer.cls_id, *tokenizer.encode([text])[0][0].tolist(), tokenizer.sep_id]
            assert ids == theirs(text)["input_ids"]


# --- M2 ---


GOLDEN = Path(__file__).parents[1] / "golden" / "m2_bert_T12_ragged.npz"


def narrow(array):
    """As published: float32, of which the golden file holds a float64 copy."""
    return array.astype(np.float32) if array.dtype == np.float64 else array.copy()


@pytest.fixture
def m2(tmp_path):
    """A Composer checkpoint in the published layout, its config.json beside it: (folder, golden file)."""
    data = np.load(GOLDEN)
    tied = json.loads(str(data["tied"]))
    state = {name.partition("/")[2]: data[name] for name in data.files if name.startswith(("params/", "buffers/"))}
    state |= {alias: state[name] for alias, name in tied.items()}
    tensors = {f"model.{name}": torch.from_numpy(narrow(array)) for name, array in state.items()}
    given = json.loads(str(data["config"]))["full_config"]
    folder = tmp_path / "m2"
    folder.mkdir()
    torch.save({"state": {"model": tensors}}, folder / "checkpoint.pt")
    (folder / "config.json").write_text(json.dumps(given))
    write_tokenizer(folder, [*SPECIAL, *(f"a{i}" for i in range(given["vocab_size"] - len(SPECIAL)))])
    return folder, data


@pytest.mark.slow
def test_published_m2_weights_compute_the_published_logits_and_go_there_and_back(m2, tmp_path):
    folder, data = m2
    first = imported(folder / "checkpoint.pt", tmp_path / "first", "m2")
    assert first.config.model.mask_mode == "reference" and first.config.data.pack is False
    mask_BT = data["attention_mask"].astype(np.int32)
    batch = {
        "input_ids_BT": data["input_ids"].astype(np.int32),
        "segment_ids_BT": mask_BT,
        "position_ids_BT": np.tile(np.arange(mask_BT.shape[1], dtype=np.int32), (len(mask_BT), 1)),
        "token_type_ids_BT": data["token_type_ids"].astype(np.int32),
        "length_B": mask_BT.sum(axis=1, dtype=np.int32),
    }
    vocab_size = first.tokenizer.vocab_size
    found = export.our_logits(first.model, batch, vocab_size, "float32")
    np.testing.assert_allclose(found[mask_BT > 0], data["mlm_logits"][mask_BT > 0], atol=1e-3)
    export.export(tmp_path / "first", tmp_path / "exported")
    second = imported(tmp_path / "exported", tmp_path / "second")
    assert equal(first, second) and first.config.model == second.config.model


# --- what cannot be read: exit code 2 and one message ---


def refused(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    capsys.readouterr()  # what the test itself made transformers say: its bars are on until something turns them off
    with pytest.raises(SystemExit) as exit:
        errors.run(command.main)
    told = capsys.readouterr().err
    assert exit.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
    return told


@pytest.fixture
def copy(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "copy")
    return tmp_path / "copy"


def write_safetensors(header, data=b"", length=None):
    def write(folder):
        content = json.dumps(header).encode()
        start = struct.pack("<Q", len(content) if length is None else length)
        (folder / "model.safetensors").write_bytes(start + content + data)

    return write


def entry(start, stop, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


def truncate(name):
    def cut(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def change(**changes):
    def write(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


def tensors(function):
    def write(folder):
        state = dict(state_of(folder))
        function(state)
        save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, folder / "model.safetensors")

    return write


def index(files, keep=True):
    def write(folder):
        if not keep:
            (folder / "model.safetensors").rename(folder / "part.safetensors")
        else:
            (folder / "model.safetensors").rename(folder.parent / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    return write


class RunsCode:
    def __reduce__(self):
        return os.system, (f"touch {Path(__file__).with_name('was_run')}",)


def save_pickle(content):
    def write(folder):
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return write


def plain_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": RunsCode()}))


def truncated_pickle(folder):
    as_bin(state_of(folder), folder)
    truncate("pytorch_model.bin")(folder)


def two_shards_of_one_name(folder):
    in_shards(state_of(folder), folder)
    shutil.copyfile(folder / "shard-0.safetensors", folder / "shard-1.safetensors")


def misfits(state):
    state["bert.encoder.layer.1.attention.self.qeury.weight"] = state.pop(QUERY)
    state["cls.predictions.bias"] = state["cls.predictions.bias"][:-1]


WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
TWO_TABLES = tensors(lambda state: state.update({DECODER: state[WORDS] + np.float32(1e-3)}))
BAD = {
    # safetensors
    "a header larger than the file": (write_safetensors({"a": entry(0, 8)}, b"\0" * 8, 10**6), "no whole safetensors"),
    "a header of a petabyte": (write_safetensors({"a": entry(0, 8)}, b"\0" * 8, 10**15), "no whole safetensors"),
    "overlapping offsets": (
        write_safetensors({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
        "no whole safetensors file.*invalid offset for tensor `b`",
    ),
    "offsets past the end": (write_safetensors({"a": entry(0, 8), "b": entry(8, 16)}, b"\0" * 8), "no whole safetens"),
    "a shape that is not the offsets'": (
        write_safetensors({"a": entry(0, 8, (3,))}, b"\0" * 8),
        "no whole safetensors",
    ),
    "a shape beyond all memory": (write_safetensors({"a": entry(0, 8, (2**62, 4))}, b"\0" * 8), "no whole safetensors"),
    "half a file": (truncate("model.safetensors"), "no whole safetensors"),
    "an empty file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "no whole safetensors"),
    "an index to the folder above": (index({WORDS: "../part.safetensors"}), "points outside its folder"),
    "an index to an absolute path": (index({WORDS: "/etc/passwd"}), "points outside its folder"),
    "an index to a file that is not there": (
        index({WORDS: "gone.safetensors"}),
        "names gone.safetensors, which is not",
    ),
    "an index that is a list": (index([]), "has no weight_map"),
    "one name in two shards": (two_shards_of_one_name, "holds .*, as another file of model.safetensors.index.json"),
    # pickles
    "a pickle that runs code": (save_pickle({"a": RunsCode()}), "was not loaded.*more than tensors"),
    "a plain pickle that runs code": (plain_pickle, "was not loaded"),
    "a pickle of something else": (save_pickle({"a": torch.zeros(2), "epoch": 3}), "'epoch' is no tensor but int"),
    "a pickle of a list": (save_pickle([torch.zeros(2)]), "holds list, not tensors by name"),
    "half a pickle": (truncated_pickle, "was not loaded: it is not whole"),
    # tensors
    "missing, extra and misshapen tensors": (
        tensors(misfits),
        r"qeury\.weight is not of this model \(nearest: .*query\.weight\); .*query\.weight is missing \(nearest: "
        r".*qeury\.weight\); cls\.predictions\.bias has shape \(59,\)",
    ),
    "a weight that is not transposed": (
        tensors(lambda state: state.update({n: a.T for n, a in state.items() if "intermediate.dense.weight" in n})),
        r"layer\.\{0, 1\}\.intermediate\.dense\.weight has shape \(24, 40\)",
    ),
    "float16": (
        tensors(lambda state: state.update({QUERY: state[QUERY].astype(np.float16)})),
        "1 of its tensors are float16 .*query.weight.*--cast",
    ),
    "int8": (
        tensors(lambda state: state.update({QUERY: state[QUERY].astype(np.int8)})),
        "query.weight has dtype int8, not float32",
    ),
    "tied tables with different values": (TWO_TABLES, f"{WORDS} and {DECODER} are tied, yet hold different values"),
    # config.json
    "relative positions": (change(position_embedding_type="relative_key"), "position_embedding_type='relative_key'"),
    "an unknown activation": (change(hidden_act="mish"), "hidden_act='mish'"),
    "a decoder": (change(is_decoder=True), "is_decoder=True"),
    "untied tables": (change(tie_word_embeddings=False), "tie_word_embeddings=False"),
    "a field that we do not know": (
        change(rotary_dim=4, alibi=False),
        r"not supported: rotary_dim=4 \(not known here\)",
    ),
    "a size of another type": (change(num_hidden_layers="2"), "num_hidden_layers='2' is no int"),
    "no layers": (change(num_hidden_layers=0), "num_hidden_layers=0 is not positive"),
    "more layers than memory": (change(num_hidden_layers=10**9), "1000000000 layers, but the source has only"),
    "heads that do not divide the width": (change(num_attention_heads=5), "5 does not divide model.hidden_size 24"),
    "JSON too deep to read": (
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "config.json: is not JSON",
    ),
    "two unsupported fields": (change(is_decoder=True, hidden_act="mish"), "hidden_act='mish'.*is_decoder=True"),
    "another architecture": (change(model_type="roberta"), "model_type='roberta' is not supported"),
    "one that nobody publishes": (change(model_type="gmlp"), "gmlp cannot be imported"),
    "no model_type": (change(model_type=None), "has no model_type"),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a config.json that is none": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    # the rest of the folder
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors and no pytorch"),
    "no tokenizer": (lambda folder: (folder / "vocab.txt").unlink(), "holds no tokenizer.json"),
    "a tokenizer with too many tokens": (
        lambda folder: write_tokenizer(folder, [*PIECES, "x1", "x2", "x3"]),
        "has 61 tokens, the weights have 60 rows",
    ),
    "a tokenizer without a mask": (
        lambda folder: write_tokenizer(folder, PIECES[:4] + PIECES[5:]),
        "has no mask_token",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_message_and_no_run_appears(what, copy, tmp_path, monkeypatch, capsys):
    spoil, message = BAD[what]
    spoil(copy)
    told = refused(monkeypatch, capsys, "--from=hf", f"--source={copy}", f"--workdir={tmp_path / 'run'}")
    assert re.search(message, told), told
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))
    assert not Path(__file__).with_name("was_run").exists()


def test_a_head_ratio_of_convbert_that_is_not_2_is_named(tmp_path, monkeypatch, capsys):
    folder = make_source("convbert", tmp_path / "source")
    change(head_ratio=3)(folder)
    told = refused(monkeypatch, capsys, "--from=hf", f"--source={folder}", f"--workdir={tmp_path / 'run'}")
    assert "head_ratio=3" in told


def test_a_body_alone_is_refused_without_the_flag_and_a_head_with_it(body, bert, tmp_path, monkeypatch, capsys):
    told = refused(monkeypatch, capsys, "--from=hf", f"--source={body}", f"--workdir={tmp_path / 'run'}")
    assert "holds no masked-LM head; --head=fresh" in told
    told = refused(
        monkeypatch, capsys, "--from=hf", f"--source={bert}", f"--workdir={tmp_path / 'run'}", "--head=fresh"
    )
    assert "has a masked-LM head" in told


FLAX = {
    "half a file": truncate("flax_model.msgpack"),
    "another type of value": lambda folder: (folder / "flax_model.msgpack").write_bytes(msgpack.packb({"a": 1})),
    "another ext type": lambda folder: (folder / "flax_model.msgpack").write_bytes(
        msgpack.packb({"a": msgpack.ExtType(5, b"x")})
    ),
    "an array larger than its bytes": lambda folder: (folder / "flax_model.msgpack").write_bytes(
        msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((2**40,), "float32", b"\0" * 8)))})
    ),
    "an array of objects": lambda folder: (folder / "flax_model.msgpack").write_bytes(
        msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"\0" * 8)))})
    ),
}


@pytest.mark.parametrize("what", FLAX)
def test_a_flax_file_that_is_none_is_one_message(what, flax, tmp_path, monkeypatch, capsys):
    FLAX[what](flax)
    told = refused(monkeypatch, capsys, "--from=flax", f"--source={flax}", f"--workdir={tmp_path / 'run'}")
    assert "is no whole file of Flax's" in told


def test_a_folder_of_flax_alone_is_told_how_to_be_read(flax, tmp_path, monkeypatch, capsys):
    told = refused(monkeypatch, capsys, "--from=hf", f"--source={flax}", f"--workdir={tmp_path / 'run'}")
    assert "it has Flax's: --from=flax" in told


def test_nothing_is_written_over(bert, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    told = refused(monkeypatch, capsys, "--from=hf", f"--source={bert}", f"--workdir={tmp_path / 'run'}")
    assert "exists; choose another" in told and (tmp_path / "run" / "mine").read_text() == "mine"
    told = refused(monkeypatch, capsys, "--from=hf", f"--source={tmp_path / 'gone'}", f"--workdir={tmp_path / 'new'}")
    assert "gone is not there" in told


def test_a_disk_that_cannot_be_written_is_one_message(bert, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    told = refused(monkeypatch, capsys, "--from=hf", f"--source={bert}", f"--workdir={tmp_path / 'file' / 'run'}")
    assert "--workdir: cannot write" in told
