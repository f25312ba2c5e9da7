"""A new vocabulary on an old body: English MiniLM to Galician."""

from jaxbert.config import (
    Checkpoint,
    Config,
    Corpus,
    Data,
    Evaluation,
    Objective,
    Optimizer,
    Schedule,
    Tokenizer,
    Train,
    named_model,
)
from jaxbert.errors import BadInput

VARIANTS = ("scratch", "copy", "mean", "similarity")


def get_config(variant: str = "mean") -> Config:
    if variant not in VARIANTS:
        raise BadInput(f"--config: no variant {variant!r} of transfer_gl.py; there are {', '.join(VARIANTS)}")
    return Config(
        corpus=Corpus(language="gl"),  # data/gl, which configs/demo_gl.py prepares
        tokenizer=Tokenizer(kind="unigram", vocab_size=8192),
        data=Data(row_length=128),
        model=named_model(
            "bert_L6_D512",  # MiniLM's six layers, its other sizes follow
            hidden_size=384,
            num_heads=12,
            feed_forward_size=1536,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            initialize_from="" if variant == "scratch" else f"runs/minilm_gl_{variant}",
        ),
        objective=Objective(mask_rate=0.25),
        train=Train(batch_size=8, steps=400, log_every=50),
        optimizer=Optimizer(learning_rate=5e-4),
        schedule=Schedule(name="constant", warmup=50),
        evaluation=Evaluation(every=200, rows=256),
        checkpoint=Checkpoint(every=400),
    )
