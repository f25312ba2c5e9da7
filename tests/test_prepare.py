"""The whole preparation: what it writes, that it goes on after any kill, and how it refuses."""

import dataclasses
import hashlib
import importlib.util
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxbert import config as recipes
from jaxbert import prepare, recipe_files
from jaxbert.convert import tokenizer as convert_tokenizer
from jaxbert.data import engines, packing, source, stages, tokens, train_tokenizer
from jaxbert.data import tokenizer as tokenizers
from jaxbert.errors import BadInput

RECIPE = """
from jaxbert.config import *
def get_config():
    return Config(
        corpus=Corpus(input=("{text}",), language="gl", directory="{corpus}", document="line", validation_share=0.2,
                      clean=Clean(min_words=2, identify_language=False)),
        tokenizer=Tokenizer(vocab_size=420), data=Data(row_length=64), train=Train(steps=1),
        evaluation=Evaluation(piece_length=32),
    )
"""
SYLLABLES = ["ba", "ca", "da", "fe", "ge", "le", "mi", "ni", "ri", "to", "vo", "xo", "tu"]


def lines(count, seed=0):
    """Sentences of made-up words, one a line; some repeat, some are too short to stay."""
    choose = random.Random(seed)
    words = ["".join(choose.choices(SYLLABLES, k=choose.randint(1, 4))) for _ in range(200)]
    made = [" ".join(choose.choices(words, k=choose.randint(3, 90))) for _ in range(count)]
    return made + made[:3] + ["só", "[MASK] e [SEP] son texto aquí"]


@pytest.fixture
def place(tmp_path):
    """A recipe file, its text, and where the corpus will lie."""
    (tmp_path / "text.txt").write_text("\n".join(lines(120)))
    (tmp_path / "recipe.py").write_text(RECIPE.format(text=tmp_path / "text.txt", corpus=tmp_path / "corpus"))
    return tmp_path


def load(place, *overrides):
    return recipes.resolve(recipe_files.load(str(place / "recipe.py"), overrides))


def run(place, *overrides, **options):
    config = load(place, *overrides)
    prepare.check_recipe(config)
    return prepare.prepare(config, **options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A finished corpus, made once; tests that change it take a copy."""
    place = tmp_path_factory.mktemp("prepared")
    (place / "text.txt").write_text("\n".join(lines(120)))
    (place / "recipe.py").write_text(RECIPE.format(text=place / "text.txt", corpus=place / "corpus"))
    run(place)
    return place


@pytest.fixture
def copy(prepared, tmp_path):
    """A finished corpus of one's own, with its recipe."""
    shutil.copytree(prepared / "corpus", tmp_path / "corpus")
    (tmp_path / "recipe.py").write_text(RECIPE.format(text=prepared / "text.txt", corpus=tmp_path / "corpus"))
    return tmp_path


def digest(directory):
    """Every file and its bytes."""
    files = sorted(p for p in Path(directory).rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- what it writes ---


def test_every_input_document_has_one_fate_and_the_counts_add_up(prepared):
    corpus = prepare.load_corpus(prepared / "corpus")
    assert corpus["documents"] == 125 == sum(corpus["fates"].values())
    assert corpus["fates"]["duplicate"] == 3 and corpus["fates"]["no_paragraph_left"] == 1
    assert sum(sum(s["documents"].values()) for s in corpus["sources"]) == 125
    assert sum(split["documents"] for split in corpus["splits"].values()) == corpus["fates"]["kept"]


def test_kept_documents_are_stored_in_input_order_and_the_tokens_are_theirs(prepared):
    tokenizer = tokenizers.TextTokenizer.load(prepared / "corpus" / "tokenizer")
    for split in prepare.SPLITS:
        documents = list(source.read_documents(prepared / "corpus", split))
        numbers = [int(d["id"].rpartition("#")[2]) for d in documents]
        assert numbers == sorted(numbers)
        stored = packing.TokenFile(prepared / "corpus" / "tokens" / split, tokenizer.vocab_size)
        for i, (ids, starts) in enumerate(tokenizer.encode([d["text"] for d in documents])):
            found = packing.split_bit(stored.tokens[stored.offsets[i] : stored.offsets[i + 1]])
            assert (found[0] == ids).all() and (found[1] == starts).all()


def test_special_tokens_written_in_the_text_stay_text(prepared):
    tokenizer = tokenizers.TextTokenizer.load(prepared / "corpus" / "tokenizer")
    for split in prepare.SPLITS:
        counts = packing.unigram_counts(prepared / "corpus" / "tokens" / split, tokenizer.vocab_size)
        assert not counts[sorted(tokenizer.special_ids)].any()
    texts = [d["text"] for split in prepare.SPLITS for d in source.read_documents(prepared / "corpus", split)]
    assert "[MASK] e [SEP] son texto aquí" in texts


def test_some_documents_can_be_read_by_number(prepared):
    everything = list(source.read_documents(prepared / "corpus", "train"))
    assert list(source.read_documents(prepared / "corpus", "train", [0, 7, 20])) == [everything[i] for i in (0, 7, 20)]


def test_a_source_is_recorded_with_hash_size_and_licence(prepared):
    record = prepare.load_corpus(prepared / "corpus")["sources"][0]
    data = (prepared / "text.txt").read_bytes()
    assert record["sha256"] == hashlib.sha256(data).hexdigest() and record["bytes"] == len(data)
    assert {"name", "version", "licence", "attribution"} <= set(record)


def test_added_text_moves_no_document_into_the_other_split(prepared, place):
    (place / "text.txt").write_text("\n".join(lines(60, seed=9) + lines(120)))
    run(place)
    for split in prepare.SPLITS:
        before = {d["text"] for d in source.read_documents(prepared / "corpus", split)}
        assert before <= {d["text"] for d in source.read_documents(place / "corpus", split)}


def test_rejected_documents_are_kept_with_their_reason_on_request(place):
    run(place, keep_rejected=True)
    rejected = [json.loads(line) for line in (place / "corpus/rejected/rejected.jsonl").read_text().splitlines()]
    assert sorted(r["fate"] for r in rejected) == ["duplicate"] * 3 + ["no_paragraph_left"]
    assert "só" in [r["text"] for r in rejected]


def test_asking_for_rejected_documents_later_changes_nothing_else(copy):
    before = digest(copy / "corpus")
    run(copy, keep_rejected=True)
    after = digest(copy / "corpus")
    assert after.pop("rejected/rejected.jsonl") and after == before


# --- near duplicates and removal lists ---


@pytest.fixture
def nearly(place):
    """The recipe's text with a changed copy of every other sentence."""
    made = lines(120)[:120]
    text = [sentence.split() for sentence in made if len(sentence.split()) > 40]
    copies = [" ".join([*words[:20], "cambiado", *words[21:]]) for words in text[::2]]
    (place / "text.txt").write_text("\n".join(made + copies + ["só"]))
    return place


NEAR = "--config.corpus.clean.near_duplicates=0.6"


def test_near_duplicates_have_a_fate_and_the_counts_add_up(nearly):
    corpus = run(nearly, NEAR, keep_rejected=True)
    fates = corpus["fates"]
    assert sum(fates.values()) == corpus["documents"] and fates["near_duplicate"] + fates["near_validation"] > 20
    assert corpus["paragraphs"]["near_duplicate"] == fates["near_duplicate"] + fates["near_validation"]
    assert sum(split["documents"] for split in corpus["splits"].values()) == fates["kept"]
    rejected = [json.loads(line) for line in (nearly / "corpus/rejected/rejected.jsonl").read_text().splitlines()]
    ids = {d["id"]: s for s in prepare.SPLITS for d in source.read_documents(nearly / "corpus", s)}
    for record in rejected:
        if record["fate"].startswith("near"):
            similarity, _, other = record["detail"].partition(" ")
            assert record["text"] and float(similarity) >= 0.6
            assert ids[other] == "validation" or record["fate"] == "near_duplicate"
    assert [r["fate"] for r in rejected][-1] == "no_paragraph_left"  # in the order of the input


def test_no_training_document_stays_that_is_near_a_held_out_one(nearly):
    run(nearly, NEAR)
    kept = {s: [d["text"] for d in source.read_documents(nearly / "corpus", s)] for s in prepare.SPLITS}
    sets = {
        s: [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for t in texts if len(w := t.split()) > 5]
        for s, texts in kept.items()
    }
    assert max(len(a & b) / len(a | b) for a in sets["train"] for b in sets["validation"]) < 0.6


def test_near_duplicates_are_the_same_for_any_number_of_workers_and_leave_no_file(nearly):
    run(nearly, NEAR, keep_rejected=True)
    config = load(nearly, NEAR, f"--config.corpus.directory={nearly / 'other'}")
    prepare.prepare(config, engine=engines.Local(2), keep_rejected=True)
    assert digest(nearly / "corpus") == digest(nearly / "other")
    assert {p.suffix for p in (nearly / "corpus/documents").iterdir()} == {".array_record"}


def test_what_a_near_duplicate_has_of_its_own_is_not_taken_from_a_document_that_stays(place):
    made = [s for s in lines(300) if len(s.split()) > 60]
    first, second = "\n".join(made[:3]), "\n".join([*made[:3], "isto só está aquí"])
    others = [f"{sentence}\nisto só está aquí" for sentence in made[3:40]]
    (place / "text.txt").write_text("\n\n".join([first, second, *others]))
    run(place, NEAR, "--config.corpus.document=block", "--config.tokenizer.vocab_size=390")
    texts = [d["text"] for s in prepare.SPLITS for d in source.read_documents(place / "corpus", s)]
    assert sum("isto só está aquí" in text for text in texts) == 1


def test_a_removed_document_is_nowhere_and_lines_that_name_nothing_are_said_and_stored(place, capsys):
    (place / "remove.txt").write_text(f"{place / 'text.txt'}#2\nhttps://example.org/gone\n")
    corpus = run(place, f"--config.corpus.remove={place / 'remove.txt'}", keep_rejected=True)
    assert corpus["fates"]["removed"] == 1 and corpus["remove"]["unmatched"] == ["https://example.org/gone"]
    assert "1 of 2 lines named nothing:\n  https://example.org/gone" in capsys.readouterr().out
    gone = lines(120)[1]
    # A list by id removes that document alone: its duplicate, further down, may stay.
    kept = [d["text"] for s in prepare.SPLITS for d in source.read_documents(place / "corpus", s)]
    assert kept.count(gone) == 1 and gone not in (place / "corpus/rejected/rejected.jsonl").read_text()


def test_a_changed_removal_list_is_refused(place):
    (place / "remove.txt").write_text(f"{place / 'text.txt'}#2\n")
    run(place, f"--config.corpus.remove={place / 'remove.txt'}")
    (place / "remove.txt").write_text(f"{place / 'text.txt'}#3\n")
    with pytest.raises(BadInput, match=r"corpus\.remove: .*sha256.*delete .*documents"):
        run(place, f"--config.corpus.remove={place / 'remove.txt'}")


def test_overlap_with_a_benchmark_is_reported_and_removed_on_request(place, capsys):
    shared = lines(120)[1]  # is there twice: counted once, as the other is a duplicate
    (place / "benchmark.jsonl").write_text(json.dumps({"question": " ".join(shared.split()[5:25])}))
    benchmark = f"--config.corpus.benchmarks={place / 'benchmark.jsonl'}"
    reported = run(place, benchmark)
    assert reported["benchmarks"][str(place / "benchmark.jsonl")]["documents"] == 1
    assert "1 documents share runs of words with its 1 fields" in capsys.readouterr().out
    remove = "--config.corpus.benchmark_overlap=remove"
    removed = run(place, benchmark, remove, f"--config.corpus.directory={place / 'other'}")
    assert removed["fates"]["benchmark"] == 2 and removed["fates"]["kept"] == reported["fates"]["kept"] - 1
    (place / "benchmark.jsonl").write_text('"outra"')
    with pytest.raises(BadInput, match=r"corpus\.benchmarks: .*sha256.*delete .*documents"):
        run(place, benchmark)


# --- going on ---


def test_started_again_it_writes_no_stage_again(copy):
    before = {p: p.stat().st_mtime_ns for p in (copy / "corpus").rglob("*.*") if "json" not in p.suffix}
    corpus = (copy / "corpus/corpus.json").read_bytes()
    run(copy)
    assert before == {p: p.stat().st_mtime_ns for p in before} and corpus == (copy / "corpus/corpus.json").read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs apache-beam: make test-slow")
@pytest.mark.parametrize("mode", ["in_memory", pytest.param("multi_processing", marks=pytest.mark.slow)])
def test_beam_writes_the_same_bytes(nearly, mode):
    run(nearly, NEAR, keep_rejected=True)
    beam = engines.Beam([f"--direct_running_mode={mode}", "--direct_num_workers=2"])
    config = load(nearly, NEAR, f"--config.corpus.directory={nearly / 'other'}")
    prepare.prepare(config, engine=beam, keep_rejected=True)
    assert digest(nearly / "corpus") == digest(nearly / "other")


def test_the_number_of_workers_changes_no_byte(copy):
    config = load(copy)
    other = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, directory=str(copy / "other")))
    prepare.prepare(other, engine=engines.Local(2))
    assert digest(copy / "corpus") == digest(copy / "other")


@pytest.mark.parametrize("stage", ["documents", "tokens", "rows_64", "validation"])
def test_a_missing_stage_is_made_again_with_the_same_bytes(copy, stage):
    before = digest(copy / "corpus")
    shutil.rmtree(copy / "corpus" / stage)
    run(copy)
    assert digest(copy / "corpus") == before


def test_a_finished_tokenizer_is_never_trained_again(place, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "make_tokens", interrupted)
        run(place)
    assert not (place / "corpus" / "tokens").exists()
    monkeypatch.setattr(train_tokenizer, "train", interrupted)
    run(place)


def test_leftovers_of_killed_processes_are_removed(copy):
    (copy / "corpus/tokens.tmp-99/train").mkdir(parents=True)
    (copy / "corpus/stages/tokens.json.tmp-99").write_text("half")
    run(copy)
    assert not list((copy / "corpus").rglob("*.tmp-*"))


def test_an_error_leaves_no_folder_behind(tmp_path):
    with pytest.raises(KeyError), stages.written_whole(tmp_path / "x") as folder:
        (folder / "half").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_at_random_moments_and_started_again_it_ends_with_the_same_bytes(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(lines(5_000)))
    commands = {}
    for name in ("whole", "killed"):
        recipe = RECIPE.format(text=tmp_path / "text.txt", corpus=tmp_path / name)
        (tmp_path / f"{name}.py").write_text(recipe)
        recipe = f"--config={tmp_path / name}.py"
        commands[name] = [sys.executable, "-m", "jaxbert.prepare", recipe, "--workers=2", NEAR]
    started = time.monotonic()
    subprocess.run(commands["whole"], check=True, capture_output=True)
    duration, choose = time.monotonic() - started, random.Random(0)
    whole, kills = digest(tmp_path / "whole"), 0
    tokenizer, finished = tmp_path / "killed/tokenizer/tokenizer.json", tmp_path / "killed/stages/tokenizer.json"
    trained = None  # when the tokenizer was, once its stage is finished: a folder without a record is made again
    while kills < 7:
        process = subprocess.Popen(commands["killed"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=choose.uniform(0.1, 1.0) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()  # returns only when the workers, which share stderr, are gone too
            kills += 1
            before, trained = trained, tokenizer.stat().st_mtime_ns if finished.exists() else None
            assert before in (None, trained)
        else:  # it was faster: a whole corpus; begin again
            assert digest(tmp_path / "killed") == whole
            shutil.rmtree(tmp_path / "killed")
            trained = None
    subprocess.run(commands["killed"], check=True, capture_output=True)
    assert digest(tmp_path / "killed") == whole


# --- rows that training asks for ---


def test_rows_of_another_length_are_made_when_asked_for_and_said(copy, capsys):
    folder = prepare.ensure_rows(copy / "corpus", 96)
    assert source.Rows(folder).row_length == 96 and "rows of 96 tokens" in capsys.readouterr().out
    assert set(prepare.load_corpus(copy / "corpus")["rows"]) == {"64", "96"}
    assert prepare.ensure_rows(copy / "corpus", 96) == folder and capsys.readouterr().out == ""


@pytest.mark.parametrize("row_length", [64, 96])
def test_rows_and_tokens_of_another_tokenizer_are_refused(copy, row_length):
    file = copy / "corpus/tokenizer/tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(BadInput, match="another tokenizer.*delete"):
        prepare.ensure_rows(copy / "corpus", row_length)


def test_rows_shorter_than_the_held_out_pieces_are_refused(copy):
    with pytest.raises(BadInput, match="data.row_length: 24 .*evaluation.piece_length 32"):
        prepare.ensure_rows(copy / "corpus", 24)


def test_a_corpus_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(BadInput, match=r"jaxbert\.prepare"):
        prepare.load_corpus(tmp_path)


# --- how it refuses ---


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.data.row_length=513", r"data\.row_length: 513.*512 positions"),
        ("--config.data.row_length=16", r"data\.row_length: 16 is shorter.*piece_length 32"),
        ("--config.evaluation.piece_length=600", r"evaluation\.piece_length: 600.*512 positions"),
    ],
)
def test_lengths_that_cannot_work_are_refused_before_anything_is_written(place, override, message):
    with pytest.raises(BadInput, match=message):
        prepare.main([f"--config={place / 'recipe.py'}", override])
    assert not (place / "corpus").exists()


@pytest.mark.parametrize(
    ("field", "value", "folder"),
    [
        ("corpus.clean.min_words", "5", "documents"),
        ("tokenizer.vocab_size", "430", "tokenizer"),
        ("evaluation.mask_rate", "0.3", "validation"),
        ("objective.mask_share", "0.5", "validation"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_field_and_what_to_delete(copy, field, value, folder):
    with pytest.raises(BadInput, match=rf"{field}: {value}, but .*{folder} .*corpus\.directory.*delete .*{folder}"):
        run(copy, f"--config.{field}={value}")


def test_fields_that_change_no_byte_may_change(copy):
    run(copy, "--config.corpus.licence=CC0-1.0", "--config.corpus.workers=1", "--config.optimizer.learning_rate=0.1")


def test_fields_that_came_after_a_corpus_was_prepared_are_taken_at_their_defaults(copy):
    path = copy / "corpus/stages/documents.json"
    record = json.loads(path.read_text())
    del record["recipe"]["corpus.remove"], record["recipe"]["corpus.clean"]["near_duplicates"]
    path.write_text(json.dumps(record))
    run(copy)
    with pytest.raises(BadInput, match=r"corpus\.clean\.near_duplicates: 0\.8, but .* made with 0\.0"):
        run(copy, "--config.corpus.clean.near_duplicates=0.8")


def test_changed_input_is_refused(place):
    run(place)
    with open(place / "text.txt", "a") as file:
        file.write("\nunha liña máis")
    with pytest.raises(BadInput, match=r"text\.txt: changed"):
        run(place)


def test_too_few_documents_for_validation_name_the_share_and_a_larger_one_works_then(place):
    with pytest.raises(
        BadInput, match=r"corpus\.validation_share: 0\.0001 of 121 documents leaves none for validation"
    ):
        run(place, "--config.corpus.validation_share=0.0001")
    run(place)


def test_text_of_which_nothing_is_kept_is_refused_with_the_counts(place):
    with pytest.raises(BadInput, match=r"corpus\.input: no document was kept \(.*125 no_paragraph_left"):
        run(place, "--config.corpus.clean.min_words=1000")


def test_a_directory_that_cannot_be_written_is_refused_at_the_start(place):
    with pytest.raises(BadInput, match=r"corpus\.directory: cannot write into '/proc/corpus'"):
        run(place, "--config.corpus.directory=/proc/corpus")


def test_a_disk_without_room_for_the_input_is_refused(place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(BadInput, match=r"corpus\.directory: 0 bytes are free"):
        run(place)


def test_a_disk_that_fills_up_is_one_message_and_leaves_nothing_half_written(place, monkeypatch):
    def full(*_):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(source.Shards, "write", full)
    with pytest.raises(BadInput, match=r"corpus\.directory.*No space left.*start again"):
        run(place)
    assert [p.name for p in (place / "corpus").iterdir()] == [".lock"]


def test_two_preparations_of_one_corpus_do_not_mix(copy):
    with (
        stages.locked(copy / "corpus", wait_for_it=False),
        pytest.raises(BadInput, match="another process is writing"),
    ):
        run(copy)


@pytest.mark.parametrize(("documents", "workers"), [(0, 1), (1, 2), (63, 2), (64, 2), (1000, 1), (100_000, 2)])
def test_pieces_to_tokenize_hold_every_document_once_and_get_shorter(documents, workers):
    pieces = tokens._pieces(documents, workers)
    assert [n for piece in pieces for n in range(*piece)] == list(range(documents))
    sizes = [last - first for first, last in pieces]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes, default=0) <= tokens.MOST


def test_ids_that_differ_from_transformers_stop_it_and_are_shown(place, monkeypatch):
    difference = [("unha liña", [2, 9, 3], [2, 8, 3])]
    monkeypatch.setattr(convert_tokenizer, "compare_apart", lambda *_: difference)
    with pytest.raises(BadInput, match=r"(?s)1 of \d+ documents.*unha liña.*\[2, 9, 3\].*\[2, 8, 3\]"):
        run(place)
    assert not (place / "corpus/tokens").exists()


def test_without_transformers_the_check_is_left_out_and_that_is_said_and_stored(place, monkeypatch, capsys):
    def missing(*_):
        raise ImportError

    monkeypatch.setattr(convert_tokenizer, "compare_apart", missing)
    assert run(place)["transformers_check"].startswith("left out")
    assert "NOT compared with transformers" in capsys.readouterr().out


def test_bad_input_ends_the_command_with_one_line_and_exit_code_2(place):
    command = [
        sys.executable,
        "-m",
        "jaxbert.prepare",
        f"--config={place / 'recipe.py'}",
        "--config.data.row_length=600",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: data.row_length") and done.stderr.count("\n") == 1


# --- looking first ---


def test_a_sample_prints_fates_text_tokens_and_masks_and_writes_nothing(place, capsys):
    prepare.main([f"--config={place / 'recipe.py'}", "--sample=50", "--show=5", "--config.tokenizer.vocab_size=5000"])
    printed = capsys.readouterr().out
    assert printed.count("  tokens ") == printed.count("  masks ") == 5 and "<[MASK]>" in printed
    assert "kept" in printed and "trained on this sample" in printed
    assert not (place / "corpus").exists()


def test_a_sample_uses_the_finished_tokenizer(copy, capsys):
    prepare.show_sample(load(copy), 50, 2)
    assert f"tokens are those of {copy / 'corpus/tokenizer'}" in capsys.readouterr().out


def test_the_share_that_whole_words_reach_is_printed(copy, capsys):
    run(copy, "--config.objective.whole_words=true")
    assert "of the wanted predictions are reached" in capsys.readouterr().out


def test_blocks_are_bounded_in_documents_and_characters():
    texts = ["x" * 10] * 5000 + ["x" * stages.BLOCK_CHARACTERS] * 2
    assert [len(b) for b in stages.blocks(texts)] == [2048, 2048, 905, 1]
