"""Tests of the cross-validation: its folds, what a model learns from, its candidates, its table."""

import contextlib
import types
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import moemos
import train
from studies import choose
from test_moemos import call, lay_out, no_network  # noqa: F401 - fixtures

FEW_STEPS = tuple(stage._replace(steps=2) for stage in train.STAGES)
CLIPS = [(f"s{s}_{i}_t{t}.wav", s, i, t) for s in range(3) for i in range(2) for t in range(4)]


@pytest.fixture
def talkers(tmp_path):
    """24 rated training clips of three systems, four talkers and no two alike in MOS, two clips
    without ratings and one to test -> the corpus."""
    rows = ["wav,split,system,rater,score"]
    rows += [f"{wav},train,s{s},r,{1 + s + 0.5 * i + 0.1 * t:.1f}" for wav, s, i, t in CLIPS]
    rows += ["x_t0.wav,train,x,,", "x_t9.wav,train,x,,", "s0_test_t1.wav,test,s0,r,2"]
    wavs = [row.partition(",")[0] for row in rows[1:]]
    return lay_out(tmp_path / "talkers", {"ratings.csv": "\n".join(rows) + "\n"}, wavs)


@pytest.fixture
def learned(monkeypatch):
    """(stages, config, training, validation) of all that train; they do so in few steps."""
    calls, run_stages = [], train.run_stages

    def record(model, stages, config, training, validation):
        calls.append((stages, config, training, validation))
        return run_stages(model, FEW_STEPS, config, training, validation)
    monkeypatch.setattr(train, "run_stages", record)
    return calls


def in_this_process(monkeypatch, module):
    """No other processes: they take seconds to start."""
    pool = types.SimpleNamespace(map=map)
    monkeypatch.setattr(module, "worker_pool", lambda jobs: contextlib.nullcontext(pool))


def clip(wav, mos=None, system="s"):
    ratings = {} if mos is None else {"r": mos}
    return data.Clip(wav, Path(wav), "train", system, system, ratings)


def names_of(part, corpus, cache):
    """The clips of a train.Clips, known by their features."""
    clips = data.read_manifest(corpus)
    features = data.extract_features(clips, moemos.load_backbone("logmel"), cache)
    return [[clip.wav for clip, other in zip(clips, features) if torch.equal(own, other)].pop()
            for own in part.features]


# -- Folds -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("wav", "group"), [
    ("a_b/VCC_TM1_30001.wav", "30001"), ("c01_p226.wav", "p226"), ("17.wav", "17")])
def test_a_group_is_what_stands_behind_the_last_underscore(wav, group):
    assert choose.group_of(clip(wav)) == group


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_a_group_is_in_one_fold_and_clips_without_ratings_in_none(folds):
    rng = np.random.default_rng(0)
    clips = [clip(f"{i}_{rng.integers(7)}.wav", 3.0 if i % 4 else None) for i in range(80)]
    fold = choose.fold_of(clips, folds)
    found = {}
    for own, number in zip(clips, fold):
        assert (number == -1) == (not own.ratings)
        if own.ratings:
            found.setdefault(choose.group_of(own), set()).add(number)
    assert all(len(numbers) == 1 for numbers in found.values())
    sizes = np.bincount([number for numbers in found.values() for number in numbers])
    assert len(sizes) == folds
    assert max(sizes) - min(sizes) <= 1


def test_folds_by_hand():
    clips = [clip("x_c.wav", 1), clip("x_a.wav", 2), clip("x_b.wav"), clip("y_a.wav", 3),
             clip("x_d.wav", 4), clip("y_d.wav")]
    assert choose.fold_of(clips, 2).tolist() == [1, 0, -1, 0, 0, -1]  # of a, c, d


# -- Cross-validation ------------------------------------------------------------------------------

def test_a_model_learns_from_all_training_clips_but_those_of_its_fold(talkers, tmp_path, learned):
    stages = (train.STAGES[1],)
    candidate = choose.Candidate("c", {"experts": 2}, stages)
    _, _, clips = choose.cross_validate(candidate, talkers, tmp_path)
    assert [own.wav for own in clips] == [wav for wav, *_ in CLIPS]
    assert len(learned) == choose.FOLDS == 3
    every = {wav for wav, *_ in CLIPS} | {"x_t0.wav", "x_t9.wav"}
    folds = ({0, 3}, {1}, {2})  # of talkers
    for (used, config, training, validation), own in zip(learned, folds):
        held_out = {wav for wav, _, _, t in CLIPS if t in own}
        assert set(names_of(validation, talkers, tmp_path)) == held_out
        assert sorted(names_of(training, talkers, tmp_path)) == sorted(every - held_out)
        assert (used, config) == (stages, train.Config(backbone="logmel", experts=2))


def test_ridges_predictions_are_those_of_a_plain_loop_over_the_folds(talkers, tmp_path, learned):
    _, by_ridge, clips = choose.cross_validate(choose.CANDIDATES[0], talkers, tmp_path)
    backbone = moemos.load_backbone("logmel")
    x = data.extract_features(clips, backbone, tmp_path).flatten(1).double().numpy()
    mos, fold = np.array([own.mos for own in clips]), np.array([t % 3 for *_, t in CLIPS])
    for i, number in enumerate(fold):
        others = [j for j in range(len(clips)) if fold[j] != number]
        (expected,) = evaluate.ridge(x[others], mos[others], x[i:i + 1], fold[others])
        assert by_ridge[i] == pytest.approx(expected, abs=1e-5)


def test_each_prediction_is_of_its_own_clip(talkers, tmp_path, monkeypatch):
    def knows_all(everything, rows, new, *others):
        return everything.mos[torch.from_numpy(new)].numpy()
    monkeypatch.setattr(choose, "learn", knows_all)
    predicted, _, clips = choose.cross_validate(choose.CANDIDATES[0], talkers, tmp_path)
    assert predicted == pytest.approx([own.mos for own in clips])


def test_what_is_predicted_is_the_trained_models_mos_and_depends_on_no_rating_of_it(learned):
    features = torch.randn(12, 2, 6, generator=torch.Generator().manual_seed(0))
    mos, rows = torch.linspace(1, 5, 12), np.arange(12) < 8
    config, said = train.Config(batch_size=4, experts=2), []
    for own in (mos, torch.where(torch.from_numpy(rows), mos, 1.0)):
        torch.manual_seed(0)
        model = moemos.MoEMOS(layers=2, width=3, classes=1, experts=2, hidden=4)
        clips = train.Clips(features, own, torch.zeros(12, dtype=torch.long))
        said.append(choose.learn(clips, rows, ~rows, model, config).tolist())
        with torch.no_grad():
            assert said[-1] == pytest.approx(model.eval()(features[8:]).mos.tolist(), abs=1e-5)
    assert said[0] == said[1]
    assert [len(training.mos) for _, _, training, _ in learned] == [8, 8]


def test_fewer_than_three_talkers_are_refused(tmp_path):
    rows = "wav,split,system,rater,score\na_1.wav,train,s,r,1\na_2.wav,train,s,r,2\n"
    corpus = lay_out(tmp_path / "two", {"ratings.csv": rows}, ["a_1.wav", "a_2.wav"])
    with pytest.raises(data.InputError, match="two: fewer than three sentences or talkers"):
        choose.cross_validate(choose.CANDIDATES[0], corpus, tmp_path)


# -- Candidates ------------------------------------------------------------------------------------

def differences(candidate):
    """What of a candidate is not the default."""
    config = replace(train.Config(), **candidate.settings)
    found = [setting.name for setting in fields(train.Config)
             if getattr(config, setting.name) != setting.default]
    assert len(candidate.stages) == len(train.STAGES)
    return found + [(own.name, key) for own, usual in zip(candidate.stages, train.STAGES)
                    for key in train.Stage._fields if getattr(own, key) != getattr(usual, key)]


def test_every_candidate_differs_from_the_defaults_in_one_thing_that_works():
    first, *others = choose.CANDIDATES
    assert differences(first) == []
    assert len({candidate.name for candidate in choose.CANDIDATES}) == len(choose.CANDIDATES)
    for candidate in others:
        assert len(differences(candidate)) == 1, candidate.name
        train.check(replace(train.Config(), **candidate.settings))
        assert all(own.steps >= 1 and own.lr > 0 for own in candidate.stages)


def test_a_candidates_name_says_what_is_changed():
    assert choose.setting(hidden=16) == choose.Candidate("hidden=16", {"hidden": 16})
    changed = choose.stage(2, lr=0.5)
    assert (changed.name, differences(changed)) == ("stage 2: lr=0.5", [("joint", "lr")])
    assert changed.stages[1].lr == 0.5


# -- Numbers ---------------------------------------------------------------------------------------

CASES = [clip("a", 1.0, "p"), clip("b", 2.0, "p"), clip("c", 4.0, "q"), clip("d", 5.0, "q")]


def test_numbers_by_hand():
    """Of deviations -2, -1, 1, 2 and -1, -2, 2, 1: their product 8, of the squares 10 and 10."""
    mse, lcc, within, system = choose.numbers([2.0, 1.0, 5.0, 4.0], CASES)
    assert (mse, lcc, within, system) == pytest.approx((1.0, 0.8, -1.0, 1.0))


@pytest.mark.parametrize("others", [[], ["real/vcc"]])
def test_the_table_has_means_of_simulated_corpora_and_the_mean_lcc_of_all(
        monkeypatch, capsys, others):
    """Predictions of `one` are off by the corpus's seed, those of `two` are turned around."""
    def predict(candidate, corpus, cache):
        assert cache == "c"
        mos = np.array([own.mos for own in CASES])
        off = float(corpus) if corpus.isdigit() else 0.5
        predicted = mos + off if candidate.name == "one" else mos[::-1]
        return predicted, np.array([2.0, 1.0, 5.0, 4.0]), CASES
    in_this_process(monkeypatch, choose)
    monkeypatch.setattr(choose, "SEEDS", (1, 2))
    monkeypatch.setattr(choose, "prepare", str)
    monkeypatch.setattr(choose, "cross_validate", predict)
    choose.choose([choose.Candidate("one"), choose.Candidate("two")], others, "c")
    heading, _, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["ridge", "1.000", "0.800", "-1.000", "1.000"] + ["1.000", "0.800"] * len(others)
        + ["0.8000"],
        ["one", "2.500", "1.000", "1.000", "1.000"] + ["0.250", "1.000"] * len(others)
        + ["1.0000"],
        ["two", "10.000", "-1.000", "-1.000", "-1.000"] + ["10.000", "-1.000"] * len(others)
        + ["-1.0000"]]
    assert ("vcc" in heading) == bool(others)


def test_a_corpus_is_simulated_from_its_seed_unless_it_is_there(monkeypatch):
    made = []
    monkeypatch.setattr(choose.simulated, "prepare", lambda *given: made.append(given))
    assert choose.prepare(100) == "runs/corpora/100"
    assert made == [("runs/corpora/100", 100)]


def test_the_command_line_takes_other_corpora(talkers, tmp_path, monkeypatch, capsys, learned):
    in_this_process(monkeypatch, choose)
    monkeypatch.setattr(choose, "SEEDS", (1,))
    monkeypatch.setattr(choose, "prepare", lambda seed: talkers)
    monkeypatch.setattr(choose, "CANDIDATES", choose.CANDIDATES[:1])
    words = ("--data", talkers, "--cache", tmp_path / "cache")
    assert call(monkeypatch, choose, *words) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["ridge", "default"]
    assert all(row[1:3] == row[5:7] for row in rows)  # it is twice the same corpus
    assert call(monkeypatch, choose, "--data", "nowhere", "--cache", tmp_path / "cache") == 2
    assert "nowhere" in capsys.readouterr().err
