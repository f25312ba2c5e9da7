"""Monarch Mixer BERT at 80M, or with `:110M` at 110M (Fu et al. 2023, arXiv:2310.12109; HazyResearch/m2), on your text.

    ARGS="--config=configs/m2_base.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/m2_base

Published: C4, batches of 4,096 rows of 128, 70,000 steps (36.5 billion positions), masking 30 % (15 % held out), peak
rate 8e-4 after 6 % of the steps, linear to 2 %, clipping at 1, Composer's DecoupledAdamW, whose decay of 1e-5 follows
the schedule, not the rate, and reaches every parameter; GLUE 79.9 (80M), 80.9 (110M). Their filters have a rate and a
decay of their own (bert/src/optim/create_param_groups.py); here they have everybody's. One document a row: a
convolution runs over the whole row, so rows cannot be shared (models/m2.py). Hardware: a TPU v5e-64 or better in
bfloat16. We have not run it at this size.
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


def get_config(variant: str = "80M") -> Config:
    return Config(
        tokenizer=Tokenizer(kind="wordpiece", vocab_size=30_522),
        data=Data(row_length=128),
        model=named_model(f"m2_{variant}"),
        objective=Objective(mask_rate=0.3),
        train=Train(batch_size=4096, steps=70_000, dtype="bfloat16"),
        optimizer=Optimizer(
            learning_rate=8e-4,
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-6,
            weight_decay=1e-5,
            decay_follows="schedule",
            decays="all",
        ),
        schedule=Schedule(name="linear", warmup=0.06, final=0.02),
        evaluation=Evaluation(every=5_000),
        checkpoint=Checkpoint(every=1_000),
    )
