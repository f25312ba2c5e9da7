"""BERT on your own text, in your own language: only `corpus.input` and `corpus.language` must be given.

    ARGS="--config=configs/own_text.py --config.corpus.input=texts/**/*.txt --config.corpus.language=pl"
    python -m jaxbert.prepare $ARGS --sample=1000 --show=20
    python -m jaxbert.prepare $ARGS
    python -m jaxbert.train   $ARGS --workdir=runs/pl

What people change first:
    --config.corpus.document=file              a document a file (default: blocks between blank lines)
    --config.corpus.text_field=body            of JSON lines
    --config.corpus.clean.identify_language=false    for a language that the identifier does not know
    --config.tokenizer.vocab_size=32000        the error says the largest that a small text supports
    --config.model.name=bert_base --config.train.dtype=bfloat16      on a TPU or a GPU
    --config.train.epochs=40                   the schedule's end alone depends on the length, so a run can be prolonged

Several sources, with weights and cleaning of their own, are given in a copy of this file (jaxbert.config.Source):
    corpus=Corpus(language="pl", sources=(Source(("web/*.parquet",)), Source(("law/*.txt",), name="law", weight=2.0)))
General text in short rows first, then the domain in longer ones, are phases of one run (jaxbert.config.Phase). Weights
name sources as corpus.json does:
    train=Train(batch_size=128, epochs=10, phases=(
        Phase(until=0.8), Phase(row_length=512, weights=(Weight("law", 8.0), Weight("web/*.parquet", 0.5)))))
A batch keeps its number of positions unless the phase has a batch_size, the model needs max_positions for the longest,
and a field of a phase that the recipe has is a flag, --config.train.phases.1.row_length=256. configs/continue_gl.py is
such a recipe. A run under wsd or constant may get further phases, and be prolonged, where bounds are given in steps.
What a training row is made of, by its number (and folder) in metrics.jsonl:
    python -m jaxbert.prepare $ARGS --trace=ROW           or --trace=rows_512:ROW where phases have several folders
"""

from jaxbert.config import Checkpoint, Config, Evaluation, Optimizer, Schedule, Tokenizer, Train, named_model


def get_config() -> Config:
    return Config(
        tokenizer=Tokenizer(kind="unigram", vocab_size=16_384),
        model=named_model("bert_small"),
        train=Train(batch_size=128, epochs=10),
        optimizer=Optimizer(learning_rate=5e-4),
        schedule=Schedule(name="wsd", warmup=0.05, decay=0.2),
        evaluation=Evaluation(every=500),
        checkpoint=Checkpoint(every=500),
    )
