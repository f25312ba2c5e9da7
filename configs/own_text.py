"""Pretrain BERT on your own text, in your own language.

python -m jaxbert.prepare --config=configs/own_text.py --config.corpus.input='texts/**/*.txt' --config.corpus.language=pl
python -m jaxbert.train   --config=configs/own_text.py --config.corpus.input=… --config.corpus.language=pl --workdir=runs/pl
"""

from jaxbert.config import Config, Corpus, Model, Tokenizer, Train


def get_config() -> Config:
    return Config(corpus=Corpus(), tokenizer=Tokenizer(), model=Model(name="bert_small"), train=Train(epochs=20))
