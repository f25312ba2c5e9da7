"""gMLP-base and, with `:amlp`, aMLP-base (Liu et al. 2021, arXiv:2105.08050, §4), on your own text.

    ARGS="--config=configs/gmlp_base.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/gmlp_base

Published ("full BERT setup"): C4, batches of 256 rows of 512, 1,000,000 steps, peak rate 1e-4; masked perplexity 4.28
(gMLP), 3.95 (aMLP), 4.17 (their BERT-base). The optimizer's other settings are not published: BERT's are taken.
Hardware: a TPU v5e-16 or better in bfloat16. We have not run it at this size.
"""

from jaxbert.config import Checkpoint, Config, Data, Evaluation, Optimizer, Schedule, Tokenizer, Train, named_model


def get_config(variant: str = "gmlp") -> Config:
    return Config(
        tokenizer=Tokenizer(kind="unigram", vocab_size=32_000),
        data=Data(row_length=512),
        model=named_model(f"{variant}_base"),
        train=Train(batch_size=256, steps=1_000_000, dtype="bfloat16"),
        optimizer=Optimizer(learning_rate=1e-4, beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.01),
        schedule=Schedule(name="linear", warmup=10_000),
        evaluation=Evaluation(every=10_000),
        checkpoint=Checkpoint(every=5_000),
    )
