"""Tests of the comparison with ridge and the condition's mean: who learns from what, its tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import data
import evaluate
import moemos
import train
from studies import choose, compare, straight_line
from studies.test_choose import (  # noqa: F401 - fixtures
    CASES,
    CLIPS,
    clip,
    in_this_process,
    learned,
    names_of,
    talkers,
)
from test_moemos import call, lay_out, nan, no_network, small  # noqa: F401 - fixtures


def test_condition_means_by_hand():
    training = [clip("a", 1.0, "p"), clip("b", 2.0, "p"), clip("c", 5.0, "q"), clip("d", 2.0, "q")]
    new = [clip("e", 1.0, "q"), clip("f", 1.0, "new"), clip("g", 1.0, "p")]
    assert straight_line.condition_means(training, new).tolist() == [3.5, 2.5, 1.5]


def test_numbers_are_those_of_their_columns():
    rng = np.random.default_rng(0)
    clips = [clip(str(i), rng.uniform(1, 5), f"s{i % 5}") for i in range(30)]
    predicted = rng.normal(size=30)
    result = moemos.metrics(predicted, [own.mos for own in clips], [own.system for own in clips])
    within = [moemos.lcc(predicted[i::5], np.array([own.mos for own in clips])[i::5])
              for i in range(5)]
    expected = {"utterance LCC": result["utterance"]["LCC"], "system LCC": result["system"]["LCC"],
                "system SRCC": result["system"]["SRCC"], "LCC within a system": np.mean(within)}
    assert tuple(expected) == straight_line.COLUMNS
    assert straight_line.correlations(predicted, clips) == pytest.approx(list(expected.values()))


# -- Ten corpora -----------------------------------------------------------------------------------

@pytest.fixture
def folder(small, tmp_path, monkeypatch):
    """A folder to run in, in which the small corpus stands for a simulated one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(straight_line, "prepare", lambda seed: str(small))
    return tmp_path


def test_rows_of_a_corpus_are_of_the_run_and_of_the_conditions_mean(folder, learned):
    rows, least = straight_line.one_corpus("features", 200)
    assert learned[0][0] == list(train.STAGES)
    result = evaluate.evaluate("runs/straight_line/200")
    assert least == pytest.approx(min(result["expert_use"]))
    assert rows[0] == pytest.approx([result["utterance"]["LCC"], result["system"]["LCC"],
                                     result["system"]["SRCC"], result["lcc_within_systems"]],
                                    nan_ok=True)
    assert rows[2, :3] == pytest.approx([1, 1, 1])  # here a condition has one MOS


def test_a_corpuss_ridge_learns_from_what_is_not_held_out_in_folds_by_sentence(
        small, folder, monkeypatch, learned):
    def look(x, y, new, fold):
        seen.extend((x, y, new, fold))
        return answer
    seen, answer = [], np.random.default_rng(0).normal(size=16)
    monkeypatch.setattr(evaluate, "ridge", look)
    rows, _ = straight_line.one_corpus("features", 200)
    clips = data.read_manifest(small)
    test = [own for own in clips if own.split == "test"]
    known = [own for own in train.split_training(clips, train.Config())[0] if own.ratings]
    assert rows[1] == pytest.approx(straight_line.correlations(answer, test), nan_ok=True)
    backbone = moemos.load_backbone("logmel")
    for found, some in ((seen[0], known), (seen[2], test)):
        features = data.extract_features(some, backbone, "features")
        np.testing.assert_array_equal(found, features.flatten(1))
    assert seen[1].tolist() == [own.mos for own in known]
    assert seen[3].tolist() == choose.fold_of(known, 5).tolist()


def test_the_table_of_corpora_has_their_rows_means_and_paired_differences(monkeypatch, capsys):
    rng = np.random.default_rng(0)
    rows = {seed: rng.uniform(size=(3, 4)) for seed in (7, 8, 9)}
    in_this_process(monkeypatch, straight_line)
    monkeypatch.setattr(straight_line, "SEEDS", tuple(rows))
    monkeypatch.setattr(straight_line, "one_corpus", lambda cache, seed: (rows[seed], seed / 10))
    straight_line.ten_corpora("cache")
    lines = capsys.readouterr().out.splitlines()
    shown = {**rows, "mean": np.mean(list(rows.values()), axis=0)}
    for (label, own), printed in zip(shown.items(), lines[2:6], strict=True):
        said = [f"{value:.3f}" for value in own.T.ravel()[:-1]]  # not of it within a condition
        words = printed.replace("/", " ").split()
        assert words[0] == str(label)
        assert words[1:12] == said
        assert words[12:] == ([f"{label / 10:.2f}"] if label in rows else [])
    for other, start, columns in ((1, 6, 4), (2, 11, 3)):
        for i, printed in enumerate(lines[start + 1:start + 1 + columns]):
            of = np.array([own[0, i] - own[other, i] for own in rows.values()])
            low, high = scipy.stats.t.interval(0.95, 2, of.mean(), scipy.stats.sem(of))
            assert printed.split(straight_line.COLUMNS[i])[1].split() == [
                f"{of.mean():+.4f}", f"[{low:+.4f},", f"{high:+.4f}]"]
    assert (lines[6], lines[11]) == ("less ridge, 95 % over corpora:",
                                     "less the condition's mean, 95 % over corpora:")


# -- Folds by talker -------------------------------------------------------------------------------

def test_a_talker_is_never_learned_from_and_thinned_by_two_means_half_as_many(
        talkers, tmp_path, learned):
    every = {}
    for thinned, repeat in ((1, 0), (2, 0), (1, 1)):
        straight_line.one_talker(talkers, tmp_path, "t2", thinned, repeat)
        stages, config, training, validation = learned[-1]
        names = names_of(training, talkers, tmp_path)
        assert not any("t2" in name for name in names)
        assert set(names) <= {wav for wav, *_ in CLIPS} | {"s0_test_t1.wav"}  # rated
        assert set(names_of(validation, talkers, tmp_path)) == {
            wav for wav, _, _, t in CLIPS if t == 2}
        assert (stages, config) == (train.STAGES, train.Config(backbone="logmel", seed=repeat))
        every[thinned, repeat] = names
    others = 3 * 6 + 1  # the clip to test too: the split is ignored
    assert len(every[1, 0]) == others - others // 10
    assert len(every[2, 0]) == len(every[1, 0]) // 2
    assert set(every[2, 0]) < set(every[1, 0])
    assert set(every[1, 0]) != set(every[1, 1])


def test_a_talker_is_predicted_by_head_two_ridges_and_the_conditions_mean(
        talkers, tmp_path, learned):
    predicted = straight_line.one_talker(talkers, tmp_path, "t0", 1, 0)
    names = names_of(learned[0][2], talkers, tmp_path)
    clips = {own.wav: own for own in data.read_manifest(talkers)}
    known = [clips[name] for name in names]
    new = [clips[wav] for wav, _, _, t in CLIPS if t == 0]
    assert predicted.shape == (4, len(new))
    backbone = moemos.load_backbone("logmel")
    x, x_new = (data.extract_features(some, backbone, tmp_path).double().numpy()
                for some in (known, new))
    mos, fold = np.array([own.mos for own in known]), choose.fold_of(known, 5)
    for row, of, of_new in ((1, x.reshape(len(x), -1), x_new.reshape(len(new), -1)),
                            (2, x[:, 0], x_new[:, 0])):
        assert predicted[row] == pytest.approx(evaluate.ridge(of, mos, of_new, fold), abs=1e-5)
    for own, mean in zip(new, predicted[3]):
        alike = [other.mos for other in known if other.system == own.system]
        assert mean == pytest.approx(sum(alike) / len(alike))
    assert np.isfinite(predicted[0]).all()
    assert len(set(predicted[0])) == len(new)


def test_the_table_of_talkers_has_means_over_repeats_of_all_talkers_together(
        talkers, tmp_path, monkeypatch, capsys):
    """Predictors: what is right, its opposite, noise on it, and the talker's number."""
    table = (talkers / "ratings.csv").read_text()
    (talkers / "ratings.csv").write_text(table.replace("x_t0.wav,train,x,,", "x_t0.wav,dev,x,r,4"))
    rated = [own for own in data.read_manifest(talkers) if own.ratings and own.split != "dev"]
    mos, system = np.array([own.mos for own in rated]), [own.system for own in rated]
    talker = np.array([int(choose.group_of(own)[1]) for own in rated])

    def noisy(thinned, repeat):
        return mos + np.random.default_rng([thinned, repeat]).normal(size=len(mos))

    def predict(corpus, cache, own, thinned, repeat):
        rows = np.stack([mos, -mos, noisy(thinned, repeat), talker])
        return rows[:, talker == int(own[1])]

    in_this_process(monkeypatch, straight_line)
    monkeypatch.setattr(straight_line, "one_talker", predict)
    monkeypatch.setattr(evaluate, "RESAMPLES", 10)
    monkeypatch.chdir(tmp_path)
    straight_line.folds_by_talker(talkers, "cache")
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("talkers: 25 clips, 4 folds by talker, mean of 3")
    tables = json.loads(Path("runs/straight_line/on_talkers.json").read_text())["tables"]
    place = np.argsort(talker, kind="stable")  # talker after talker, as they are resampled
    right = mos[place], [system[i] for i in place]
    for metric, column in (("utterance LCC", 1), ("system LCC", 5)):
        for i, thinned in enumerate((1, 2, 4)):
            noise = [noisy(thinned, repeat)[place] for repeat in range(3)]
            found = [evaluate.eight(moemos.metrics(row, *right))[column] for row in noise]
            by_talker = evaluate.eight(moemos.metrics(talker, mos, system))[column]
            means = {name: values[i][0] for name, values in tables[metric]["means"].items()}
            assert means == pytest.approx({
                "the head": 1, "ridge on all statistics": -1,
                "ridge on the static ones": np.mean(found), "condition's mean": by_talker})
            less = tables[metric]["differences"]
            assert less["head less ridge on all statistics"][i] == pytest.approx([2, 2, 2])
            drawn = [evaluate.resample(mos[place], *right) - evaluate.resample(row, *right)
                     for row in noise]
            bounds = evaluate.interval(np.mean(drawn, axis=0))[:, column]
            assert less["head less ridge on the static ones"][i] == pytest.approx(
                compare.joined(1 - np.array(found), bounds))


def test_a_table_is_printed_from_what_is_stored(tmp_path, capsys):
    tables = {"MSE": {"means": {"ridge": [[1.2345, 1, 2], [nan, nan, nan]]},
                      "differences": {"a less b": [[0.1, -0.05, 0.25], [0.1, nan, nan]]}}}
    straight_line.report({"columns": ["all", "half"], "tables": tables}, tmp_path / "table.json")
    *printed, last = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in printed] == [
        "MSE all half", "ridge 1.234 -", "a less b +.100 [-.050, +.250] -"]
    assert [line.index(word) for line, word in zip(printed, ("half", "-", "-"))] == [62, 62, 45]
    assert last == f"wrote {tmp_path / 'table.json'}"
    straight_line.show(json.loads((tmp_path / "table.json").read_text()))
    assert capsys.readouterr().out.splitlines() == printed


def test_the_command_line_chooses_corpora_or_talkers_and_refuses_two(
        talkers, tmp_path, monkeypatch, capsys):
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(straight_line, "ten_corpora", lambda cache: done.append(cache))
        patch.setattr(straight_line, "folds_by_talker", lambda *both: done.append(both))
        assert call(patch, straight_line, "--cache", "c") == 0
        assert call(patch, straight_line, "--data", "d", "--cache", "c") == 0
    assert done == ["c", ("d", "c")]
    rows = "wav,split,system,rater,score\na_1.wav,train,s,r,1\na_2.wav,train,s,r,2\n"
    two = lay_out(tmp_path / "two", {"ratings.csv": rows}, ["a_1.wav", "a_2.wav"])
    assert call(monkeypatch, straight_line, "--data", two) == 2
    assert "two: fewer than three sentences or talkers" in capsys.readouterr().err
