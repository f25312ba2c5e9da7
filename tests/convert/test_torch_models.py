"""The PyTorch classes that exports carry: what our JAX models compute, as transformers users load, train and save them.

Every row of tests/models/encoders.py whose encoder has a modeling file is tested; a new row needs no entry here.
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxbert import config, export
from jaxbert.convert import exporter
from jaxbert.convert.key_map import Row, flatten, from_torch, to_torch
from jaxbert.models.heads import MaskedLM, SequenceHead, TokenHead
from tests.models.encoders import POSITIONS, SMALL, VOCABULARY

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

CASES = {name: size for name, size in SMALL.items() if hasattr(exporter(size.name), "MODELING")}
FAMILIES = {size.name: name for name, size in CASES.items()}  # one case of each
LENGTHS = {"padded": (1, 7, POSITIONS, 23), "full rows": (17, 17)}
LABELS = 3
OLD = Path(sys.prefix) / "transformers457/bin/python"  # an environment with the older transformers
TEXT_HEAD = [
    Row("pooler/kernel_DD", "pooler.dense.weight", "transpose"),
    Row("pooler/bias_D", "pooler.dense.bias"),
    Row("kernel_DG", "classifier.weight", "transpose"),
    Row("bias_G", "classifier.bias"),
]
TOKEN_HEAD = TEXT_HEAD[2:]


@pytest.fixture(autouse=True, scope="module")
def modules_cache():
    """transformers copies the folders' code to a place that goes away."""
    transformers.utils.logging.set_verbosity_error()
    with export._own_modules_cache():
        yield


def random_model(size, mask_mode="exact"):
    """The encoder with its masked-LM head, every parameter random, float64 NumPy; the same in either mask mode."""
    size = dataclasses.replace(size, mask_mode=mask_mode)
    encoder = config.family(size.name).Encoder
    abstract = jax.eval_shape(lambda: MaskedLM(encoder, size, VOCABULARY, jax.random.key(0)))
    random = np.random.default_rng(1)
    model = jax.tree.map(lambda x: 0.2 * random.normal(size=x.shape), abstract)
    tables = {row.ours for row in exporter(size.name).masked_lm(size) if row.transform == "vocabulary"}
    for name, leaf in flatten(model).items():
        if name in tables:
            leaf[VOCABULARY:] = 0.0
    return model


def write_folder(size, folder: Path, dtype="float64"):
    """What an export of this model holds, without its tokenizer. Returns the tensors."""
    module = exporter(size.name)
    state = to_torch(random_model(size), module.masked_lm(size), VOCABULARY, module.torch_shapes(size))
    folder.mkdir()
    save_file({name: a.astype(dtype) for name, a in state.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(module.to_hf_config(size, VOCABULARY, 0)))
    for name in (module.MODELING, export.SHARED):
        shutil.copyfile(export.CODE / name, folder / name)
    return state


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A configuration and its folder."""
    folder = tmp_path_factory.mktemp("torch") / request.param
    write_folder(CASES[request.param], folder)
    return CASES[request.param], folder


def load(folder, auto="AutoModelForMaskedLM", dtype="float64", **options):
    cls = getattr(transformers, auto)
    options = {"dtype": getattr(torch, dtype), "trust_remote_code": True, "local_files_only": True} | options
    return cls.from_pretrained(str(folder), **options)


def batch_of(lengths):
    """A ragged batch, token types on the right of each row's middle."""
    random, longest = np.random.default_rng(2), max(lengths)
    length_B = np.array(lengths, np.int32)
    real_BT = np.arange(longest) < length_B[:, None]
    return {
        "input_ids_BT": np.where(real_BT, random.integers(0, VOCABULARY, real_BT.shape), 0).astype(np.int32),
        "segment_ids_BT": real_BT.astype(np.int32),
        "position_ids_BT": np.tile(np.arange(longest, dtype=np.int32), (len(lengths), 1)),  # through padding, as theirs
        "token_type_ids_BT": (real_BT & (np.arange(longest) * 2 > length_B[:, None])).astype(np.int32),
        "length_B": length_B,
    }


def theirs(batch, mask=True):
    names = {"input_ids_BT": "input_ids", "token_type_ids_BT": "token_type_ids", "segment_ids_BT": "attention_mask"}
    given = {name: torch.from_numpy(batch[ours]).long() for ours, name in names.items()}
    return given if mask else {name: tensor for name, tensor in given.items() if name != "attention_mask"}


@functools.cache
def ours(size, mask_mode, lengths):
    """Final states, hidden states and logits of the random model for `batch_of(lengths)`, float64 NumPy."""

    @jax.jit
    def outputs(model, batch):
        x_BTD, extras = model.encoder(batch, collect=("hidden_states",))
        return x_BTD, extras["hidden_states"], model.head(x_BTD, model.encoder.embedding_VD, VOCABULARY)

    with jax.enable_x64(True):
        x_BTD, states_LBTD, logits_BTV = outputs(random_model(size, mask_mode), batch_of(lengths))
        return np.asarray(x_BTD), np.asarray(states_LBTD), np.asarray(logits_BTV)[..., :VOCABULARY]


def modes(size):
    return ("exact", "reference") if config.family(size.name).Encoder.reference_reads_padding else ("exact",)


@pytest.mark.parametrize(
    "lengths", [LENGTHS["padded"], pytest.param(LENGTHS["full rows"], marks=pytest.mark.slow)], ids=LENGTHS
)
def test_states_and_logits_are_ours_in_float64(case, lengths):
    size, folder = case
    batch = batch_of(lengths)
    real_BT = batch["segment_ids_BT"] > 0
    for mask_mode in modes(size):
        x_BTD, states_LBTD, logits_BTV = ours(size, mask_mode, lengths)
        with torch.inference_mode():
            found = load(folder, mask_mode=mask_mode)(**theirs(batch), output_hidden_states=True)
            body = load(folder, "AutoModel", mask_mode=mask_mode)(**theirs(batch)).last_hidden_state
        assert len(found.hidden_states) == len(states_LBTD) == size.num_layers + 1
        for layer, (a, b) in enumerate(zip(found.hidden_states, states_LBTD, strict=True)):
            assert np.abs(a.numpy() - b)[real_BT].max() <= 1e-9, f"{mask_mode}: hidden states {layer}"
        assert np.abs(body.numpy() - x_BTD)[real_BT].max() <= 1e-9, mask_mode
        assert np.abs(found.logits.numpy() - logits_BTV)[real_BT].max() <= 1e-9, mask_mode


def test_without_a_mask_every_token_is_real(case):
    model, batch = load(case[1]), batch_of(LENGTHS["padded"])
    with torch.inference_mode():
        everything = theirs(batch | {"segment_ids_BT": np.ones_like(batch["segment_ids_BT"])})
        assert torch.equal(model(**theirs(batch, mask=False)).logits, model(**everything).logits)


def test_every_tensor_of_the_file_is_read_and_none_is_left_over(case):
    _, info = load(case[1], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


HEADS = {
    "AutoModelForSequenceClassification": (SequenceHead, TEXT_HEAD, (len(LENGTHS["padded"]),)),
    "AutoModelForTokenClassification": (TokenHead, TOKEN_HEAD, (len(LENGTHS["padded"]), POSITIONS)),
}


@pytest.mark.parametrize("auto", HEADS)
def test_a_classifier_reads_the_body_and_scores_as_our_head_does(case, auto):
    size, folder = case
    head_class, rows, shape = HEADS[auto]
    batch = batch_of(LENGTHS["padded"])
    model, info = load(folder, auto, num_labels=LABELS, output_loading_info=True)
    assert set(info["missing_keys"]) == {row.theirs for row in rows}
    assert not any(name.startswith(model.base_model_prefix) for name in info["unexpected_keys"])
    with torch.no_grad():
        for row in rows:
            model.get_parameter(row.theirs).normal_()
        logits = model(**theirs(batch)).logits.numpy()
    state = {row.theirs: model.get_parameter(row.theirs).detach().numpy() for row in rows}
    with jax.enable_x64(True):
        abstract = jax.eval_shape(lambda: head_class(size, LABELS, rngs=nnx.Rngs(0)))
        head = jax.tree.map(jnp.asarray, from_torch(state, rows, abstract))
        expected = np.asarray(head(jnp.asarray(ours(size, "exact", LENGTHS["padded"])[0])))
    real = batch["segment_ids_BT"] > 0 if len(shape) == 2 else slice(None)
    assert logits.shape == (*shape, LABELS) and np.abs(logits - expected)[real].max() <= 1e-9


LOSSES = {  # labels of four texts, how many scores a text has, what is meant
    "classes": (torch.tensor([0, 2, 1, 0]), LABELS, torch.nn.functional.cross_entropy),
    "sets of classes": (
        torch.tensor([[1.0, 0.0, 1.0]] * 4),
        LABELS,
        torch.nn.functional.binary_cross_entropy_with_logits,
    ),
    "numbers": (torch.rand(4), 1, lambda logits, labels: torch.nn.functional.mse_loss(logits[:, 0], labels)),
}


@pytest.mark.parametrize("what", LOSSES)
def test_the_loss_of_texts_follows_from_the_labels(case, what):
    labels, count, loss = LOSSES[what]
    found = load(case[1], "AutoModelForSequenceClassification", num_labels=count)(
        **theirs(batch_of(LENGTHS["padded"])), labels=labels
    )
    torch.testing.assert_close(found.loss, loss(found.logits.float(), labels))


def test_labels_of_minus_100_are_not_predicted(case):
    model, batch = load(case[1]), theirs(batch_of(LENGTHS["padded"]))
    labels = torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
    found = model(**batch, labels=labels)
    log_p = found.logits.log_softmax(-1)
    picked = [log_p[b, t, labels[b, t]] for b, t in (labels != -100).nonzero().tolist()]
    assert abs(found.loss.item() + torch.stack(picked).mean().item()) <= 1e-6
    found.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_input_that_would_be_ignored_is_refused(case):
    model = load(case[1])
    with pytest.raises(ValueError, match="does not support position_ids"):
        model(**theirs(batch_of((3, 3))), position_ids=torch.zeros(2, 3))


@pytest.mark.parametrize("auto", ["AutoModelForMaskedLM", *HEADS])
def test_save_pretrained_writes_what_was_read_once_each_and_the_code_with_it(case, auto, tmp_path):
    _, folder = case
    model = load(folder, auto, **({} if auto == "AutoModelForMaskedLM" else {"num_labels": LABELS}))
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, array in load_file(folder / "model.safetensors").items():
        if auto == "AutoModelForMaskedLM" or name.startswith(model.base_model_prefix):
            np.testing.assert_array_equal(saved.pop(name), array, strict=True, err_msg=name)
    assert set(saved) == (set() if auto == "AutoModelForMaskedLM" else {row.theirs for row in HEADS[auto][1]})
    batch = theirs(batch_of(LENGTHS["padded"]))
    with torch.inference_mode():
        found = load(tmp_path / "saved", auto)(**batch).logits
        torch.testing.assert_close(found, model.eval()(**batch).logits, rtol=0, atol=1e-12)  # sums in another order


def test_bfloat16_computes_the_same_to_its_own_precision(case):
    size, folder = case
    batch = batch_of(LENGTHS["padded"])
    model = load(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        found = model(**theirs(batch)).logits
        exact = model.double()(**theirs(batch)).logits  # of the same, rounded weights
    real_BT = torch.from_numpy(batch["segment_ids_BT"] > 0)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact)[real_BT].norm() <= 0.1 * exact[real_BT].norm()


def test_a_larger_vocabulary_keeps_the_old_words_logits_and_stays_tied(case):
    model, batch = load(case[1]), theirs(batch_of((9, 9)))
    with torch.inference_mode():
        before = model(**batch).logits
        model.resize_token_embeddings(VOCABULARY + 3)
        after = model(**batch).logits
    assert after.shape[-1] == VOCABULARY + 3
    torch.testing.assert_close(after[..., :VOCABULARY], before)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.slow
@pytest.mark.parametrize("auto", ["AutoModelForMaskedLM", *HEADS])
@pytest.mark.parametrize("name", FAMILIES.values())
def test_a_trainer_trains_and_what_it_saves_loads(name, auto, tmp_path):
    pytest.importorskip("accelerate", reason="the Trainer needs it; make test-slow installs it")
    write_folder(CASES[name], tmp_path / "model", "float32")
    model = load(tmp_path / "model", auto, dtype="float32")
    batch = theirs(batch_of(LENGTHS["padded"]))
    if auto == "AutoModelForSequenceClassification":
        batch["labels"] = torch.tensor([0, 1, 1, 0])
    else:
        batch["labels"] = torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)
        batch["labels"] %= 2 if auto == "AutoModelForTokenClassification" else VOCABULARY
        batch["labels"][batch["attention_mask"] == 0] = -100
    rows = [{name: tensor[b] for name, tensor in batch.items()} for b in range(4)]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=60,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert np.mean(losses[-5:]) < losses[0] - 0.05
    trainer.save_model(str(tmp_path / "saved"))
    with torch.inference_mode():
        expected = model.eval()(**batch)
        found = load(tmp_path / "saved", auto, dtype="float32")(**batch)
    assert torch.equal(found.logits, expected.logits) and abs(losses[0] - expected.loss.item()) > 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not OLD.exists(), reason="no environment with transformers 4.57; make test-slow makes it")
def test_transformers_4_57_loads_saves_and_computes_the_same(case, tmp_path):
    size, folder = case
    batch = batch_of(LENGTHS["padded"])
    np.savez(tmp_path / "given.npz", **{name: t.numpy() for name, t in theirs(batch).items()})
    script = Path(__file__).with_name("old_transformers.py")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([OLD, script, folder, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4.57.")
    logits_BTV, real_BT = ours(size, "exact", LENGTHS["padded"])[2], batch["segment_ids_BT"] > 0
    assert np.abs(np.load(tmp_path / "logits.npy") - logits_BTV)[real_BT].max() <= 1e-9
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, array in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(saved.pop(name), array, strict=True, err_msg=name)
    assert not saved
