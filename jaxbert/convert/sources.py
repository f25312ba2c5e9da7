"""Weights as others store them, arrays by name: safetensors, PyTorch's pickles of tensors, Flax's msgpack.

A file is somebody else's: nothing in it is executed, and one that is not whole is BadInput.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from safetensors import safe_open

from jaxbert.errors import BadInput

SAFE, PICKLE, FLAX = "model.safetensors", "pytorch_model.bin", "flax_model.msgpack"
FLOATS = {"bfloat16": ml_dtypes.bfloat16}  # what NumPy has no name for


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises BadInput if there is none, or it is not an object."""
    given = _read_json(folder / "config.json")
    if not isinstance(given, dict):
        raise BadInput(f"{folder / 'config.json'}: is no JSON object")
    return given


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face folder: safetensors if it has them, else pickles; one file, or those of an index.

    Raises BadInput if there are none, if one is not whole or holds more than tensors, if an index names a file that is
    not in the folder, or if two files hold the same name.
    """
    for name, read in ((SAFE, read_safetensors), (PICKLE, read_pickle)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read(folder / name)
        if index.is_file():
            state: dict[str, np.ndarray] = {}
            for shard in _shards(index):
                tensors = read(shard)
                if twice := sorted(set(tensors) & set(state)):
                    raise BadInput(f"{shard}: holds {twice[0]}, as another file of {index.name} does")
                state |= tensors
            return state
    hint = "; it has Flax's: --from=flax" if (folder / FLAX).is_file() else ""
    raise BadInput(f"--source: {folder} holds no {SAFE} and no {PICKLE}{hint}")


def _shards(index: Path) -> list[Path]:
    given = _read_json(index)
    names = given.get("weight_map") if isinstance(given, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BadInput(f"{index}: has no weight_map from tensors to files")
    shards = []
    for name in sorted(set(names.values())):
        if Path(name).name != name or "\\" in name:  # a link in the folder is the user's own (the Hub's cache has them)
            raise BadInput(f"{index}: points outside its folder, to {name!r}; take the files from where they came from")
        if not (index.parent / name).is_file():
            raise BadInput(f"{index}: names {name}, which is not there; the folder is not complete")
        shards.append(index.parent / name)
    return shards


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one safetensors file; the library checks lengths and offsets before anything is read."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # its own type, and others for a dtype that NumPy has not
        raise BadInput(f"{path}: is no whole safetensors file ({_first_line(error)}); fetch it again") from None


def read_pickle(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file of torch.save: a dict of them, or a Composer checkpoint's state.model.

    Raises BadInput if it holds anything else: a pickle can run code, so what is no tensor is not loaded.
    """
    try:
        import torch
    except ImportError:
        raise BadInput(f'torch is not installed, and {path} needs it; pip install "jaxbert[torch]"') from None
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that torch.save did not write
            given = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError of the zip reader, EOFError, …
        raise BadInput(
            f"{path}: was not loaded: it is not whole, or holds more than tensors ({_reason(error)}). If you trust it, "
            'save its tensors alone: torch.save(torch.load(…, weights_only=False)["state"]["model"], …) for Composer'
        ) from None
    for key in ("state", "model"):  # of Composer
        if isinstance(given, dict) and isinstance(given.get(key), dict):
            given = given[key]
    if not isinstance(given, dict) or not given:
        raise BadInput(f"{path}: holds {type(given).__name__}, not tensors by name")
    if other := [name for name, value in given.items() if not isinstance(value, torch.Tensor)]:
        raise BadInput(f"{path}: {other[0]!r} is no tensor but {type(given[other[0]]).__name__}")
    return {str(name): _array(path, str(name), tensor) for name, tensor in given.items()}


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
    import torch

    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().numpy()
    except (TypeError, RuntimeError):  # sparse, quantized, float8
        raise BadInput(f"{path}: {name} is {tensor.dtype}, {tensor.layout}; give plain float32 tensors") from None


def read_flax(path: Path) -> dict[str, np.ndarray]:
    """The arrays of Flax's msgpack under their names' PyTorch form: kernels transposed, scales and tables `weight`.

    Format: flax/serialization.py: ext type 1 is an array, 3 a scalar, both (shape, dtype, bytes) packed once more; an
    array over 2³⁰ bytes is a map of its chunks.
    """
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_flax_value, strict_map_key=False)
        arrays = _flatten(_unchunked(tree))
    except Exception as error:  # msgpack raises many types for bytes that are none of its own
        raise BadInput(f"{path}: is no whole file of Flax's ({_first_line(error)}); fetch it again") from None
    if set(tree) == {"params"}:
        arrays = {name.removeprefix("params."): array for name, array in arrays.items()}
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        parent, _, last = name.rpartition(".")
        torch_name = f"{parent}.weight" if last in ("kernel", "scale", "embedding") else name
        if torch_name in state:
            raise BadInput(f"{path}: two arrays would be {torch_name}")
        state[torch_name] = array.T if last == "kernel" else array
    return state


def _flax_value(code: int, data: bytes) -> Any:
    if code not in (1, 3):
        raise ValueError(f"ext type {code} is no array")
    shape, name, content = msgpack.unpackb(data, raw=True)
    dtype = np.dtype(FLOATS.get(name.decode(), name.decode()))
    return np.frombuffer(content, dtype).reshape(shape)  # ValueError if that is not its length


def _unchunked(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "__msgpack_chunked_array__" not in tree:
        return {name: _unchunked(value) for name, value in tree.items()}
    shape, chunks = ([tree[key][str(i)] for i in range(len(tree[key]))] for key in ("shape", "chunks"))
    return np.concatenate(chunks).reshape(shape)


def _flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, np.ndarray):
        return {prefix: tree}
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix or 'the file'} is {type(tree).__name__}, no array")
    return {n: a for key, value in tree.items() for n, a in _flatten(value, f"{prefix}.{key}".lstrip(".")).items()}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"--source: {path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON ({error})") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _reason(error: Exception) -> str:
    """What weights_only=True refused, out of its advice of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
    return lines[0][:300] if lines else _first_line(error)
