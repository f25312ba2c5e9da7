"""Phases of a run: a batch is a function of recipe and step, each phase reads its own rows, and all of them."""

import collections
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxbert import card, config, phases, prepare, recipe_files, runs, train
from jaxbert.config import Config, Corpus, Data, Evaluation, Phase, Schedule, Source, Tokenizer, Train, Weight
from jaxbert.data import source, trace
from jaxbert.errors import BadInput
from jaxbert.objectives.mlm import MaskedLanguageModelling
from tests.test_sources import PLAIN, lines
from tests.test_train import Killed, change, fingerprints, kill_at, records, start


def recipe(place: Path, *given: Phase, pack: bool | None = None, **fields) -> Config:
    """Resolved: a corpus of two sources, a tiny model and these phases."""
    return config.resolve(
        Config(
            corpus=Corpus(
                input=(str(place / "general.txt"),),
                sources=(Source((str(place / "law.txt"),), name="law", weight=2.0),),
                language="gl",
                directory=str(place / "corpus"),
                document="line",
                validation_share=0.2,
                clean=PLAIN,
            ),
            tokenizer=Tokenizer(vocab_size=400),
            data=Data(row_length=64, pack=pack),
            model=config.named_model(
                "bert_tiny", num_layers=1, hidden_size=16, num_heads=2, feed_forward_size=32, max_positions=128
            ),
            train=Train(**{"batch_size": 8, "steps": 20, "log_every": 3, "phases": given} | fields),
            optimizer=config.Optimizer(learning_rate=5e-3),
            schedule=Schedule(name="wsd", warmup=2, decay=0),
            checkpoint=config.Checkpoint(every=4),
            evaluation=Evaluation(every=10, batch_size=16, piece_length=32),
        )
    )


# Three kinds of rows: the corpus's mixture, longer ones, and a mixture of the phase's own.
TWO = (Phase(until=0.6), Phase(row_length=96, weights=(Weight("law", 5.0),)))
RAMP = (Phase(until=5, batch_size=4), Phase(until=9, row_length=96), Phase(batch_size=16))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus prepared without phases: rows_64 alone."""
    place = tmp_path_factory.mktemp("phases")
    (place / "general.txt").write_text("\n".join(lines(300, 0)))
    (place / "law.txt").write_text("\n".join(lines(60, 1)))
    prepare.prepare(recipe(place))
    return place


@pytest.fixture
def copy(place, tmp_path) -> Path:
    shutil.copytree(place, tmp_path / "copy")
    return tmp_path / "copy"


def plan_of(settings: Config) -> phases.Plan:
    return phases.make_plan(settings, phases.open_feeds(settings), 400)


def read(plan: phases.Plan, steps: range) -> dict[str, list[tuple[int, int]]]:
    """Folder → (epoch, row) in the order in which these steps read them."""
    found = collections.defaultdict(list)
    for step in steps:
        rows, epoch_B, row_B = plan.at(step)
        pairs = zip(epoch_B.tolist(), (rows.first + row_B).tolist(), (row_B < len(rows)).tolist(), strict=True)
        found[plan.stretch(step).feed.folder.name] += [(epoch, row) for epoch, row, real in pairs if real]
    return found


# --- what a step reads ---


@pytest.mark.parametrize("pack", [True, False])
def test_a_run_without_phases_reads_what_it_read_before_there_were_any(place, pack):
    settings = recipe(place, pack=pack)
    plan, feed = plan_of(settings), source.Feed(place / f"corpus/{'rows' if pack else 'single'}_64", 8, 1)
    assert (plan.steps, len(plan.stretches)) == (20, 1)
    for step in range(20):
        (rows, *ours), (theirs, *expected) = plan.at(step), feed.at(step)
        assert rows.directory == theirs.directory
        assert all((a == b).all() for a, b in zip(ours, expected, strict=True))
        if pack:
            expected = source.rows_of_step(step, 8, len(feed), seed=1)
            assert all((a == b).all() for a, b in zip(ours, expected, strict=True))


def test_the_order_of_rows_is_that_of_the_version_before_there_were_phases():
    epoch_B, row_B = source.rows_of_step(2, 8, 20, seed=1)  # numbers that commit 5ebbf98 gives
    assert epoch_B.tolist() == [0] * 4 + [1] * 4 and row_B.tolist() == [16, 9, 19, 5, 3, 12, 18, 13]
    later = source.rows_of_step(10**6, 6, 10**6, seed=1)[1]
    assert later.tolist() == [485827, 790930, 78951, 704735, 303240, 415165]


def test_one_phase_that_gives_nothing_is_a_run_without_phases(place):
    one, none = plan_of(recipe(place, Phase())), plan_of(recipe(place))
    assert read(one, range(20)) == read(none, range(20)) and one.steps == none.steps


def test_a_step_is_of_the_phase_that_its_number_falls_into_with_that_phases_rows(place):
    plan = plan_of(recipe(place, *TWO))
    shapes = [(len(row_B), rows.row_length) for rows, _, row_B in map(plan.at, range(20))]
    assert shapes == [(8, 64)] * 12 + [(5, 96)] * 8  # 5 = 8 × 64 // 96
    assert [s.feed.folder.name[:8] for s in plan.stretches] == ["rows_64", "rows_96-"]
    assert [(s.begin, s.end) for s in plan.stretches] == [(0, 12), (12, 20)]


@pytest.mark.parametrize("pack", [True, False])
def test_each_phase_reads_each_of_its_rows_once_an_epoch(place, pack):
    settings = recipe(place, Phase(until=0.5), *TWO[1:], pack=pack, steps=400)
    plan = plan_of(settings)
    for stretch in plan.stretches:
        ((_, pairs),) = read(plan, range(stretch.begin, stretch.end)).items()
        count = collections.Counter(pairs)
        assert set(count.values()) == {1}
        whole = int(stretch.epochs)
        assert whole >= 2
        for epoch in range(whole):
            assert {row for e, row in pairs if e == epoch} == set(range(len(stretch.feed)))


@pytest.mark.parametrize("pack", [True, False])
def test_a_phase_goes_on_where_an_earlier_one_of_the_same_rows_stopped(place, pack):
    plan = plan_of(recipe(place, *RAMP, pack=pack, steps=60))
    first, _, last = plan.stretches
    assert first.feed.folder == last.feed.folder
    before, after = (read(plan, range(s.begin, s.end))[first.feed.folder.name] for s in (first, last))
    assert len(set(before + after)) == len(before + after)  # no row twice in an epoch
    if pack:  # the same rows in the same order as one phase, whatever the batch size
        alone = plan_of(recipe(place, batch_size=4, steps=400))
        assert (before + after) == read(alone, range(400))["rows_64"][: len(before + after)]
    else:
        assert min(epoch for epoch, _ in after) == max(epoch for epoch, _ in before) + 1


@pytest.mark.parametrize(("length", "of_step"), [("tokens", lambda f: f.tokens), ("epochs", lambda f: 1)])
@pytest.mark.parametrize("until", [0.6, 4])
def test_tokens_and_epochs_count_what_all_phases_read(place, length, of_step, until):
    given = dataclasses.replace(TWO[0], until=until), TWO[1]
    wanted = {"tokens": 9000, "epochs": 3.5}[length]
    plan = plan_of(recipe(place, *given, **{"steps": None, length: wanted}))
    amount = sum((s.end - s.begin) * of_step(s.feed) / s.feed.steps_per_epoch for s in plan.stretches)
    most = max(of_step(s.feed) / s.feed.steps_per_epoch for s in plan.stretches)
    assert wanted <= amount < wanted + 2 * most
    assert plan.stretches[0].end == (4 if until == 4 else round(0.6 * plan.steps))


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_that_make_their_own_rows_of_a_batch_make_the_batch(place, hosts):
    settings = recipe(place, TWO[0], dataclasses.replace(TWO[1], batch_size=8))
    objective = MaskedLanguageModelling(settings, vocab_size=400, mask_id=4, special_ids=frozenset(range(5)))
    plan = plan_of(settings)
    for step in (0, 11, 12, 19):
        rows, epoch_B, row_B = plan.at(step)
        whole = objective.make_batch(rows, epoch_B, row_B, 1)
        parts = []
        for host in range(hosts):
            rows, epoch_B, row_B = plan_of(settings).at(step)  # each host for itself
            mine = slice(host * len(row_B) // hosts, (host + 1) * len(row_B) // hosts)
            parts.append(objective.make_batch(rows, epoch_B[mine], row_B[mine], 1))
        for name, array in whole.items():
            assert (np.concatenate([part[name] for part in parts]) == array).all()


# --- rows of a phase ---


def copies(directory: Path, folder: str) -> dict[str, set[int]]:
    """Source → how often documents of it begin in rows."""
    sources = [d["source"] for d in source.read_documents(directory, "train")]
    offsets, rows = np.fromfile(directory / "tokens/train/offsets.bin", "<i8"), source.Rows(directory / folder)
    starts = np.concatenate([rows.piece_starts(row) for row in range(len(rows))])
    count = collections.Counter((np.searchsorted(offsets, starts[np.isin(starts, offsets)], "right") - 1).tolist())
    found = collections.defaultdict(set)
    for number, name in enumerate(sources):
        found[name].add(count[number])
    return found


def test_a_phases_weights_take_the_place_of_the_sources_own_and_of_no_other(place):
    general = str(place / "general.txt")
    for weights, expected in (
        ((), {"law": {2}, general: {1}}),
        ((Weight("law", 5.0),), {"law": {5}, general: {1}}),
        ((Weight(general, 0.0),), {"law": {2}, general: {0}}),
        ((Weight("law", 1), Weight(general, 3)), {"law": {1}, general: {3}}),
    ):
        (feed,) = phases.open_feeds(recipe(place, Phase(weights=weights)))
        assert copies(place / "corpus", feed.folder.name) == expected


def test_weights_that_the_corpus_has_anyway_need_no_rows_of_their_own(place):
    (feed,) = phases.open_feeds(
        recipe(place, Phase(weights=(Weight("law", 2.0), Weight(str(place / "general.txt"), 1.0))))
    )
    assert feed.folder.name == "rows_64"


def test_prepare_makes_the_rows_of_every_phase_and_training_the_same_where_they_are_missing(place, copy):
    made = [feed.folder.name for feed in phases.open_feeds(recipe(place, *TWO))]
    shutil.rmtree(copy / "corpus")
    settings = dataclasses.replace(recipe(place, *TWO).corpus, directory=str(copy / "corpus"))
    corpus = prepare.prepare(dataclasses.replace(recipe(place, *TWO), corpus=settings))
    for name in made:
        for file in ("tokens.bin", "segments.bin", "pieces.bin"):
            assert (copy / "corpus" / name / file).read_bytes() == (place / "corpus" / name / file).read_bytes()
    told = corpus["rows"][made[1].removeprefix("rows_")]
    assert told["row_length"] == 96 and told["sources"]["law"]["weight"] == 5.0


def test_rows_of_the_corpuss_weights_are_refused_where_those_have_changed_since(copy):
    corpus = json.loads((copy / "corpus/corpus.json").read_text())
    corpus["weights"] = {"law": 3.0}
    (copy / "corpus/corpus.json").write_text(json.dumps(corpus))
    phases.open_feeds(recipe(copy, Phase(weights=(Weight("law", 5.0),))))  # its own weights: nothing has changed
    with pytest.raises(BadInput, match=r"rows_64 was made with \{'law': 2\.0\}, but .* with \{'law': 3\.0\} since"):
        phases.open_feeds(recipe(copy, *TWO))


def test_weights_of_no_source_are_refused_with_those_that_there_are(place):
    with pytest.raises(BadInput, match=r"train\.phases\[1\]\.weights\[0\]\.source: 'lwa' is no source.*'law'"):
        phases.open_feeds(recipe(place, Phase(until=0.5), Phase(weights=(Weight("lwa", 2.0),))))


# --- a row's name ---


def test_a_row_is_named_with_its_folder_where_the_phases_have_several(place, tmp_path, capsys):
    settings = recipe(place, *TWO)
    _, long = (feed.folder.name for feed in phases.open_feeds(settings))
    path = tmp_path / "recipe.py"
    path.write_text(f"from jaxbert.config import *\ndef get_config(): return from_dict({config.to_dict(settings)!r})\n")
    for name in ("rows_64", long):
        prepare.main([f"--config={path}", f"--trace={name}:3"])
        printed = capsys.readouterr().out
        assert f"3 of {place / 'corpus' / name}: " in printed
        assert all(part.text in printed for part in trace.trace(place / "corpus", name, "3"))
    with pytest.raises(BadInput, match=rf"--trace: 3 is a row .*; give rows_64:3 or {long}:3"):
        prepare.main([f"--config={path}", "--trace=3"])
    with pytest.raises(BadInput, match=rf"no .*rows_512; .*\(.*{long}"):
        prepare.main([f"--config={path}", "--trace=rows_512:3"])
    prepare.main([f"--config={path}", "--trace=validation:0"])
    assert "validation:0 of " in capsys.readouterr().out


# --- runs ---


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    """A finished run of TWO, undisturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train.train(recipe(place, *TWO), workdir)
    return workdir


def test_a_phase_is_told_by_every_record_and_no_record_is_of_two_phases(whole):
    told = [(r["step"], r["phase"]) for r in records(whole, "train")]
    assert told == [(3, 0), (6, 0), (9, 0), (12, 0), (15, 1), (18, 1), (20, 1)]
    losses = [r["loss"] for r in records(whole, "train")]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.slow
def test_tokens_a_step_and_utilisation_are_those_of_the_phase(place, tmp_path):
    given = Phase(until=7), Phase(row_length=96)
    train.train(recipe(place, *given), tmp_path / "run")
    assert [r["step"] for r in records(tmp_path / "run", "train")] == [3, 6, 7, 9, 12, 15, 18, 20]
    objective = MaskedLanguageModelling(recipe(place), vocab_size=400, mask_id=4, special_ids=frozenset(range(5)))
    flops, done, tokens = {0: objective.step_flops(8, 64), 1: objective.step_flops(5, 96)}, 0, 0
    shares = []
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        r = json.loads(line)
        if r["split"] == "train":
            steps, read_now = r["step"] - done, r["tokens"] - tokens
            seconds = read_now / r["tokens_per_second"]
            shares.append(r["flops_utilization"] * seconds / steps / flops[r["phase"]])
            done, tokens = r["step"], r["tokens"]
    np.testing.assert_allclose(shares, shares[0], rtol=1e-6)  # 1 over what the devices do in a second


@pytest.mark.slow
@pytest.mark.parametrize("step", [7, 12, 14])
def test_a_run_killed_in_either_phase_or_between_them_is_bit_for_bit_the_undisturbed_one(
    place, whole, tmp_path, monkeypatch, step
):
    settings = recipe(place, *TWO)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, step)
        train.train(settings, tmp_path / "run")
    train.train(settings, tmp_path / "run")
    assert fingerprints(tmp_path / "run") == fingerprints(whole)
    assert records(tmp_path / "run") == records(whole)


@pytest.mark.slow
def test_rows_of_one_document_go_through_phases_and_resume_bit_for_bit(place, tmp_path, monkeypatch):
    settings = recipe(place, *TWO, pack=False)
    train.train(settings, tmp_path / "whole")
    for step in (7, 14):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, step)
            train.train(settings, tmp_path / f"{step}")
        train.train(settings, tmp_path / f"{step}")
        assert records(tmp_path / f"{step}") == records(tmp_path / "whole")
        assert fingerprints(tmp_path / f"{step}") == fingerprints(tmp_path / "whole")


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one_in_both_phases(place, tmp_path):
    settings = recipe(place, TWO[0], dataclasses.replace(TWO[1], batch_size=12), log_every=1)
    train.train(settings, tmp_path / "one")
    done = start(change(settings, sharding={"data": 4}), tmp_path / "four", JAX_NUM_CPU_DEVICES="4")
    assert done.wait() == 0
    one, four = ([r["loss"] for r in records(tmp_path / place, "train")] for place in ("one", "four"))
    assert len(one) == 20
    np.testing.assert_allclose(four, one, rtol=1e-5)


@pytest.mark.slow
def test_a_bad_step_names_its_rows_with_their_folder(place, tmp_path, monkeypatch):
    real, plan = MaskedLanguageModelling.make_batch, plan_of(recipe(place, *TWO))
    poisoned = plan.at(14)[2].tolist()

    def make_batch(self, rows, epoch_B, row_B, seed):
        batch = real(self, rows, epoch_B, row_B, seed)
        if rows.row_length == 96 and row_B.tolist() == poisoned:
            batch["weights_BP"] = batch["weights_BP"] * np.nan
        return batch

    monkeypatch.setattr(MaskedLanguageModelling, "make_batch", make_batch)
    train.train(recipe(place, *TWO), tmp_path / "run")
    (skipped,) = records(tmp_path / "run", "skipped")
    assert (skipped["step"], skipped["folder"]) == (15, plan.stretches[1].feed.folder.name)
    assert skipped["rows"] == poisoned
    for row in skipped["rows"]:
        assert trace.trace(place / "corpus", skipped["folder"], str(row))


def test_config_json_and_the_card_tell_phases_in_steps(place, whole):
    settings = runs.load_run(whole).config
    assert [(p.until, p.row_length, p.batch_size) for p in settings.train.phases] == [(12, 64, 8), (1, 96, 5)]
    assert read(plan_of(settings), range(20)) == read(plan_of(recipe(place, *TWO)), range(20))
    told = card._training(settings, card.TRAINING)
    assert "| train.phases[0] | to step 12: 8 rows of 64 tokens |" in told
    assert "| train.phases[1] | to the end: 5 rows of 96 tokens, `law` weighted 5 |" in told
    assert not any("phases" in line for line in card._training(recipe(place), card.TRAINING))


# --- what may change when a run goes on ---


def test_a_longer_run_may_not_move_the_end_of_a_phase_that_was_a_share_and_says_what_may(place, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    moved = r"phases\[0\]\.until was 12\.0, now 24\.0.*--config\.train\.phases\.0\.until=12$"
    with pytest.raises(BadInput, match=moved):
        train.train(recipe(place, *TWO, steps=40), tmp_path / "run")
    reopen(recipe(place, dataclasses.replace(TWO[0], until=12), TWO[1], steps=40), tmp_path / "run")


def reopen(settings: Config, workdir: Path) -> None:
    """As `train` opens a run directory."""
    runs.open_run(workdir, phases.in_steps(settings, plan_of(settings)), Path(settings.corpus.directory))


@pytest.mark.slow
@pytest.mark.parametrize("begun", [(), (dataclasses.replace(TWO[0], until=6), Phase(batch_size=16))])
def test_a_run_that_gets_another_phase_at_its_end_is_bit_for_bit_the_one_that_had_it_at_once(place, tmp_path, begun):
    train.train(recipe(place, *begun, steps=12), tmp_path / "run")
    ended = [*begun[:-1], dataclasses.replace(begun[-1] if begun else Phase(), until=12)]
    then = recipe(place, *ended, TWO[1], steps=20)
    train.train(then, tmp_path / "run")
    train.train(then, tmp_path / "at once")
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "at once")


def test_only_phases_after_the_steps_that_were_made_may_change_and_only_under_a_rate_without_an_end(place, whole):
    later = dataclasses.replace(TWO[1], until=20)
    ended = dataclasses.replace(TWO[0], until=12)
    before = (whole / "config.json").read_bytes()
    reopen(recipe(place, ended, later, Phase(), steps=30), whole)
    (whole / "config.json").write_bytes(before)
    for given in (
        (ended, dataclasses.replace(later, until=19), Phase()),
        (dataclasses.replace(ended, until=11), later),
    ):
        with pytest.raises(BadInput, match=r"train\.phases\[[01]\]\.until was"):
            reopen(recipe(place, *given[:2], Phase(), steps=30), whole)
    values = json.loads(before)
    values["schedule"]["name"] = "linear"
    (whole / "config.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=r"train\.phases\[2\] was None, now \{"):
        reopen(change(recipe(place, ended, later, Phase(), steps=30), schedule={"name": "linear"}), whole)
    (whole / "config.json").write_bytes(before)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((TWO[0], dataclasses.replace(TWO[1], weights=())), r"train\.phases\[1\]\.weights was \[\{.*\}\], now \[\]"),
        ((TWO[0], dataclasses.replace(TWO[1], batch_size=6)), r"train\.phases\[1\]\.batch_size was 5, now 6"),
        ((), r"train\.phases\[0\]\.until was 12\.0, now 1\.0; train\.phases\[1\] was \{.*\}, now None"),
    ],
)
def test_a_resumed_run_refuses_other_phases_and_names_the_field(place, whole, given, says):
    with pytest.raises(BadInput, match=says):
        train.train(recipe(place, *given), whole)


def test_a_run_that_was_started_before_there_were_phases_goes_on(place, tmp_path):
    reopen(recipe(place), tmp_path / "run")
    values = json.loads((tmp_path / "run/config.json").read_text())
    del values["train"]["phases"]
    (tmp_path / "run/config.json").write_text(json.dumps(values))
    reopen(recipe(place), tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["phases"] == []


# --- recipes ---


TEMPLATE = (
    "from jaxbert.config import *\n"
    "def get_config(): return Config(model=named_model('bert_tiny'), train=Train(steps=10, {}, phases=({})))\n"
)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("Phase(until=0.5),", r"train\.phases\[0\]\.until: 0\.5; the last phase has 1"),
        ("Phase(), Phase()", r"train\.phases\[0\]\.until: 1\.0; the last phase has 1, .* no other has"),
        ("Phase(until=0.5), Phase(until=0.4), Phase()", r"train\.phases\[1\]\.until: 0\.4 is not after 0\.5"),
        ("Phase(until=7), Phase(until=7), Phase()", r"train\.phases\[1\]\.until: 7 is not after 7"),
        ("Phase(until=7.5), Phase()", r"train\.phases\[0\]\.until: 7\.5; give a share .* or whole steps"),
        ("Phase(until=-1), Phase()", r"train\.phases\[0\]\.until: -1; give a share"),
        ("Phase(until=float('nan')), Phase()", r"train\.phases\[0\]\.until: nan; give a share"),
        ("Phase(until='half'), Phase()", r"train\.phases\[0\]\.until: 'half' is not float"),
        ("Phase(row_length=4),", r"train\.phases\[0\]\.row_length: 4 is outside 8"),
        ("Phase(batch_size=0),", r"train\.phases\[0\]\.batch_size: 0 is outside 1"),
        ("Phase(batch_size=6),", r"train\.accumulate: 4 does not divide train\.phases\[0\]\.batch_size 6"),
        ("Phase(weights=(Weight('a', 101),)),", r"train\.phases\[0\]\.weights\[0\]\.weight: 101 is outside 0 to 100"),
        ("Phase(weights=(Weight('a', 1), Weight('a', 2))),", r"weights\[1\]\.source: 'a' is given twice"),
        ("Phase(weights=(('a', 1),)),", r"train\.phases\[0\]\.weights: .*is not tuple"),
        ("Phase(weights={'a': 1}),", r"train\.phases\[0\]\.weights: \{'a': 1\} is not tuple"),
    ],
)
def test_a_phase_that_cannot_work_is_named(tmp_path, given, says):
    (tmp_path / "r.py").write_text(TEMPLATE.format("accumulate=4", given))
    with pytest.raises(BadInput, match=says):
        recipe_files.load(str(tmp_path / "r.py"))


def test_a_field_of_a_phase_is_a_flag_and_the_list_is_not(tmp_path):
    (tmp_path / "r.py").write_text(
        TEMPLATE.format("batch_size=32", "Phase(until=0.5), Phase(row_length=512, weights=(Weight('a', 2),))")
    )
    flags = ["--config.train.phases.0.until=4", "--config.train.phases.1.weights.0.weight=8", "--config.train.steps=9"]
    settings = config.resolve(recipe_files.load(str(tmp_path / "r.py"), flags))
    first, second = settings.train.phases
    assert (first.until, first.row_length, first.batch_size) == (4, 128, 32)
    assert second == Phase(1.0, 512, 8, (Weight("a", 8.0),))
    assert config.from_dict(json.loads(json.dumps(config.to_dict(settings)))) == settings
    for flag in ("--config.train.phases=x", "--config.train.phases.2.until=3"):
        with pytest.raises(BadInput, match=r"train\.phases is given in a recipe file alone.*phases\.0\.FIELD"):
            recipe_files.load(str(tmp_path / "r.py"), [flag])
    with pytest.raises(BadInput, match=r"phases is given in a recipe file alone"):
        recipe_files.load(str(tmp_path / "r.py"), ["--config.train.phases.0.untl=3"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((Phase(until=30), Phase()), r"phases\[0\]\.until: 30, so this phase has the steps 0 to 30 of the run's 20"),
        ((Phase(until=20), Phase()), r"phases\[0\]\.until: 20, so this phase has the steps 0 to 20 of the run's 20"),
        ((Phase(until=0.04), Phase()), r"phases\[0\]\.until: 0\.04, so this phase has the steps 0 to 1 of "),
        ((Phase(until=15), Phase(until=0.5), Phase()), r"phases\[1\]\.until: 0\.5, so .* the steps 15 to 10"),
    ],
)
def test_bounds_that_leave_a_phase_without_steps_are_refused(place, given, says):
    with pytest.raises(BadInput, match=says):
        plan_of(recipe(place, *given))


def test_a_run_whose_tokens_end_before_a_bound_is_refused_with_its_steps(place):
    with pytest.raises(BadInput, match=r"phases\[0\]\.until: 9, so this phase has the steps 0 to 9 of the run's 2;"):
        plan_of(recipe(place, Phase(until=9), Phase(), steps=None, tokens=600))


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        (Phase(row_length=256), r"train\.phases\[1\]\.row_length: 256"),
        (Phase(row_length=16), r"train\.phases\[1\]\.row_length: 16 is shorter than the held-out pieces"),
    ],
)
def test_rows_too_long_for_the_model_or_too_short_for_the_held_out_pieces_are_refused_early(
    place, tmp_path, phase, says
):
    settings, before = recipe(place, Phase(until=0.5), phase), sorted((place / "corpus").iterdir())
    for call in (prepare.check_recipe, lambda s: train.train(s, tmp_path / "run")):
        with pytest.raises(BadInput, match=says):
            call(settings)
    assert sorted((place / "corpus").iterdir()) == before and not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_cannot_share_is_named_with_its_phase(place, monkeypatch):
    settings = recipe(place, *TWO)
    monkeypatch.setattr(train.jax, "devices", lambda: [None] * 4)
    monkeypatch.setattr(train.jax, "make_mesh", lambda *_, **__: None)  # there are not so many
    with pytest.raises(BadInput, match=r"train\.phases\[1\]\.batch_size: 5 rows .* do not divide among 4 devices"):
        train._make_mesh(settings)


def test_a_run_reads_its_staged_rows_and_they_are_the_corpus_own(tiny_corpus, tmp_path):
    (plain,) = phases.open_feeds(tiny_corpus)
    (staged,) = phases.open_feeds(change(tiny_corpus, data={"stage": str(tmp_path / "disk")}))
    assert staged.folder.is_relative_to(tmp_path / "disk") and staged.folder.name == plain.folder.name
    for (ours, *numbers), (theirs, *others) in ((feed.at(step) for feed in (staged, plain)) for step in (0, 7)):
        assert all((a == b).all() for a, b in zip(numbers, others, strict=True))
        assert all((a == b).all() for a, b in zip(ours[numbers[1]], theirs[others[1]], strict=True))
