"""The demo where there is no apt-get: a Swedish book that lies in configs/samples/, 0.7 MB, in the public domain.

    make demo RECIPE=configs/demo_sv.py
    python -m jaxbert.evaluate --workdir=runs/demo_sv --fill "Han gick [MASK] huset." \
        --fill "Det var en [MASK] dag." --fill "Jag har [MASK] sett honom."

It only has to run to the end and beat its unigram baseline; the text is too small for more.
"""

from jaxbert.config import Checkpoint, Config, Corpus, Evaluation, Optimizer, Schedule, Tokenizer, Train, named_model


def get_config() -> Config:
    return Config(
        corpus=Corpus(
            input=("configs/samples/cfi_sv.txt",),
            language="sv",
            validation_share=0.15,
            licence="public domain",
            attribution="Linus Walleij: Copyright finns inte; Debian package cfi-sv",
        ),
        tokenizer=Tokenizer(vocab_size=4096),
        model=named_model("bert_tiny", max_positions=128, unroll=2, hidden_dropout=0.0, attention_dropout=0.0),
        train=Train(batch_size=32, steps=1200),
        optimizer=Optimizer(learning_rate=2e-3),
        schedule=Schedule(warmup=0.1),
        evaluation=Evaluation(every=400),
        checkpoint=Checkpoint(every=400),
    )
