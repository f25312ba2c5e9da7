"""BERT-base as published (Devlin et al. 2019, §3 and A.2; google-research/bert README), on your own text.

    ARGS="--config=configs/bert_base.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/base_128
    python -m jaxbert.train   --config=configs/bert_base.py:long --config.corpus.language=pl \\
                              --config.model.initialize_from=runs/base_128 --workdir=runs/base_512

Published: batches of 256 rows, 1,000,000 steps, 90 % of them at 128 tokens and 10 % at 512 (`:long`), peak rate 1e-4
after 10,000 steps, no bias correction: 29.5 billion and 13.1 billion positions. GLUE test average 79.6. Differences of
this recipe: no next-sentence prediction, rows are packed and therefore full, every epoch masks anew.
Hardware: a TPU v5e-16 or better in bfloat16. We have not run it at this size.
"""

from jaxbert.config import (
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Objective,
    Optimizer,
    Schedule,
    Tokenizer,
    Train,
    named_model,
)


def get_config(variant: str = "") -> Config:
    long = variant == "long"
    return Config(
        tokenizer=Tokenizer(kind="wordpiece", vocab_size=30_522),
        data=Data(row_length=512 if long else 128),
        model=named_model("bert_base", activation="gelu_tanh"),
        objective=Objective(mask_rate=0.15),
        train=Train(batch_size=256, steps=100_000 if long else 900_000, dtype="bfloat16"),
        optimizer=Optimizer(
            learning_rate=1e-4, beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.01, bias_correction=False
        ),
        schedule=Schedule(name="linear", warmup=10_000),
        evaluation=Evaluation(every=10_000),
        checkpoint=Checkpoint(every=5_000),
    )
