"""BERT-large in batches of 65,536 rows, with LAMB (You et al. 2020, arXiv:1904.00962), on your own text.

    ARGS="--config=configs/bert_large_lamb.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/large_128
    python -m jaxbert.train   --config=configs/bert_large_lamb.py:long --config.corpus.language=pl \\
                              --config.model.initialize_from=runs/large_128 --workdir=runs/large_512

The paper has 8,599 steps in two stages, 76 minutes on 1,024 TPU v3, SQuAD v1.1 F1 90.58 (table 1), and not all of its
settings; these are NVIDIA's for the same two stages (DeepLearningExamples, PyTorch/LanguageModeling/BERT,
scripts/configs/pretrain_config.sh): 7,038 steps of 65,536 rows of 128 at 6e-3 after 28.43 %, then 1,563 of 32,768 rows
of 512 (`:long`) at 4e-3 after 12.8 %; betas, epsilon and decay are BERT's. The second stage has new moments and a
warm-up of its own. Ours: the rate falls linearly, as in the paper (theirs with a square root), no next-sentence
prediction, packed rows. Hardware: 256 TPU v5e, 16 rows of 128 at once on each. We have not run it at this size.
"""

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


def get_config(variant: str = "") -> Config:
    long = variant == "long"
    return Config(
        tokenizer=Tokenizer(kind="wordpiece", vocab_size=30_522),
        data=Data(row_length=512 if long else 128),
        model=named_model("bert_large", activation="gelu_tanh"),
        train=Train(
            batch_size=32_768 if long else 65_536,
            steps=1_563 if long else 7_038,
            dtype="bfloat16",
            accumulate=32 if long else 16,
        ),
        optimizer=Optimizer(
            name="lamb", learning_rate=4e-3 if long else 6e-3, beta1=0.9, beta2=0.999, epsilon=1e-6, weight_decay=0.01
        ),
        schedule=Schedule(name="linear", warmup=0.128 if long else 0.2843),
        sharding=Sharding(data=1, fsdp=-1),
        evaluation=Evaluation(every=500),
        checkpoint=Checkpoint(every=100),
    )
