"""BERT-large on Wikipedia dumps and web text that you have, in RoBERTa's way, on a TPU v5e-16, a v4-8 or one H100.

    ARGS="--config=configs/web_large.py:v5e-16 --config.corpus.language=pl"      # text as in web_base.py
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/web_large

From Liu et al. 2019 (RoBERTa, arXiv:1907.11692), table 9, large: rows of 512, batches of 8,192 ("8k"), Adam with 0.9,
0.98 and 1e-6, decay 0.01 (of every parameter: facebookresearch/fairseq, fairseq/trainer.py), peak rate 4e-4, linear to
0, dropout 0.1, no clipping; 30,000 of 500,000 steps are warm-up, 6 %. 100,000 steps as in the first of its table 4's
lengths: 419 billion positions. Ours: the vocabulary (theirs 50,000 byte pairs), bfloat16 (theirs float16), and no
dropout of attention's probabilities, as in web_base.py: with it every layer's scores are kept, and on four v5e a step
moves 31.4 TB of HBM a device in place of 8.2, by `python -m jaxbert.plan --topology=v5e:2x2` with and without
--config.model.attention_dropout=0.1 (docs/plans.md). Izsak et al. 2021 (arXiv:2104.07705;
IntelLabs/academic-budget-bert) train the same size in a day at 1e-3, rows of 128, batches of 4,096, but with norms
before the blocks, which this BERT has behind them. Parameters and moments are spread over the devices of a TPU (fsdp).
Nothing of this ran on a TPU or a GPU.
"""

from jaxbert import recipes
from jaxbert.config import (
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Optimizer,
    Schedule,
    Sharding,
    Tokenizer,
    Train,
    named_model,
)


def get_config(machine: str = "v5e-16") -> Config:
    return Config(
        corpus=recipes.wikipedia_and_web(),
        tokenizer=Tokenizer(kind="unigram", vocab_size=50_000),
        data=Data(row_length=512),
        model=named_model("bert_large", attention_dropout=0.0),
        train=Train(
            batch_size=8192,
            steps=100_000,
            dtype="bfloat16",
            accumulate=recipes.accumulate(machine, "large", 8192 * 512),
        ),
        optimizer=Optimizer(
            learning_rate=4e-4, beta1=0.9, beta2=0.98, epsilon=1e-6, weight_decay=0.01, decays="all", clip_norm=0.0
        ),
        schedule=Schedule(name="linear", warmup=0.06),
        sharding=Sharding(data=1, fsdp=-1),
        evaluation=Evaluation(every=2000),
        checkpoint=Checkpoint(every=500),
    )
