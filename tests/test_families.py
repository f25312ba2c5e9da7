"""Every encoder goes all the way: rows, training, a filled mask, a verified export, and back into a new run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxbert import config, evaluate, export, runs, train

SMALL = {"num_layers": 2, "hidden_size": 32, "max_positions": 96}
FAMILIES = {
    "bert_tiny": {"num_heads": 2, "feed_forward_size": 64},
    "convbert_small": {"num_heads": 4, "feed_forward_size": 64, "embedding_size": 16},
    "gmlp_base": {"feed_forward_size": 64},
    "amlp_base": {"feed_forward_size": 64, "attention_size": 8},
    "m2_80M": {"feed_forward_size": 64, "filter_order": 16},
    "hypermixer_tiny": {"num_heads": 2, "hypernet_size": 64, "feed_forward_size": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_of_every_encoder_learns_fills_exports_and_starts_another(
    name: str, tiny_corpus: config.Config, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="exports are verified with transformers; CI runs this with torch")
    model = config.named_model(name, **SMALL, **FAMILIES[name])
    settings = config.resolve(
        dataclasses.replace(tiny_corpus, model=model, data=config.Data(row_length=tiny_corpus.data.row_length))
    )
    summary = train.train(settings, tmp_path / "run")
    assert summary["validation"]["loss"] < np.log(600) - 0.3
    trained = runs.load_run(tmp_path / "run")
    assert len(evaluate.fill(trained, "o [MASK] foi")[0]) == 5
    verified = export.export(tmp_path / "run", tmp_path / "exported")
    assert verified.differences["float64"] < 1e-9
    again = dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, initialize_from=str(tmp_path / "run")),
        train=dataclasses.replace(settings.train, steps=1, log_every=1),
    )
    first = train.train(again, tmp_path / "again")["train"]["loss"]
    assert first < np.log(600) - 0.3
