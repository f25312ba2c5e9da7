"""BERT-base on Wikipedia dumps and web text that you have, in MosaicBERT's way, on a TPU v5e-16, a v4-8 or one H100.

    mkdir wikipedia web    # *.xml.bz2 of dumps.wikimedia.org; *.parquet with a column `text` (corpus.text_field)
    ARGS="--config=configs/web_base.py:v5e-16 --config.corpus.language=pl"       # or :v4-8, or :h100
    python -m jaxbert.prepare $ARGS --sample=1000 && python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/web_base

From Portes et al. 2023 (MosaicBERT, arXiv:2312.17482) by its file examples/benchmarks/bert/yamls/main/
mosaic-bert-base-uncased.yaml (mosaicml/examples): rows of 128, batches of 4,096, 286,720,000 rows = 70,000 steps,
masking 30 % (15 % held out), AdamW with 0.9, 0.98 and 1e-6, peak rate 5e-4 after 6 %, linear to 2 %, no attention
dropout, bfloat16. The last tenth of the steps reads as many positions in rows of 512, as Devlin et al. 2019 (A.2) do.
The decay of 1e-5 follows the schedule, not the rate, and reaches every parameter (Composer's DecoupledAdamW).
Ours: the vocabulary, and BERT as Devlin et al. have it where theirs has ALiBi and gated units. Weights and cleaning of
the sources and the parts of a batch are in jaxbert/recipes.py, ours too. Nothing of this ran on a TPU or a GPU.
"""

from jaxbert import recipes
from jaxbert.config import (
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Objective,
    Optimizer,
    Phase,
    Schedule,
    Tokenizer,
    Train,
    named_model,
)


def get_config(machine: str = "v5e-16") -> Config:
    return Config(
        corpus=recipes.wikipedia_and_web(),
        tokenizer=Tokenizer(kind="unigram", vocab_size=32_000),
        data=Data(row_length=128),
        model=named_model("bert_base", attention_dropout=0.0),
        objective=Objective(mask_rate=0.3),
        train=Train(
            batch_size=4096,
            steps=70_000,
            phases=(Phase(until=0.9), Phase(row_length=512)),
            dtype="bfloat16",
            accumulate=recipes.accumulate(machine, "base", 4096 * 128),
        ),
        optimizer=Optimizer(
            learning_rate=5e-4,
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-6,
            weight_decay=1e-5,
            decay_follows="schedule",
            decays="all",
        ),
        schedule=Schedule(name="linear", warmup=0.06, final=0.02),
        evaluation=Evaluation(every=2000),
        checkpoint=Checkpoint(every=1000),
    )
