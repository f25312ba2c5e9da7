"""Run by test_torch_models.py in an environment with transformers 4.57: python old_transformers.py FOLDER PLACE

Loads FOLDER by each class, writes PLACE/logits.npy for PLACE/given.npz and saves the model into PLACE/saved.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

folder, place = sys.argv[1], Path(sys.argv[2])
given = {name: torch.from_numpy(array) for name, array in np.load(place / "given.npz").items()}


def load(auto, path=folder, **options):
    options = {"dtype": torch.float64, "trust_remote_code": True, "output_loading_info": True} | options
    return getattr(transformers, auto).from_pretrained(path, **options)


with torch.inference_mode():
    model, info = load("AutoModelForMaskedLM")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    logits = model(**given).logits
    np.save(place / "logits.npy", logits.numpy())
    model.save_pretrained(place / "saved")
    again, _ = load("AutoModelForMaskedLM", str(place / "saved"))
    assert torch.equal(again(**given).logits, logits)
    assert load("AutoModelForMaskedLM", dtype=torch.bfloat16)[0](**given).logits.isfinite().all()
    for auto in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        other, info = load(auto)
        assert not any(name.startswith(other.base_model_prefix) for name in info["missing_keys"]), info
        other(**given)
print(transformers.__version__)
