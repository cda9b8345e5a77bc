"""Tests of leaving one out and of learning curves: who learns from what, and the tables."""

import json

import numpy as np
import pytest
import scipy.stats

import data
import evaluate
import moemos
import train
from studies import curves, unheard
from studies.choose import fold_of
from studies.compare import with_interval
from studies.straight_line import condition_means
from studies.test_choose import (  # noqa: F401 - fixtures
    in_this_process,
    learned,
    names_of,
    talkers,
)
from test_moemos import call, no_network, small  # noqa: F401 - fixtures


def rows_of(corpus, **wanted):
    """(clips,) bool: those whose fields are as wanted."""
    return np.array([all(getattr(clip, name) == value for name, value in wanted.items())
                     for clip in corpus.clips])


# -- Leave one out ---------------------------------------------------------------------------------

@pytest.mark.parametrize("what", list(unheard.LEFT_OUT))
def test_what_is_left_out_is_never_learned_from_and_all_of_it_is_predicted(
        small, tmp_path, monkeypatch, what):
    corpus = unheard.load(small, tmp_path)
    training, tested = unheard.splits_of(corpus, False)
    said = iter(range(1, 99))
    seen = []

    def record(name):
        def predict(own, rows, new, *others):
            seen.append((name, rows, new, others))
            return np.full(new.sum(), next(said))
        return predict
    monkeypatch.setattr(unheard, "by_head", record("head"))
    monkeypatch.setattr(unheard, "by_ridge", record("ridge"))
    found = unheard.leave_out(corpus, what, 5, training, tested)
    groups = np.array([clip.system if what == "system" else clip.model for clip in corpus.clips])
    names = sorted(set(groups[tested]))
    for i, name in enumerate(names):
        own = (groups == name) & tested
        rest = (groups != name) & training
        for (who, rows, new, others), expected in zip(seen[2 * i:2 * i + 2], ("head", "ridge")):
            assert who == expected
            np.testing.assert_array_equal(rows, rest)
            np.testing.assert_array_equal(new, own)
            if who == "head":
                assert others == (5,)
            else:
                np.testing.assert_array_equal(others[0], groups)
        assert (found[0, own] == 2 * i + 1).all()
        assert (found[1, own] == 2 * i + 2).all()
        mean = np.nanmean([clip.mos for clip, row in zip(corpus.clips, rest) if row])
        assert found[2, own] == pytest.approx(mean)
    assert np.isnan(found[:, ~tested]).all()
    assert rest[rows_of(corpus, system="x")].all()  # clips without MOS are learned from


def test_the_whole_of_another_corpus_is_predicted_whatever_its_split(talkers, tmp_path):
    corpus = unheard.load(talkers, tmp_path)
    training, tested = unheard.splits_of(corpus, True)
    assert (training.sum(), tested.sum()) == (27, 25)  # 2 without ratings
    training, tested = unheard.splits_of(corpus, False)
    assert (training.sum(), tested.sum()) == (26, 1)


def test_a_method_is_left_out_with_and_without_super_resolution():
    clips = [data.Clip(f"{model}.wav", None, "test", f"16k_{model}", model, {"r": 3.0})
             for model in ("nv", "nvSR", "tts")]
    found = {what: [group(clip) for clip in clips] for what, group in unheard.LEFT_OUT.items()}
    assert found == {"method": ["nv", "nv", "tts"], "synthesis model": ["nv", "nvSR", "tts"],
                     "system": ["16k_nv", "16k_nvSR", "16k_tts"]}


def test_the_head_is_the_default_of_a_seed_and_ridge_has_folds_of_what_is_left_out(
        talkers, tmp_path, learned, monkeypatch):
    corpus = unheard.load(talkers, tmp_path)
    new = rows_of(corpus, system="s0")
    said = unheard.by_head(corpus, ~new, new, 3)
    stages, config, training, validation = learned[0]
    assert (stages, config) == (train.STAGES, train.Config(backbone="logmel", seed=3))
    assert not any(name.startswith("s0") for name in names_of(training, talkers, tmp_path))
    assert {name[:2] for name in names_of(validation, talkers, tmp_path)} == {"s0"}
    assert said.shape == (new.sum(),)
    seen = []
    monkeypatch.setattr(evaluate, "ridge", lambda *given: seen.extend(given))
    groups = np.array([clip.system for clip in corpus.clips])
    unheard.by_ridge(corpus, ~new, new, groups)
    x, mos, x_new, fold = seen
    known = [clip for clip, row in zip(corpus.clips, ~new) if row and clip.ratings]
    assert mos.tolist() == pytest.approx([clip.mos for clip in known])
    assert fold.tolist() == [int(clip.system == "s2") for clip in known]
    features = data.extract_features(known, moemos.load_backbone("logmel"), tmp_path)
    np.testing.assert_array_equal(x, features.flatten(1))
    assert len(x_new) == new.sum()


def test_a_jobs_numbers_are_those_of_its_columns(small, tmp_path, learned):
    left_out, none = unheard.one_job(tmp_path, (small, "system", 0, False))
    assert none is None
    assert np.isnan(left_out[2, 1:]).all()  # a constant's correlations mean nothing
    found, _ = unheard.one_job(tmp_path, (small, "", 0, False))
    corpus = unheard.load(small, tmp_path)
    training, tested = unheard.splits_of(corpus, False)
    said = unheard.nothing_left_out(corpus, 0, training, tested)[:, tested]
    clips = [clip for clip, row in zip(corpus.clips, tested) if row]
    known = [clip for clip, row in zip(corpus.clips, training) if row and clip.ratings]
    assert said[2] == pytest.approx(condition_means(known, clips))
    true = np.array([clip.mos for clip in clips])
    system = [clip.system for clip in clips]
    for own, numbers in zip(said, found):
        result = moemos.metrics(own, true, system)
        expected = [result["utterance"]["MSE"], result["utterance"]["LCC"],
                    evaluate.lcc_within_systems(own, true, system), result["system"]["LCC"]]
        assert numbers == pytest.approx(expected, nan_ok=True, rel=1e-5)


def test_of_a_whole_corpus_head_and_ridge_are_resampled_in_pairs(
        talkers, tmp_path, monkeypatch, learned):
    monkeypatch.setattr(evaluate, "RESAMPLES", 5)
    said = {}

    def record(name, predict):
        def call_it(*given):
            said.setdefault(name, []).append(predict(*given))
            return said[name][-1]
        return call_it
    for name in ("by_head", "by_ridge"):
        monkeypatch.setattr(unheard, name, record(name, getattr(unheard, name)))
    _, resampled = unheard.one_job(tmp_path, (talkers, "system", 0, True))
    corpus = unheard.load(talkers, tmp_path)
    clips = sorted((clip for clip in corpus.clips if clip.ratings), key=lambda clip: clip.system)
    true, system = [clip.mos for clip in clips], [clip.system for clip in clips]
    order = [i for i, _ in sorted(enumerate(c for c in corpus.clips if c.ratings),
                                  key=lambda pair: pair[1].system)]
    back = np.argsort(order)
    head, ridge = (evaluate.resample(np.concatenate(said[name])[back], np.array(true)[back],
                                     np.array(system)[back]) for name in ("by_head", "by_ridge"))
    np.testing.assert_allclose(resampled, head - ridge, rtol=1e-4)


def test_tables_have_the_means_and_students_interval_of_head_less_ridge(monkeypatch, capsys):
    rng = np.random.default_rng(0)
    paths = ("runs/corpora/7", "runs/corpora/8")
    found = {(path, what): rng.uniform(size=(3, 4))
             for path in paths for what in (*unheard.LEFT_OUT, "")}
    in_this_process(monkeypatch, unheard)
    monkeypatch.setattr(unheard, "CORPORA", (7, 8))
    monkeypatch.setattr(unheard, "prepare", lambda seed: None)
    monkeypatch.setattr(unheard, "one_job", lambda cache, job: (found[job[0], job[1]], None))
    unheard.simulated("cache")
    lines = capsys.readouterr().out.splitlines()[1:]
    for i, what in enumerate((*unheard.LEFT_OUT, "")):
        own = np.array([found[path, what] for path in paths])
        first, *rows, interval = lines[5 * i:5 * i + 5]
        assert first.startswith(f"{what or 'nothing'} left out")
        for row, values in zip(rows, own.mean(0), strict=True):
            assert [float(word) for word in row.split()[-4:]] == pytest.approx(values, abs=6e-4)
        expected = []
        for column in (own[:, 0] - own[:, 1]).T:
            low, high = scipy.stats.t.interval(0.95, 1, column.mean(), scipy.stats.sem(column))
            expected.append(with_interval(column.mean(), low, high))
        assert " ".join(interval.split()[5:]) == " ".join(expected)
    assert "condition's mean" in lines[18]


def test_another_corpus_has_a_table_of_each_level_that_it_has(
        talkers, monkeypatch, tmp_path, capsys):
    in_this_process(monkeypatch, unheard)
    done = []

    def one_job(cache, job):
        done.append(job)
        resampled = np.arange(101)[:, None] * 10.0 ** -np.arange(8)  # of each number its own
        return np.full((3, 4), job[2]), resampled
    monkeypatch.setattr(unheard, "one_job", one_job)
    rows = (talkers / "ratings.csv").read_text().replace("split,system", "split,model,system")
    for i in range(3):
        rows = rows.replace(f",s{i},", f",m{i},s{i},")
    (talkers / "two.csv").write_text(rows.replace(",x,,", ",x,x,,"))
    (talkers / "few.csv").write_text(rows.replace(",x,,", ",x,x,,").replace(",m2,", ",m1,"))
    for path in (talkers, talkers / "two.csv"):
        assert call(monkeypatch, unheard, "--data", path, "--cache", tmp_path) == 0
        assert done == [(str(path), "system", seed, True) for seed in range(3)]
        done.clear()
    _, first, head, *_, interval = capsys.readouterr().out.splitlines()
    assert first.startswith("system left out")
    assert head.split()[-4:] == ["1.000"] * 4  # the mean of seeds 0, 1 and 2
    assert " ".join(interval.split()[5:]) == (
        "+.000 [+2.500, +97.500] +.000 [+.250, +9.750] - +.000 [+.000, +.001]")
    assert call(monkeypatch, unheard, "--data", talkers / "few.csv", "--cache", tmp_path) == 2
    assert "few.csv: fewer than three of a synthesis model" in capsys.readouterr().err


# -- Learning curves -------------------------------------------------------------------------------

def test_k_rated_clips_of_each_system_are_kept_and_all_without_mos(small, tmp_path):
    corpus = unheard.load(small, tmp_path)
    training, _ = unheard.splits_of(corpus, False)
    for k in (2, 5):
        kept = curves.keep(corpus.clips, training, k, 0)
        assert not (kept & ~training).any()
        assert kept[rows_of(corpus, system="x")].all()
        for i in range(4):
            own = training & rows_of(corpus, system=f"s{i}")
            assert (kept & own).sum() == min(k, own.sum())
    other = curves.keep(corpus.clips, training, 2, 1)
    assert (other != curves.keep(corpus.clips, training, 2, 0)).any()


def test_a_curves_predictors_learn_from_what_is_kept(small, tmp_path, monkeypatch, learned):
    monkeypatch.setattr(curves, "prepare", lambda seed: small)
    seen = []

    def ridge(corpus, rows, new, fold):
        seen.append((rows, fold))
        return np.arange(new.sum())
    monkeypatch.setattr(curves, "by_ridge", ridge)
    found = curves.one_job(tmp_path, (4, 2))
    corpus = unheard.load(small, tmp_path)
    training, tested = unheard.splits_of(corpus, False)
    kept = curves.keep(corpus.clips, training, 2, 4)
    np.testing.assert_array_equal(seen[0][0], kept)
    np.testing.assert_array_equal(seen[0][1], fold_of(corpus.clips, evaluate.FOLDS))
    assert len(learned[0][2].mos) == kept.sum()
    clips = [clip for clip, row in zip(corpus.clips, tested) if row]
    true, system = [clip.mos for clip in clips], [clip.system for clip in clips]
    result = moemos.metrics(np.arange(16), true, system)
    assert found[1] == pytest.approx([result["utterance"]["LCC"], result["system"]["LCC"]])
    assert found[2] == pytest.approx([1, 1])  # here a condition has one MOS


def test_curves_are_printed_and_written_with_paired_intervals(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    numbers = {(seed, k): rng.uniform(size=(3, 2)) for seed in (7, 8) for k in curves.K}
    in_this_process(monkeypatch, curves)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curves, "CORPORA", (7, 8))
    monkeypatch.setattr(curves, "prepare", lambda seed: None)
    monkeypatch.setattr(curves, "one_job", lambda cache, job: numbers[job])
    assert call(monkeypatch, curves) == 0
    lines = capsys.readouterr().out.splitlines()
    written = json.loads((tmp_path / curves.PATH).read_text())
    assert written["k"] == [2, 5, 10, 20]
    for i, metric in enumerate(("utterance LCC", "system LCC")):
        _, *rows = lines[6 * i:6 * i + 6]
        for j, name in enumerate(curves.PREDICTORS):
            means = [np.mean([numbers[seed, k][j, i] for seed in (7, 8)]) for k in curves.K]
            assert [float(word) for word in rows[j].split()[-4:]] == pytest.approx(means, abs=6e-4)
            assert [values[0] for values in written[metric][name]] == pytest.approx(means)
        for j in (1, 2):
            own = [[numbers[seed, k][0, i] - numbers[seed, k][j, i] for seed in (7, 8)]
                   for k in curves.K]
            expected = ""
            for values in own:
                low, high = scipy.stats.t.interval(0.95, 1, np.mean(values),
                                                   scipy.stats.sem(values))
                expected += f" {with_interval(np.mean(values), low, high)}"
            assert " ".join(rows[2 + j].split()).endswith(expected)
