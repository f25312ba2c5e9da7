"""Recipes in configs/: each loads and resolves, short ones are short, and the Makefile runs what they say."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbert import config, prepare, recipe_files, recipes
from jaxbert.errors import BadInput

ROOT = Path(__file__).parent.parent
LANGUAGES = ("cs", "de", "gl", "nl", "no", "pl", "pt", "sv", "tr")
SHORT = ("cs", "de", "nl", "no", "pt", "tr")


def load(recipe: str, *overrides: str) -> config.Config:
    return config.resolve(recipe_files.load(str(ROOT / "configs" / recipe), overrides))


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_recipe_of_a_language_passes_the_checks_that_come_before_any_work(name: str) -> None:
    recipe = load(f"{name}.py")
    prepare.check_recipe(recipe)
    packages = recipe.corpus.input[0].removeprefix("deb:").split(",")
    assert len(packages) == len(set(packages)) >= 10
    assert recipe.corpus.clean.near_duplicates == 0.8 and recipe.corpus.clean.boilerplate


def test_recipes_of_languages_share_no_directory_with_each_other_the_demo_or_own_text() -> None:
    directories = [load(f"{name}.py").corpus.directory for name in LANGUAGES]
    assert len(set(directories)) == len(LANGUAGES)
    assert not {f"data/{load(f'{name}.py').corpus.language}" for name in LANGUAGES} & set(directories)


@pytest.mark.parametrize("name", SHORT)
def test_a_short_recipe_has_at_most_15_lines(name: str) -> None:
    assert len((ROOT / f"configs/{name}.py").read_text("utf-8").splitlines()) <= 15


def test_the_recipe_of_the_document_on_new_languages_is_one(tmp_path: Path) -> None:
    document = (ROOT / "docs/new-language.md").read_text("utf-8")
    (tmp_path / "da.py").write_text(re.findall(r"```python\n(.*?)```", document, re.S)[0], "utf-8")
    prepare.check_recipe(config.resolve(recipe_files.load(str(tmp_path / "da.py"))))


@pytest.mark.parametrize("machine", recipes.MACHINES)
@pytest.mark.parametrize("size", ["base", "large"])
def test_recipes_of_full_size_pass_the_checks_on_every_machine(size: str, machine: str) -> None:
    recipe = load(f"web_{size}.py:{machine}", "--config.corpus.language=pl")
    prepare.check_recipe(recipe)
    devices = recipes.MACHINES[machine][1]
    for _, phase in config.phases(recipe):
        assert phase.batch_size % (recipe.train.accumulate * devices) == 0
    assert {own.name for own in recipe.corpus.sources} == {"wikipedia", "web"}
    assert sum(own.weight for own in recipe.corpus.sources) == 3.0


def test_a_machine_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(BadInput, match=r"no machine 'v3-8'.*v5e-16, v4-8, h100"):
        load("web_base.py:v3-8")


def test_a_ramp_has_modernberts_sizes_over_its_tokens_with_as_many_steps_each() -> None:
    recipe = load("modern_base.py", "--config.corpus.language=pl")
    *grown, last = recipe.train.phases
    assert [phase.batch_size for phase in (*grown, last)] == [768, 1536, 2304, 3072, 3840, 4608]
    begins = [0.0, *(phase.until for phase in grown)]
    steps = [phase.until - begin for phase, begin in zip(grown, begins, strict=False)]
    assert max(steps) - min(steps) <= 1 and last.until == 1.0
    positions = sum(n * phase.batch_size * phase.row_length for n, phase in zip(steps, grown, strict=True))
    assert positions == pytest.approx(50e9, rel=1e-4)
    assert recipe.schedule.warmup < grown[0].until  # 3 billion tokens at the first size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((8, 20, 8, 1e6, 64), "from 8 to 20 rows by 8"), ((8, 24, 8, 2000, 64), r"1\.3 steps of each of 2 sizes")],
)
def test_a_ramp_that_does_not_arrive_or_has_no_steps_is_refused(arguments: tuple, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        recipes.ramp(*arguments)


@pytest.mark.parametrize("recipe", ["modern_base.py", "bert_large_lamb.py", "bert_large_lamb.py:long"])
def test_batches_of_every_size_divide_among_the_chips_that_a_recipe_names(recipe: str) -> None:
    settings = load(recipe, "--config.corpus.language=pl", "--config.corpus.input=text.txt")
    prepare.check_recipe(settings)
    chips = 16 if recipe.startswith("modern") else 256
    for _, phase in config.phases(settings):
        assert phase.batch_size % (settings.train.accumulate * chips) == 0


@pytest.mark.parametrize(
    ("arguments", "recipe", "run", "fill"),
    [
        (["recipe", "RECIPE=gl"], "configs/gl.py", "gl", "O [MASK] foi aberto."),
        (["recipe", "RECIPE=no"], "configs/no.py", "no", "Filen kan ikke [MASK]."),
        (["demo", "RECIPE=configs/demo_sv.py"], "configs/demo_sv.py", "demo_sv", "Han gick [MASK] huset."),
        (["demo", "RECIPE=configs/demo_gl.py"], "configs/demo_gl.py", "demo", "O [MASK] foi aberto."),
    ],
)
def test_make_runs_the_four_commands_of_a_recipe(arguments: list[str], recipe: str, run: str, fill: str) -> None:
    # As from a shell: under `make test` variables of that make would add lines.
    shell = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, env=shell)
    prepared, trained, evaluated, exported = done.stdout.splitlines()[-4:]
    assert prepared.endswith(f"-m jaxbert.prepare --config={recipe}")
    assert trained.endswith(f"-m jaxbert.train --config={recipe} --workdir=runs/{run}")
    assert f"-m jaxbert.evaluate --workdir=runs/{run} " in evaluated and f'--fill "{fill}"' in evaluated
    assert exported.endswith(f"-m jaxbert.export --workdir=runs/{run} --out=exported/{run}")


# --- the table of languages ---


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared corpus of 40 sentences, and a run on it as far as the table reads one."""
    text = "\n\n".join(f"A palabra número {i} desta frase é só unha proba." for i in range(40))
    (tmp_path / "text.txt").write_text(text, "utf-8")
    recipe = dataclasses.replace(
        config.Config(),
        corpus=config.Corpus(
            input=(str(tmp_path / "text.txt"),),
            language="gl",
            directory=str(tmp_path / "corpus"),
            validation_share=0.3,
            clean=config.Clean(identify_language=False, duplicates="document"),
        ),
        tokenizer=config.Tokenizer(kind="bpe", vocab_size=320),
        data=config.Data(row_length=32),
        model=config.named_model("bert_tiny"),
        train=config.Train(steps=1),
        evaluation=config.Evaluation(piece_length=24),
    )
    monkeypatch.setattr(prepare, "check_against_transformers", lambda *_: "left out")  # seconds, and another's test
    prepare.prepare(config.resolve(recipe))
    scores = {"loss": 3.25, "unigram_baseline": 6.5, "accuracy": 0.5, "bits_per_character": 1.125}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/evaluation.json").write_text(json.dumps(scores | {"masked_tokens": 1234, "step": 5000}))
    (tmp_path / "run/config.json").write_text(json.dumps({"corpus": {"directory": str(tmp_path / "corpus")}}))
    return tmp_path


def table(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/language_table.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})


def test_the_table_of_languages_shows_counts_of_corpora_and_scores_of_runs(corpus: Path) -> None:
    done = table(f"{corpus}/corpus={corpus}/run", f"--json={corpus}/table.json")
    assert done.returncode == 0, done.stderr
    tables = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
        for part in done.stdout.split("\n\n")
    ]
    fates, text, scores = (dict(zip(lines[0], lines[2], strict=True)) for lines in tables)
    assert (fates["documents"], fates["in"], fates["kept"], fates["language"]) == ("gl", "40", "40", "0")
    assert text["tokens"].endswith(" M")
    assert scores["bits a character"] == "1.125" and scores["predicted tokens"] == "1,234"
    (row,) = json.loads((corpus / "table.json").read_text())
    tokens = json.loads((corpus / "corpus/corpus.json").read_text())["tokens"]
    assert row["tokens"] == tokens["train"] + tokens["validation"]
    assert 1 < row["fertility"] < 10


def test_a_run_of_another_corpus_does_not_get_into_the_table(corpus: Path) -> None:
    (corpus / "run/config.json").write_text(json.dumps({"corpus": {"directory": "data/other"}}))
    done = table(f"{corpus}/corpus={corpus}/run")
    assert done.returncode == 2 and "was trained on data/other" in done.stderr
