"""HyperMixer (Mai et al. 2023, arXiv:2203.03691) at the size of BERT-base, on your own text.

    ARGS="--config=configs/hypermixer_base.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/hypermixer_base

Nobody published a pretrained HyperMixer: the paper trains small classifiers. Only the token mixing is theirs; the
encoder around it, its size and this recipe are ours (models/hypermixer.py says why). Hardware: a TPU v5e-16 or better
in bfloat16. We have not run it at this size.
"""

from jaxbert.config import Checkpoint, Config, Data, Evaluation, Optimizer, Schedule, Tokenizer, Train, named_model


def get_config() -> Config:
    return Config(
        tokenizer=Tokenizer(kind="unigram", vocab_size=32_000),
        data=Data(row_length=512),
        model=named_model("hypermixer_base"),
        train=Train(batch_size=256, steps=250_000, dtype="bfloat16"),
        optimizer=Optimizer(learning_rate=4e-4, beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.01),
        schedule=Schedule(name="linear", warmup=10_000),
        evaluation=Evaluation(every=10_000),
        checkpoint=Checkpoint(every=5_000),
    )
