"""What tests share: the CPU device, one small prepared corpus and one small trained run."""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from jaxlib import xla_client

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the time, and what is tested is what programs compute, not how fast.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FLAGS = os.environ.get("XLA_FLAGS", _QUICK)  # for processes that load no libtpu
if FLAGS == _QUICK and version("jaxlib").startswith("0.10."):
    # Halves what is left. jaxlib reads it here and once; libtpu and jaxlib 0.12 do not know it and end their process.
    FLAGS = os.environ["XLA_FLAGS"] = f"{_QUICK} --xla_cpu_use_fusion_emitters=false"
    xla_client.CompileOptions()
    os.environ["XLA_FLAGS"] = _QUICK
os.environ.setdefault("XLA_FLAGS", FLAGS)
# Many tests train the same small model: each program is compiled once a session, in child processes too.
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker inherits what the process that started it set here
    _compiled = tempfile.TemporaryDirectory(prefix="jaxbert-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from collections.abc import Iterator

import jax
import pytest

from jaxbert import config, prepare
from jaxbert.convert import tokenizer as convert_tokenizer
from tests.pseudo_galician import documents


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=str(Path(__file__).parent / "golden"), help="folder of golden .npz files")


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_are_compared_in_this_process() -> Iterator[None]:
    """Many preparations: each would start a process that imports transformers. tests/convert/test_tokenizer.py does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert_tokenizer, "compare_apart", convert_tokenizer.compare_with_transformers)
        yield


LICENCE, ATTRIBUTION = "CC0-1.0", "made up by tests/pseudo_galician.py"


def tiny_recipe(directory: Path, text: Path) -> config.Config:
    """A resolved recipe in which everything is small and no size is a round one: 600 pieces, 2 layers, 20 steps."""
    return config.resolve(
        config.Config(
            corpus=config.Corpus(
                input=(str(text),),
                language="gl",
                directory=str(directory),
                validation_share=0.2,
                licence=LICENCE,
                attribution=ATTRIBUTION,
                clean=config.Clean(identify_language=False),
            ),
            tokenizer=config.Tokenizer(vocab_size=600),
            data=config.Data(row_length=64),
            model=config.named_model(
                "bert_tiny", num_layers=2, hidden_size=32, num_heads=2, feed_forward_size=64, max_positions=96
            ),
            train=config.Train(batch_size=8, steps=20, log_every=5),
            optimizer=config.Optimizer(learning_rate=5e-3),
            checkpoint=config.Checkpoint(every=5, keep_last=2),
            evaluation=config.Evaluation(every=10, batch_size=16, piece_length=32),
        )
    )


@pytest.fixture(scope="module", autouse=True)
def _programs_are_freed() -> Iterator[None]:
    """No compiled program outlives its test file: a process that kept the programs of all of them died in the compiler
    (twice in one run; each program holds memory maps, and Linux allows a process 65,530)."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> config.Config:
    """The resolved recipe of a prepared corpus of 200 made-up documents. Tests that change it take a copy."""
    place = tmp_path_factory.mktemp("tiny")
    (place / "text.txt").write_text("\n\n".join(documents(200)), encoding="utf-8")
    settings = tiny_recipe(place / "corpus", place / "text.txt")
    prepare.prepare(settings)
    return settings


@pytest.fixture(scope="session")
def tiny_run(tiny_corpus: config.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run on it: scored at steps 10 and 20, saved at 5, 10, 15 and 20, the last two kept.

    Tests that change it take a copy.
    """
    from jaxbert import train

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    train.train(tiny_corpus, workdir)
    return workdir
