"""ConvBERT-base (Jiang et al. 2020, arXiv:2008.02496; yitu-opensource/ConvBert), as a masked language model.

    ARGS="--config=configs/convbert_base.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/convbert_base

The published models were trained to tell replaced tokens (ELECTRA): batches of 256 rows of 128, 1,000,000 steps, peak
rate 2e-4 after 10,000 steps, GLUE 86.4. Here the objective is masked language modelling, which their code has too
(`electra_objective=False`); the optimizer's settings are theirs, without bias correction as in ELECTRA's
model/optimization.py. Hardware: a TPU v5e-16 or better in bfloat16. We have not run it at this size.
"""

from jaxbert.config import Checkpoint, Config, Data, Evaluation, Optimizer, Schedule, Tokenizer, Train, named_model


def get_config() -> Config:
    return Config(
        tokenizer=Tokenizer(kind="wordpiece", vocab_size=30_522),
        data=Data(row_length=128),
        model=named_model("convbert_base"),
        train=Train(batch_size=256, steps=1_000_000, dtype="bfloat16"),
        optimizer=Optimizer(
            learning_rate=2e-4, beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.01, bias_correction=False
        ),
        schedule=Schedule(name="linear", warmup=10_000),
        evaluation=Evaluation(every=10_000),
        checkpoint=Checkpoint(every=5_000),
    )
