"""Tests of the comparison: its intervals against known answers, its reading of runs."""

import contextlib
import json
import math
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import data
import evaluate
import moemos
import train
from studies import compare, experiments
from studies.test_choose import talkers  # noqa: F401 - a fixture
from test_moemos import call, nan, no_network, quick, small, table  # noqa: F401 - fixtures


@pytest.fixture
def no_pool(monkeypatch):
    """Runs are read in this process, and few resamples are drawn: all else takes seconds."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 20)
    threads = torch.get_num_threads()
    pool = types.SimpleNamespace(map=map)
    monkeypatch.setattr(compare, "worker_pool", lambda jobs: contextlib.nullcontext(pool))
    yield
    torch.set_num_threads(threads)


def run_of(predicted, true, system, seed=0, corpus="corpus", noise=0.04, **others):
    numbers = evaluate.eight(moemos.metrics(predicted, true, system))
    fields = {"settings": {}, "corpora": [Path(corpus)], "results": [], "wav": [], "predicted": [],
              "label_noise": noise, "adaptation": None, "within": nan, "numbers": numbers,
              "resampled": evaluate.resample(predicted, true, system, seed)}
    return compare.Run(**fields | others)


def differences(pairs, systems="others"):
    """{"utterance": {"MSE": [mean, low, high, p], ...}, ...} of pairs of Runs."""
    return evaluate.nested(compare.difference(*zip(*pairs))[systems].T)


# -- Statistics ------------------------------------------------------------------------------------

@pytest.mark.parametrize("values", [[0.0, 1.0], [1.0, 2.0, 4.0], [3.0, -1.0, 0.5, 2.0, 2.5]])
def test_student_is_the_interval_of_scipys_t_with_one_degree_of_freedom_less(values):
    mean, low, high = compare.student(np.array(values))
    n = len(values)
    expected = scipy.stats.t.interval(0.95, n - 1, np.mean(values), scipy.stats.sem(values))
    assert (mean, low, high) == pytest.approx((np.mean(values), *expected), rel=1e-9)


def test_student_of_five_values_by_hand():
    mean, low, high = compare.student(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)  # t of 4 degrees of freedom; variance 10 / 4
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half), rel=1e-6)


def test_student_of_one_value_has_no_interval():
    mean, low, high = compare.student(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1, 2]
    assert np.isnan([low, high]).all()


def known_pairs(rng):
    """Pairs of runs whose true difference is known: none, or an MSE higher by 1.0^2 - 0.5^2."""
    system = np.arange(120) % 20
    pairs = {"equal": [], "worse": [], "one corpus": []}
    shared = rng.normal(size=120) + rng.normal(size=20)[system]
    predictors = [shared + 0.5 * rng.normal(size=120) for _ in range(2)]  # clips do to both alike
    for seed in range(5):
        true = rng.normal(size=120) + rng.normal(size=20)[system]
        one, other, worse = (run_of(true + sd * rng.normal(size=120), true, system, seed, str(seed))
                             for sd in (0.5, 0.5, 1.0))
        pairs["equal"].append((one, other))
        pairs["worse"].append((worse, one))
        pairs["one corpus"].append([
            run_of(predicted + 0.1 * rng.normal(size=120), shared, system, 7)
            for predicted in predictors])
    return pairs | {"one pair": pairs["equal"][:1]}


def test_intervals_find_a_known_difference_and_miss_none_in_about_95_of_100_cases(monkeypatch):
    monkeypatch.setattr(moemos, "METRICS", {"MSE": moemos.mse, "LCC": moemos.lcc})
    monkeypatch.setattr(evaluate, "RESAMPLES", 100)
    rng = np.random.default_rng(0)
    found = {"one pair": [], "equal": [], "worse": [], "one corpus": []}
    narrow = {"equal": [], "worse": []}
    for _ in range(40):
        pairs = known_pairs(rng)
        for name, results in found.items():
            results.append(differences(pairs[name]))
        for name, results in narrow.items():
            results.append(differences(pairs[name], "these"))

    def share(results, level, metric, truth=0):
        bounds = [numbers[level][metric] for numbers in results]
        return np.mean([low <= truth <= high for _, low, high, _ in bounds])

    for name, low, high in (("one pair", 0.87, 0.99), ("equal", 0.93, 1), ("one corpus", 0.9, 1)):
        for metric in ("MSE", "LCC"):
            assert low <= share(found[name], "utterance", metric) <= high
    assert 0.83 <= share(found["one pair"], "system", "MSE") <= 0.99
    worse = [numbers["utterance"] for numbers in found["worse"]]
    assert np.mean([numbers["MSE"][0] for numbers in worse]) == pytest.approx(0.75, abs=0.01)
    assert share(found["worse"], "utterance", "MSE", 0.75) >= 0.92
    assert all(numbers["MSE"][1] > 0 > numbers["LCC"][2] for numbers in worse)
    for level in ("utterance", "system"):  # of 40 cases
        for metric in ("MSE", "LCC"):
            assert 0.87 <= share(narrow["equal"], level, metric) <= 1
    assert 0.87 <= share(narrow["worse"], "utterance", "MSE", 0.75) <= 1
    widths = [np.array([own["utterance"]["LCC"][2] - own["utterance"]["LCC"][1] for own in results])
              for results in (narrow["equal"], found["equal"])]
    wider = math.hypot(2.776, 1.96) / 2.776  # Student's factor of five pairs, the normal one's
    assert np.median(widths[1] / widths[0]) == pytest.approx(wider, abs=0.1)
    p = [numbers["utterance"]["LCC"][3] for numbers in narrow["equal"]]
    assert np.mean(np.array(p) < 0.5) == pytest.approx(0.5, abs=0.2)  # uniform where none is


def test_pairs_with_corpora_of_their_own_have_students_interval_and_t_test():
    rng = np.random.default_rng(1)
    system = np.arange(60) % 6
    pairs = []
    for seed in range(4):
        true = rng.normal(size=60)
        pairs.append([run_of(true + rng.normal(size=60), true, system, seed, f"c{seed}")
                      for _ in range(2)])
    one, other = (np.array([run.numbers for run in runs]) for runs in zip(*pairs))
    mean, low, high, p = compare.difference(*zip(*pairs))["these"]
    test = scipy.stats.ttest_rel(one, other)
    interval = test.confidence_interval(0.95)
    np.testing.assert_allclose(mean, (one - other).mean(0))
    np.testing.assert_allclose([low, high], [interval.low, interval.high], rtol=1e-9)
    np.testing.assert_allclose(p, test.pvalue, rtol=1e-9)


def test_pairs_on_one_corpus_say_nothing_narrower_than_for_other_clips():
    rng = np.random.default_rng(1)
    true, system = rng.normal(size=60), np.arange(60) % 6
    pairs = [[run_of(true + rng.normal(size=60), true, system) for _ in range(2)]
             for _ in range(3)]
    for some in (pairs, pairs[:1]):
        found = compare.difference(*zip(*some))
        np.testing.assert_array_equal(found["these"], found["others"])
    mean, low, high, p = found["others"]
    towards_0 = [m - l if m > 0 else h - m for m, l, h in zip(mean, low, high)]
    z = np.abs(mean) / (np.array(towards_0) / 1.96)
    np.testing.assert_allclose(p, scipy.stats.norm.sf(z) * 2, rtol=1e-9)


def test_p_is_below_05_exactly_where_the_interval_of_a_shared_corpus_excludes_0(monkeypatch):
    monkeypatch.setattr(moemos, "METRICS", {"MSE": moemos.mse, "LCC": moemos.lcc})
    monkeypatch.setattr(evaluate, "RESAMPLES", 100)
    rng = np.random.default_rng(2)
    shown = []
    for _ in range(20):
        true, system = rng.normal(size=60) ** 3, np.arange(60) % 20
        pair = [run_of(true + sd * rng.normal(size=60), true, system) for sd in (1.0, 1.4)]
        for _, low, high, p in compare.difference(*([run] for run in pair))["others"].T:
            assert (p < 0.05) == (low > 0 or high < 0)
            shown.append(p < 0.05)
    assert 20 < sum(shown) < len(shown) - 20


def test_p_is_1_of_no_difference_at_all_and_0_of_one_without_spread():
    p = compare.p_value(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0]), 4)
    assert p == pytest.approx([1, 0, 2 * scipy.stats.t.sf(2, 4)])


def test_holm_by_hand():
    """Four p-values, smallest first: .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06, .9 x 1."""
    assert compare.holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert compare.holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])  # not .04: none before it
    assert compare.holm([0.6, 0.7]).tolist() == [1, 1]
    assert compare.holm([0.02]).tolist() == [0.02]


def test_holm_claims_a_difference_where_there_is_none_in_no_more_than_5_of_100_families():
    rng = np.random.default_rng(0)
    families = rng.uniform(size=(2000, 30))
    assert np.mean([compare.holm(p).min() < 0.05 for p in families]) < 0.065


def test_other_systems_count_once_however_many_corpora_have_the_same(monkeypatch):
    """Errors that differ by system alike in all corpora: five pairs are no narrower than one."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    system = np.repeat([f"s{i}" for i in range(20)], 5)
    offset = np.repeat(rng.normal(size=20), 5)
    pairs = []
    for seed in range(5):
        true = np.repeat(rng.normal(size=20), 5)
        one, other = (run_of(true + wrong, true, system, seed, str(seed))
                      for wrong in (offset, 0 * offset))
        pairs.append((one, other))
    one, five = (differences(some)["system"]["MSE"] for some in (pairs[:1], pairs))
    assert five == pytest.approx(one, rel=1e-6)
    assert one[2] - one[1] > 0.4
    _, low, high, _ = differences(pairs, "these")["system"]["MSE"]
    assert high - low < 1e-6  # these systems differ alike in every corpus


def test_only_the_wide_interval_holds_what_other_systems_would_have_shown(monkeypatch):
    """Five corpora have the same 20 systems, drawn from many, and each system its own error. The
    truth, over all systems, is in the wide interval in about 95 of 100 cases, and seldom in the
    narrow one, which is of these systems."""
    monkeypatch.setattr(moemos, "METRICS", {"MSE": moemos.mse})
    monkeypatch.setattr(evaluate, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    system = np.repeat(np.arange(20), 5)
    held = {"these": [], "others": []}
    for _ in range(100):
        offset = np.repeat(rng.normal(size=20), 5)  # mean square 1 over all systems
        pairs = []
        for seed in range(5):
            true = rng.normal(size=100)
            noise = 0.1 * rng.normal(size=(2, 100))
            pairs.append([run_of(true + offset + noise[0], true, system, seed, str(seed)),
                          run_of(true + noise[1], true, system, seed, str(seed))])
        for systems, results in held.items():
            _, low, high, _ = differences(pairs, systems)["system"]["MSE"]
            results.append(low <= 1 <= high)
    assert 0.84 <= np.mean(held["others"]) <= 0.99
    assert np.mean(held["these"]) < 0.4


def test_a_difference_of_equal_runs_is_nothing():
    rng = np.random.default_rng(0)
    true = rng.normal(size=40)
    run = run_of(true + rng.normal(size=40), true, np.arange(40) % 5)
    for mean, low, high, p in compare.difference([run], [run])["others"].T:
        assert (mean, low, high, p) == (0, 0, 0, 1)


def test_the_parts_of_the_error_add_up_and_find_a_shifted_panel():
    rng = np.random.default_rng(0)
    system = np.arange(4000) % 20
    quality = rng.normal(size=4000)
    predicted = quality + 0.3 * rng.normal(size=4000)
    panels = [quality + shift + 0.2 * rng.normal(size=4000) for shift in (0.0, 0.5)]
    training, second = (
        compare.Run({}, [Path("c")], [], [], [], 0.04, None, nan,
                    evaluate.eight(moemos.metrics(predicted, true, system)), None)
        for true in panels)
    parts = compare.decompose([second], [training])
    means = [part[0] for part in parts.values()]
    assert sum(means) == pytest.approx(second.numbers[0])
    assert list(parts) == ["model", "panel", "label noise"]
    assert means == pytest.approx([0.09, 0.25, 0.04], abs=0.02)
    assert compare.decompose([second], [second])["panel"][0] == 0


# -- Reading of runs -------------------------------------------------------------------------------

def trained(small, tmp_path, *names, **settings):
    """Runs into tmp_path, the seed of each the number at the end of its name."""
    for name in names:
        seed = int(name[-1]) if name[-1].isdigit() else 0
        common = {"steps": 1, "out": str(tmp_path / name), "seed": seed}
        train.train(quick(small, tmp_path, **common | settings))


def test_a_folder_is_a_variant_its_subfolders_are_seeds_and_equal_names_make_pairs(
        small, tmp_path, no_pool, capsys):
    trained(small, tmp_path, "all/0", "all/1", "last/0", "last/1", "one")
    folders = [tmp_path / name for name in ("all", "last", "one")]
    rows = compare.compare_folders(folders)
    assert [(row["variant"], row["runs"], row.get("pairs")) for row in rows] == [
        ("1: all", 2, None), ("2: last", 2, 2), ("3: one", 1, None)]
    equal = rows[1]["difference"]["these"]["utterance"].values()
    assert all(numbers == [0, 0, 0, 1] for numbers in equal)  # the same code, here
    assert json.loads((tmp_path / "comparison.json").read_text())[1]["pairs"] == 2
    printed = capsys.readouterr().out
    expected = [np.mean([evaluate.evaluate(tmp_path / f"all/{seed}")["utterance"][name]
                         for seed in (0, 1)]) for name in ("MSE", "LCC")]
    (line,) = [line for line in printed.splitlines() if line.startswith("1: all")]
    assert line.split()[2:4] == [f"{number:.3f}".lstrip("0") for number in expected]
    assert rows[0]["mean"]["utterance"]["LCC"] == pytest.approx(expected[1])


def test_runs_of_a_variant_that_differ_in_more_than_the_seed_are_refused(small, tmp_path, no_pool):
    trained(small, tmp_path, "x/0")
    for settings, what in (({"experts": 2}, "experts"), ({"steps": 2}, "steps, stages")):
        trained(small, tmp_path, "x/1", **settings)
        with pytest.raises(data.InputError, match=f"1: is no seed of x, as it differs in {what};"):
            compare.compare_folders([tmp_path / "x"])


def test_an_experiment_has_the_seeds_that_all_its_variants_have_and_its_own_pairs(
        small, tmp_path, no_pool, monkeypatch, capsys):
    variants = [experiments.Variant("a"), experiments.Variant("b"),
                experiments.Variant("c", against="b"), experiments.Variant("backbone=none")]
    monkeypatch.setitem(experiments.EXPERIMENTS, "one", experiments.Experiment("Why?", variants))
    monkeypatch.chdir(tmp_path)
    root = "runs/experiments/simulated"
    runs = [f"{root}/{name}/{seed}" for name in "abc" for seed in (3, 4)]
    trained(small, tmp_path, *runs, f"{root}/a/5", f"{root}/b/5", f"{root}/c/5")
    for run in (*runs, f"{root}/a/5", f"{root}/b/5"):  # the last was interrupted
        evaluate.evaluate(run)
    assert call(monkeypatch, compare, "--experiment") == 0  # of all that are finished
    rows = json.loads((tmp_path / root / "one.json").read_text())
    assert [row["variant"] for row in rows] == ["1: a", "2: b", "3: c"]
    assert [row.get("first") for row in rows] == [None, 1, 2]
    assert [row["runs"] for row in rows] == [2, 2, 2]
    assert "\none: Why?\n" in capsys.readouterr().out
    assert call(monkeypatch, compare, "--experiment", "stages") == 2
    assert "no seed is finished in all variants of stages" in capsys.readouterr().err
    assert call(monkeypatch, compare, "--experiment", "--on", "else") == 2
    assert "else holds no finished experiment" in capsys.readouterr().err
    assert call(monkeypatch, compare, "--experiment", "none") == 2
    assert "there is no such experiment" in capsys.readouterr().err


def test_the_folds_of_a_run_are_one_run_of_all_their_clips(talkers, tmp_path, no_pool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = quick(talkers, tmp_path, steps=1)
    names = experiments.write_folds(base)
    planned = experiments.plan_runs("augmentation", 1, base, names)
    for _, config in planned:
        train.train(config)
    folds, others = ([Path(config.out) for _, config in some]
                     for some in (planned[:4], planned[4:]))
    run = compare.read_run(folds)
    compare.read_run(others)  # which evaluates them
    rows = [row for fold in folds for row in table(fold / "predictions.csv")]
    assert len(rows) == 25  # all that are rated
    true, predicted = (np.array([float(row[name]) for row in rows])
                       for name in ("mos", "predicted"))
    system = [row["system"] for row in rows]
    assert run.numbers == pytest.approx(evaluate.eight(moemos.metrics(predicted, true, system)))
    assert run.within == pytest.approx(evaluate.lcc_within_systems(predicted, true, system))
    assert compare.run_folders(folds[0].parent.parent) == {"0": folds}
    root = folds[0].parent.parent.parent
    assert compare.finished_runs(root, "augmentation") == {
        "augmentation=no": {"0": folds}, "default": {"0": others}}
    assert compare.finished_runs(root, "frontend") == {}  # of the default alone
    (folds[0] / "metrics.json").unlink()
    assert compare.finished_runs(root, "augmentation") == {}
    again = run._replace(corpora=run.corpora[::-1])
    assert compare.same_clips(run, run)
    assert not compare.same_clips(run, again)
    means = compare.summary([run, run])
    accuracy = [result["accuracy"] for result in run.results]
    assert means["accuracy"] == pytest.approx(np.mean(accuracy))


def test_one_model_rated_by_two_panels_has_its_error_in_parts(small, tmp_path, no_pool):
    rows = table(small / "ratings.csv")
    for panel, shift in (("training", 0.0), ("second", 1.0)):
        changed = []
        for i, row in enumerate(rows):
            score = row["score"]
            if score and row["split"] == "test":
                score = min(5.0, float(score) + shift + (i % 3 == 0))  # and some label noise
            changed.append((small / row["wav"], *list(row.values())[1:5], score))
        data.write_csv(tmp_path / "corpus" / f"ratings_{panel}.csv", [data.HEADER, *changed])
        train.train(quick(tmp_path / "corpus" / f"ratings_{panel}.csv", tmp_path, steps=1,
                          out=str(tmp_path / "runs" / panel)))
    found = compare.compare_folders([tmp_path / "runs" / panel
                                     for panel in ("training", "second")])
    assert "parts" not in found[0]
    mse = [json.loads((tmp_path / "runs" / panel / "metrics.json").read_text())["utterance"]["MSE"]
           for panel in ("training", "second")]
    assert found[1]["difference"]["others"]["utterance"]["MSE"][0] == pytest.approx(mse[1] - mse[0])
    assert sum(part[0] for part in found[1]["parts"].values()) == pytest.approx(mse[1])


def test_all_runs_on_one_corpus_draw_the_same_clips(small, tmp_path):
    trained(small, tmp_path, "0", "1")
    for name in "01":
        run = compare.read_run([tmp_path / name])
        rows = table(tmp_path / name / "predictions.csv")
        errors = np.array([float(row["predicted"]) - float(row["mos"]) for row in rows])
        rng = np.random.default_rng(zlib.crc32(small.name.encode()))
        draws = rng.integers(16, size=(evaluate.RESAMPLES, 16))
        assert run.resampled[:, 0] == pytest.approx([np.mean(errors[d] ** 2) for d in draws])


@pytest.mark.parametrize(("name", "content"), [
    ("metrics.json", "{}"), ("metrics.json", "null"), ("model.pt", "text"),
    ("adaptation.json", "{"),
    ("predictions.csv", "wav,system,model,mos,predicted\n"),
    ("predictions.csv", "wav,system,model,mos,predicted\na,s,m,3,nan\n")])
def test_damaged_files_of_a_run_are_refused(small, tmp_path, name, content):
    trained(small, tmp_path, "run")
    evaluate.evaluate(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(data.InputError, match="its files are damaged"):
        compare.read_run([tmp_path / "run"])


@pytest.mark.parametrize(("words", "why"), [
    (["nowhere"], "nowhere: is no folder"), (["EMPTY"], "is no run and holds none"),
    (["README.md"], "is no folder"), ([], "nothing to compare; give folders of runs")])
def test_what_is_no_variant_gets_one_sentence(tmp_path, monkeypatch, capsys, words, why):
    (tmp_path / "empty").mkdir()
    words = [word.replace("EMPTY", str(tmp_path / "empty")) for word in words]
    assert call(monkeypatch, compare, *words) == 2
    assert why in capsys.readouterr().err


def test_numbers_are_printed_short():
    assert [compare.short(x) for x in (0.1234, -0.05, 1.5, -0.0, 12.0)] == [
        "+.123", "-.050", "+1.500", "-.000", "+12.000"]
    assert compare.short(nan) == "+nan"
