"""Our model, loss, gradients and optimizer against PyTorch's, in float64 and from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert import config, objectives, optim
from jaxbert.convert import bert as convert
from jaxbert.convert.key_map import from_torch, to_torch
from jaxbert.data.source import position_ids
from jaxbert.step import initial_state, make_update

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, PAD, MASK, LENGTH, ROWS, PREDICTIONS = 203, 0, 4, 24, 6, 5


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Products this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe(activation: str = "gelu") -> config.Config:
    model = config.named_model(
        "bert_tiny",
        num_layers=3,
        hidden_size=32,
        num_heads=4,
        feed_forward_size=48,
        max_positions=40,
        activation=activation,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return config.resolve(
        config.Config(
            model=model,
            train=config.Train(steps=50, batch_size=ROWS),
            optimizer=config.Optimizer(learning_rate=2e-3, weight_decay=0.1, clip_norm=0.5),
            schedule=config.Schedule(warmup=0.2),
        )
    )


def pair(settings: config.Config):
    """transformers' model and ours with its weights, both float64; every weight, bias and norm is random."""
    hf_config = convert.to_hf_config(settings.model, VOCAB, PAD)
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**hf_config)).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    objective = objectives.make(settings, vocab_size=VOCAB, mask_id=MASK, special_ids=frozenset(range(5)))
    objective.dtype = jnp.dtype("float64")
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return theirs, objective, jax.tree.map(jnp.asarray, from_torch(state, convert.MASKED_LM, abstract))


def batches(count: int) -> list[dict[str, np.ndarray]]:
    """Ragged rows of random tokens with random predictions, some of them filling."""
    random, made = np.random.default_rng(1), []
    for _ in range(count):
        length_B = random.integers(PREDICTIONS + 2, LENGTH + 1, ROWS)
        real_BT = np.arange(LENGTH) < length_B[:, None]
        segment_ids_BT = real_BT.astype(np.int32)
        ids_BT = np.where(real_BT, random.integers(5, VOCAB, (ROWS, LENGTH)), PAD).astype(np.int32)
        positions_BP = np.stack([random.permutation(n)[:PREDICTIONS] for n in length_B]).astype(np.int32)
        labels_BP = np.take_along_axis(ids_BT, positions_BP, axis=1)
        np.put_along_axis(ids_BT, positions_BP[:, 1:3], MASK, axis=1)
        weights_BP = (np.arange(PREDICTIONS) < random.integers(1, PREDICTIONS + 1, (ROWS, 1))).astype(np.float32)
        made.append(
            {
                "input_ids_BT": ids_BT,
                "segment_ids_BT": segment_ids_BT,
                "position_ids_BT": position_ids(segment_ids_BT),
                "positions_BP": positions_BP,
                "labels_BP": labels_BP,
                "weights_BP": weights_BP,
                "tokens_B": length_B.astype(np.int32),
            }
        )
    return made


def torch_loss(model, batch: dict[str, np.ndarray]):
    """PyTorch's own loss: the mean over labels that are not −100."""
    labels_BT = np.full(batch["input_ids_BT"].shape, -100)
    for row, (positions, labels, weights) in enumerate(
        zip(batch["positions_BP"], batch["labels_BP"], batch["weights_BP"], strict=True)
    ):
        labels_BT[row, positions[weights > 0]] = labels[weights > 0]
    return model(
        input_ids=torch.from_numpy(batch["input_ids_BT"]).long(),
        attention_mask=torch.from_numpy(batch["segment_ids_BT"]).long(),
        labels=torch.from_numpy(labels_BT),
    ).loss


def inputs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in batch.items() if name != "tokens_B"}


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_loss_and_every_gradient_of_a_step_are_pytorchs(activation):
    settings, (batch,) = recipe(activation), batches(1)
    with jax.enable_x64(True):
        theirs, objective, model = pair(settings)

        def mean_loss(model):
            total, count, _ = objective.loss(model, inputs(batch), jax.random.key(0))
            return total / count

        loss, gradients = jax.jit(jax.value_and_grad(mean_loss))(model)
        expected = torch_loss(theirs, batch)
        expected.backward()
        assert loss.dtype == jnp.float64 and abs(float(loss) - expected.item()) <= 1e-9
        ours = to_torch(gradients, convert.MASKED_LM, VOCAB, convert.torch_shapes(settings.model))
        padded_VD = np.asarray(gradients.encoder.embeddings.word_VD[...])[VOCAB:]
    named = dict(theirs.named_parameters())
    assert set(ours) == set(named)
    for name, parameter in named.items():
        assert np.abs(parameter.grad.numpy()).max() > 1e-9 or name.endswith("key.bias"), name  # softmax cancels it
        assert np.abs(ours[name] - parameter.grad.numpy()).max() <= 1e-9, name
    assert padded_VD.size and not padded_VD.any()


@pytest.mark.slow
def test_50_adamw_steps_from_the_same_weights_give_pytorchs_losses():
    settings = recipe()
    schedule = optim.make_schedule(settings.schedule, settings.optimizer.learning_rate, settings.train.steps)
    adamw, found, expected, clipped = settings.optimizer, [], [], 0
    with jax.enable_x64(True):
        theirs, objective, model = pair(settings)
        groups = [
            {"params": [p for n, p in theirs.named_parameters() if is_decayed(n) == decayed], "weight_decay": rate}
            for decayed, rate in ((True, adamw.weight_decay), (False, 0.0))
        ]
        optimizer = torch.optim.AdamW(groups, betas=(adamw.beta1, adamw.beta2), eps=adamw.epsilon)
        ours = optim.make_optimizer(adamw, objective.vocab_size)
        update = jax.jit(make_update(objective, ours, schedule, settings))
        counters = jax.eval_shape(lambda: initial_state(objective, ours, jax.random.key(0))["counters"])
        zeros = {name: jnp.zeros((), jnp.int32 if s.dtype == jnp.int32 else float) for name, s in counters.items()}
        state = {"model": model, "optimizer": ours.init(model), "counters": zeros}
        for step, batch in enumerate(batches(settings.train.steps)):
            state, told = update(state, {name: array[None] for name, array in batch.items()})
            found.append(float(told["loss"]))
            optimizer.zero_grad()
            loss = torch_loss(theirs, batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), adamw.clip_norm)
            clipped += float(norm) > adamw.clip_norm
            for group in optimizer.param_groups:
                group["lr"] = float(schedule(step))
            optimizer.step()
            expected.append(loss.item())
    difference = np.abs(np.array(found) - np.array(expected))
    assert clipped >= 10 and np.ptp(expected) > 0.1
    assert difference.max() <= 1e-8


def is_decayed(name: str) -> bool:
    return name.endswith("weight") and "LayerNorm" not in name
