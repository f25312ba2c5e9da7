"""Recipes: reading, overriding, refusing."""

import sys
from pathlib import Path

import pytest

from jaxbert import config, errors, recipe_files
from jaxbert.errors import BadInput

RECIPE = """
from jaxbert.config import Config, Corpus, Model, Train
def get_config(variant="bert"):
    model = Model(name="bert_tiny" if variant == "bert" else "bert_base")
    return Config(corpus=Corpus(input=("a", "b"), language="gl"), model=model, train=Train(steps=7))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return str(path)


def load(recipe: str, *overrides: str) -> config.Config:
    return config.resolve(recipe_files.load(recipe, overrides))


def test_a_named_size_fills_the_fields_that_are_left_open(recipe: str) -> None:
    model = load(recipe, "--config.model.num_layers=6").model
    assert (model.num_layers, model.hidden_size, model.num_heads, model.feed_forward_size) == (6, 128, 2, 512)


def test_another_name_on_the_command_line_takes_all_of_its_sizes(recipe: str) -> None:
    model = load(recipe, "--config.model.name=bert_large").model
    assert (model.num_layers, model.hidden_size, model.num_heads) == (24, 1024, 16)


def test_a_variant_is_named_behind_the_file(recipe: str) -> None:
    assert load(f"{recipe}:base").model.hidden_size == 768


def test_a_repeated_list_flag_replaces_the_recipes_list(recipe: str) -> None:
    assert load(recipe, "--config.corpus.input=x", "--config.corpus.input=y z").corpus.input == ("x", "y z")
    assert load(recipe).corpus.input == ("a", "b")


def test_one_length_on_the_command_line_replaces_the_recipes(recipe: str) -> None:
    train = load(recipe, "--config.train.epochs=0.5").train
    assert (train.steps, train.tokens, train.epochs) == (None, None, 0.5)


def test_two_lengths_on_the_command_line_are_an_error(recipe: str) -> None:
    with pytest.raises(BadInput, match=r"train.steps and train.tokens"):
        load(recipe, "--config.train.steps=3", "--config.train.tokens=4")


@pytest.mark.parametrize("text, value", [("true", True), ("false", False), ("False", False)])
def test_booleans_are_written_either_way(recipe: str, text: str, value: bool) -> None:
    assert load(recipe, f"--config.corpus.clean.repair={text}").corpus.clean.repair is value


def test_seeds_derive_from_the_seed_unless_given(recipe: str) -> None:
    train = load(recipe, "--config.train.seed=2", "--config.train.init_seed=9").train
    assert (train.data_seed, train.init_seed, train.dropout_seed) == (2001, 9, 2003)


@pytest.mark.parametrize(
    "override, says",
    [
        ("--config.train.stps=3", ["train.stps", "train.steps"]),
        ("--config.train.steps=abc", ["train.steps", "abc"]),
        ("--config.train.steps=1.5", ["train.steps", "1.5"]),
        ("--config.schedule.name=linea", ["schedule.name", "linear"]),
        ("--config.model.num_layer=3", ["model.num_layer", "model.num_layers"]),
        ("--config.train.batch_size=0", ["train.batch_size", "0"]),
        ("--config.model.name=bert_hug", ["model.name", "bert_hug", "bert_large"]),
        ("--config.model.name=gpt_small", ["model.name", "gpt_small", "bert"]),
        ("--steps=3", ["--steps=3", "--config.train.steps"]),
    ],
)
def test_a_wrong_override_ends_with_exit_code_2_and_names_the_field_and_the_nearest(
    recipe: str, override: str, says: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", recipe, override])
    with pytest.raises(SystemExit) as ended:
        errors.run(lambda argv: recipe_files.load(argv[0], argv[1:]) and None)
    assert ended.value.code == 2
    output = "".join(capsys.readouterr())
    assert "Traceback" not in output
    for word in says:
        assert word in output


def test_a_wrong_type_in_the_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.py"
    path.write_text("from jaxbert.config import *\ndef get_config(): return Config(train=Train(steps='7'))")
    with pytest.raises(BadInput, match=r"train.steps: '7' is not int"):
        recipe_files.load(str(path))


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "defines no get_config"),
        ("1 +", "does not run: SyntaxError"),
        ("def get_config(): return 3", "returned int"),
    ],
)
def test_a_broken_recipe_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.py"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        recipe_files.load(str(path))
    with pytest.raises(BadInput, match="there is no recipe file"):
        recipe_files.load(str(tmp_path / "absent.py"))


def test_a_recipe_survives_json(recipe: str) -> None:
    settings = load(recipe)
    assert config.from_dict(config.to_dict(settings)) == settings


def test_every_recipe_of_the_repository_loads() -> None:
    for path in sorted((Path(__file__).parent.parent / "configs").glob("*.py")):
        assert isinstance(recipe_files.load(str(path)), config.Config), path
