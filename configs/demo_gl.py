"""demo"""

from jaxbert.config import (
    Checkpoint,
    Clean,
    Config,
    Corpus,
    Data,
    Evaluation,
    Optimizer,
    Schedule,
    Tokenizer,
    Train,
    named_model,
)

PACKAGES = "libreoffice-help-gl libreoffice-l10n-gl gretl-common firefox-esr-l10n-gl thunderbird-l10n-gl rkward-data gnome-user-docs omegat vlc-l10n kgoldrunner k3b-i18n evolution-common".split()


def get_config() -> Config:
    return Config(
        corpus=Corpus(
            input=("deb:" + ",".join(PACKAGES),),
            language="gl",
            validation_share=0.16,
            clean=Clean(language_threshold=0.15),
        ),
        tokenizer=Tokenizer(kind="unigram", vocab_size=8192),
        data=Data(row_length=128),
        model=named_model("bert_tiny", unroll=2, hidden_dropout=0.0, attention_dropout=0.0, max_positions=128),
        train=Train(batch_size=32, steps=2000),
        optimizer=Optimizer(learning_rate=2e-3),
        schedule=Schedule(name="linear", warmup=0.1),
        evaluation=Evaluation(every=500),
        checkpoint=Checkpoint(every=500),
    )
