"""BERT-base trained as ModernBERT was (Warner et al. 2024, arXiv:2412.13663, §2.2): StableAdamW, growing batches.

    ARGS="--config=configs/modern_base.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/modern_base       # --config.train.tokens=100000000000 for less

Published, for their base: rows of 1,024, masking 30 %, no dropout, StableAdamW with 0.9, 0.98 and 1e-6, which clips
updates and leaves gradients alone, decay 1e-5 that follows the schedule and spares biases and norms, peak rate 8e-4
after 3 billion tokens, constant, then falling as 1 − √t over 50 billion; batches of 768 rows that grow to 4,608 over
the first 50 billion tokens, each size with as many steps; 1.7 trillion tokens. Not theirs: the encoder, which is Devlin
et al.'s, the vocabulary, z-loss 1e-4 (their code has it as a switch: src/bert_layers/configuration_bert.py,
`return_z_loss`), and no stage of longer rows. A shorter run than 100 billion tokens needs a shorter ramp. Hardware: a
TPU v5e-16 or better, one row a chip at once at first and six at last. We have not run it at this size.
"""

from jaxbert import recipes
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

T = 1024


def get_config() -> Config:
    return Config(
        tokenizer=Tokenizer(kind="unigram", vocab_size=50_000),
        data=Data(row_length=T),
        model=named_model("bert_base", max_positions=T, hidden_dropout=0.0, attention_dropout=0.0),
        objective=Objective(mask_rate=0.3, z_loss=1e-4),
        train=Train(
            batch_size=4608,
            tokens=1_700_000_000_000,
            phases=recipes.ramp(768, 4608, by=768, positions=50e9, row_length=T),
            dtype="bfloat16",
            accumulate=48,
        ),
        optimizer=Optimizer(
            name="stable_adamw",
            learning_rate=8e-4,
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-6,
            weight_decay=1e-5,
            decay_follows="schedule",
            clip_norm=0.0,
        ),
        schedule=Schedule(
            name="wsd", warmup=round(3e9 / (768 * T)), decay=round(50e9 / (4608 * T)), decay_shape="1-sqrt"
        ),
        evaluation=Evaluation(every=2_000),
        checkpoint=Checkpoint(every=1_000),
    )
