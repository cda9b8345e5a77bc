"""Tests of leaving one out and of learning curves: who learns from what, and the tables."""

import json

import numpy as np
import pytest
import scipy.stats

import data
import evaluate
import moemos
import train
from studies import compare, curves, fusion, unheard
from studies.choose import fold_of
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

@pytest.mark.parametrize("what", ["method", "synthesis model", "system"])
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
        calls = seen[3 * i:3 * i + 3]
        assert [who for who, *_ in calls] == ["head", "head", "ridge"]
        for _, rows, new, _ in calls:
            np.testing.assert_array_equal(rows, rest)
            np.testing.assert_array_equal(new, own)
        head, without, ridge = (others for *_, others in calls)
        assert head == (5,)
        assert without == (5, fusion.build_separate_heads)
        np.testing.assert_array_equal(ridge[0], groups)
        for j in range(3):
            assert (found[j, own] == 3 * i + j + 1).all()
        known = [clip for clip, row in zip(corpus.clips, rest) if row and clip.ratings]
        assert found[3, own] == pytest.approx(np.mean([clip.mos for clip in known]))
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
    found = {what: unheard.groups_left_out(clips, what).tolist() for what in unheard.LEFT_OUT}
    assert found == {"method": ["nv", "nv", "tts"], "synthesis model": ["nv", "nvSR", "tts"],
                     "system": ["16k_nv", "16k_nvSR", "16k_tts"], "nothing": ["", "", ""]}


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


def test_where_nothing_is_left_out_all_training_clips_teach(small, tmp_path, monkeypatch):
    corpus = unheard.load(small, tmp_path)
    training, tested = unheard.splits_of(corpus, False)
    seen = []

    def predict(own, rows, new, *others):
        seen.append((rows, new, others))
        return np.arange(new.sum())
    monkeypatch.setattr(unheard, "by_head", predict)
    monkeypatch.setattr(unheard, "by_ridge", predict)
    found = unheard.leave_out(corpus, "nothing", 5, training, tested)
    head, _, ridge = seen
    for rows, new, _ in seen:
        np.testing.assert_array_equal(rows, training)
        np.testing.assert_array_equal(new, tested)
    assert head[2] == (5,)
    np.testing.assert_array_equal(ridge[2][0], fold_of(corpus.clips, evaluate.FOLDS))
    clips = [clip for clip, row in zip(corpus.clips, tested) if row]
    known = [clip for clip, row in zip(corpus.clips, training) if row and clip.ratings]
    assert found[3, tested] == pytest.approx(condition_means(known, clips))


def rated(mos, model, system=""):
    return data.Clip("", None, "test", system or model, model, {"r": mos})


def test_the_methods_level_is_the_mean_error_of_each_squared():
    clips = [rated(1.0, "nv"), rated(3.0, "nvSR"), rated(2.0, "tts"), rated(4.0, "tts"),
             rated(5.0, "tts"), rated(5.0, "tts")]
    predicted = np.array([1.5, 2.5, 3.0, 3.0, 5.0, 6.0])  # errors .5 -.5; 1 -1 0 1
    mse, level, lcc, system_lcc = unheard.score(predicted, clips)
    assert mse == pytest.approx((0.25 * 2 + 3) / 6)
    assert level == pytest.approx((2 * 0 ** 2 + 4 * 0.25 ** 2) / 6)
    true, system = [clip.mos for clip in clips], [clip.system for clip in clips]
    result = moemos.metrics(predicted, true, system)
    assert lcc == pytest.approx(result["utterance"]["LCC"])
    assert system_lcc == pytest.approx(result["system"]["LCC"])


def test_others_like_these_are_drawn_whole_and_count_as_often_as_drawn(monkeypatch):
    """One group is wrong by the head, none by ridge: MSEs are means over drawn groups."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    clips = [rated(mos, f"m{i % 4}", f"s{i % 8}") for i, mos in enumerate(rng.uniform(1, 5, 40))]
    groups = np.array([clip.model for clip in clips])
    true = np.array([clip.mos for clip in clips])
    head = true + 0.5 * (groups == "m0")  # ten clips, two systems
    said = np.stack([head, true + 1, true, true])  # head, without classes, ridge, condition's mean
    resampled = unheard.of_others(said, clips, groups)
    np.testing.assert_allclose(resampled[:, 1, 0], 1)  # without classes less ridge
    np.testing.assert_allclose(resampled[:, 2, 0], resampled[:, 0, 0] - 1)
    less = resampled[:, 0]
    drawn = np.rint(less[:, 0] / 0.25 * 4)  # how often m0 is among the four
    np.testing.assert_allclose(less[:, 0], 0.25 * drawn / 4, atol=1e-9)
    np.testing.assert_allclose(less[:, 1], less[:, 0], atol=1e-9)  # all of it level
    assert np.mean(drawn) == pytest.approx(1, abs=0.15)
    assert {0, 1, 2, 3} <= set(drawn) <= {0, 1, 2, 3, 4}
    twice = [rated(clip.mos, "m0", f"{time} {clip.system}") for time in range(2)
             for clip in clips if clip.model == "m0"]
    once = [clip for clip in clips if clip.model != "m0"]
    assert len({clip.system for clip in twice}) == 4
    monkeypatch.setattr(np.random, "default_rng", lambda seed: FixedDraws([[0, 0, 1, 2]]))
    monkeypatch.setattr(evaluate, "RESAMPLES", 1)
    (found,) = unheard.of_others(said, clips, groups)
    kept = [clip for clip in once if clip.model in ("m1", "m2")]
    wrong = np.array([clip.mos + 0.5 for clip in twice] + [clip.mos for clip in kept])
    by_hand = (unheard.score(wrong, twice + kept)
               - unheard.score(np.array([clip.mos for clip in twice + kept]), twice + kept))
    np.testing.assert_allclose(found[0], by_hand, atol=1e-9)


class FixedDraws:
    def __init__(self, draws):
        self.draws = iter(draws)

    def integers(self, n, size):
        return np.array(next(self.draws))


def test_a_jobs_numbers_are_those_of_its_columns(talkers, small, tmp_path, learned, monkeypatch):
    left_out, none = unheard.one_job(tmp_path, (small, "system", 0, False))
    assert none is None
    assert np.isnan(left_out[3, 2:]).all()  # a constant's correlations mean nothing
    assert np.isfinite(left_out[3, :2]).all()
    found, none = unheard.one_job(tmp_path, (small, "nothing", 0, False))
    assert none is None
    corpus = unheard.load(small, tmp_path)
    training, tested = unheard.splits_of(corpus, False)
    said = unheard.leave_out(corpus, "nothing", 0, training, tested)[:, tested]
    clips = [clip for clip, row in zip(corpus.clips, tested) if row]
    for own, numbers in zip(said, found):
        assert numbers == pytest.approx(unheard.score(own, clips), nan_ok=True, rel=1e-5)
    seen = []
    monkeypatch.setattr(unheard, "of_others", lambda *given: seen.extend(given) or "drawn")
    found, drawn = unheard.one_job(tmp_path, (talkers, "system", 0, True))
    said, clips, groups = seen
    assert drawn == "drawn"
    assert groups.tolist() == [clip.system for clip in clips]
    for own, numbers in zip(said[:3], found):
        assert numbers == pytest.approx(unheard.score(own, clips), nan_ok=True)


def test_tables_have_the_means_and_students_intervals(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    paths = ("runs/corpora/7", "runs/corpora/8", "runs/corpora/9")
    found = {(path, what): rng.uniform(size=(4, 4))
             for path in paths for what in unheard.LEFT_OUT}
    in_this_process(monkeypatch, unheard)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unheard, "CORPORA", (7, 8, 9))
    monkeypatch.setattr(unheard, "prepare", lambda seed: None)
    done = []

    def one_job(cache, job):
        done.append(job[2:])
        return found[job[0], job[1]], None
    monkeypatch.setattr(unheard, "one_job", one_job)
    unheard.simulated("cache")
    assert set(done) == {(0, False)}  # of seed 0, tested on test clips alone
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4 * 9
    result = json.loads((tmp_path / "runs/unheard/simulated.json").read_text())
    assert result["columns"] == ["method", "synthesis model", "system", "nothing"]
    assert tuple(result["tables"]) == unheard.COLUMNS

    def expected(values):
        return [np.mean(values),
                *scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))]
    for i, table in enumerate(result["tables"].values()):
        for k, what in enumerate(result["columns"]):
            own = np.array([found[path, what][:, i] for path in paths])
            heard = np.array([found[path, "nothing"][:, i] for path in paths])
            for j, name in enumerate(unheard.PREDICTORS):
                assert table["means"][name][k] == pytest.approx(expected(own[:, j]))
            less = {name: values[k] for name, values in table["differences"].items()}
            assert less["head less ridge"] == pytest.approx(expected(own[:, 0] - own[:, 2]))
            assert less["without classes less ridge"] == pytest.approx(
                expected(own[:, 1] - own[:, 2]))
            assert less["head less without classes"] == pytest.approx(
                expected(own[:, 0] - own[:, 1]))
            lost = less["head less nothing left out"]
            if what == "nothing":
                assert lost == [None] * 3
            else:
                assert lost == pytest.approx(expected(own[:, 0] - heard[:, 0]))


def test_levels_are_those_that_differ_and_have_three_of_them_rated():
    def levels(models, unrated=()):
        clips = [rated(3.0, model, f"s{i}") for i, model in enumerate(models)]
        clips += [data.Clip("", None, "train", model, model) for model in unrated]
        return unheard.levels_of(clips)
    assert levels(["m3", "m2", "m1", "m0"]) == ["system"]  # each its own method, model and system
    assert levels(["a", "aSR", "b", "c"]) == ["method", "system"]
    assert levels(["a", "a", "aSR", "b", "c"]) == ["method", "synthesis model", "system"]
    assert levels(["a", "b", "c"], ["aSR"]) == ["method", "system"]  # a's twin is left out with it
    assert levels(["a", "a", "a"]) == ["system"]
    assert levels(["a", "b"], ["c"]) == []


def test_another_corpus_has_a_column_a_level_of_means_and_joined_intervals(
        talkers, monkeypatch, tmp_path, capsys):
    in_this_process(monkeypatch, unheard)
    monkeypatch.chdir(tmp_path)
    done = []
    drawn = np.arange(101)[:, None] / 50 * 10.0 ** -np.arange(12)  # of each number its own
    drawn = drawn.reshape(101, 3, 4)

    def one_job(cache, job):
        done.append(job)
        times = {"method": 1, "system": 10}[job[1]] * job[2] ** 2  # seeds 0, 1, 2: 0, 1, 4 times
        return np.arange(16).reshape(4, 4) * times, drawn * times
    monkeypatch.setattr(unheard, "one_job", one_job)
    monkeypatch.setattr(unheard, "levels_of", lambda clips: ["method", "system"])
    assert call(monkeypatch, unheard, "--data", talkers / "ratings.csv", "--cache", tmp_path) == 0
    path = str(talkers / "ratings.csv")
    assert done == [(path, what, seed, True) for what in ("method", "system") for seed in range(3)]
    assert "left out:" in capsys.readouterr().out
    result = json.loads((tmp_path / "runs/unheard/on_talkers.json").read_text())
    assert result["columns"] == ["method", "system"]
    for i, table in enumerate(result["tables"].values()):
        for k, times in enumerate((1, 10)):
            head, ridge = (5 / 3 * (i + 4 * j) * times for j in (0, 2))
            assert table["means"]["the head"][k][0] == pytest.approx(head)
            assert table["means"]["ridge"][k][0] == pytest.approx(ridge)
            for j, (name, less) in enumerate((("head less ridge", -8.0),
                                              ("without classes less ridge", -4.0),
                                              ("head less without classes", -4.0))):
                bounds = np.quantile(drawn[:, j, i] * times * 5 / 3, (0.025, 0.975))
                assert table["differences"][name][k] == pytest.approx(
                    compare.joined(less * times * np.array([0, 1, 4]), bounds))


def test_a_corpus_of_too_few_systems_gets_one_sentence(talkers, monkeypatch, tmp_path, capsys):
    rows = (talkers / "ratings.csv").read_text().replace(",s2,", ",s1,").splitlines()
    (talkers / "few.csv").write_text("\n".join(rows) + "\n")
    assert call(monkeypatch, unheard, "--data", talkers / "few.csv", "--cache", tmp_path) == 2
    assert "few.csv: has rated clips of fewer than three systems" in capsys.readouterr().err


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


def test_curves_are_written_with_paired_intervals(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    numbers = {(seed, k): rng.uniform(size=(3, 2)) for seed in (7, 8) for k in curves.K}
    in_this_process(monkeypatch, curves)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curves, "CORPORA", (7, 8))
    monkeypatch.setattr(curves, "prepare", lambda seed: None)
    monkeypatch.setattr(curves, "one_job", lambda cache, job: numbers[job])
    assert call(monkeypatch, curves) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {curves.PATH}"
    written = json.loads((tmp_path / curves.PATH).read_text())
    assert written["columns"] == ["k = 2", "k = 5", "k = 10", "k = 20"]
    for i, metric in enumerate(("utterance LCC", "system LCC")):
        means, differences = written["tables"][metric].values()
        for place, k in enumerate(curves.K):
            own = np.array([numbers[seed, k][:, i] for seed in (7, 8)])
            for j, name in enumerate(curves.PREDICTORS):
                assert means[name][place] == pytest.approx(compare.student(own[:, j]))
            for j in (1, 2):
                less = differences[f"head less {curves.PREDICTORS[j]}"]
                assert less[place] == pytest.approx(compare.student(own[:, 0] - own[:, j]))
