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
from studies import compare
from test_moemos import call, nan, no_network, quick, small, table  # noqa: F401 - fixtures


@pytest.fixture
def no_pool(monkeypatch):
    """Runs are read in this process: others take seconds to start."""
    threads = torch.get_num_threads()
    pool = types.SimpleNamespace(map=map)
    monkeypatch.setattr(compare, "worker_pool", lambda jobs: contextlib.nullcontext(pool))
    yield
    torch.set_num_threads(threads)


def run_of(predicted, true, system, seed=0, noise=0.04, **others):
    numbers = evaluate.eight(moemos.metrics(predicted, true, system))
    fields = {"settings": {}, "corpus": Path("corpus"), "result": {}, "wav": [], "predicted": [],
              "label_noise": noise, "adaptation": None, "numbers": numbers,
              "resampled": evaluate.resample(predicted, true, system, seed)}
    return compare.Run(**fields | others)


def differences(pairs):
    """{"utterance": {"MSE": [mean, low, high], ...}, ...} of pairs of Runs."""
    return evaluate.nested(compare.difference(*zip(*pairs)).T)


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
        one, other, worse = (run_of(true + sd * rng.normal(size=120), true, system, seed)
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
    for _ in range(40):
        pairs = known_pairs(rng)
        for name, results in found.items():
            results.append(differences(pairs[name]))

    def share(name, level, metric, truth=0):
        bounds = [numbers[level][metric] for numbers in found[name]]
        return np.mean([low <= truth <= high for _, low, high in bounds])

    for name, low, high in (("one pair", 0.87, 0.99), ("equal", 0.93, 1), ("one corpus", 0.9, 1)):
        for metric in ("MSE", "LCC"):
            assert low <= share(name, "utterance", metric) <= high
    assert 0.83 <= share("one pair", "system", "MSE") <= 0.99
    worse = [numbers["utterance"] for numbers in found["worse"]]
    assert np.mean([numbers["MSE"][0] for numbers in worse]) == pytest.approx(0.75, abs=0.01)
    assert share("worse", "utterance", "MSE", 0.75) >= 0.92
    assert all(numbers["MSE"][1] > 0 > numbers["LCC"][2] for numbers in worse)


def test_other_systems_count_once_however_many_corpora_have_the_same(monkeypatch):
    """Errors that differ by system alike in all corpora: five pairs are no narrower than one."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    system = np.repeat([f"s{i}" for i in range(20)], 5)
    offset = np.repeat(rng.normal(size=20), 5)
    pairs = []
    for seed in range(5):
        true = np.repeat(rng.normal(size=20), 5)
        one, other = run_of(true + offset, true, system, seed), run_of(true, true, system, seed)
        pairs.append((one, other))
    one, five = (differences(some)["system"]["MSE"] for some in (pairs[:1], pairs))
    assert five == pytest.approx(one, rel=1e-6)
    assert one[2] - one[1] > 0.4


def test_a_difference_of_equal_runs_is_nothing():
    rng = np.random.default_rng(0)
    true = rng.normal(size=40)
    run = run_of(true + rng.normal(size=40), true, np.arange(40) % 5)
    assert (compare.difference([run], [run]) == 0).all()


def test_the_parts_of_the_error_add_up_and_find_a_shifted_panel():
    rng = np.random.default_rng(0)
    system = np.arange(4000) % 20
    quality = rng.normal(size=4000)
    predicted = quality + 0.3 * rng.normal(size=4000)
    panels = [quality + shift + 0.2 * rng.normal(size=4000) for shift in (0.0, 0.5)]
    training, second = (compare.Run({}, Path("c"), {}, [], [], 0.04, None, numbers, None)
                        for numbers in (evaluate.eight(moemos.metrics(predicted, true, system))
                                        for true in panels))
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
    rows = compare.compare(folders)
    assert [(row["variant"], row["runs"], row.get("pairs")) for row in rows] == [
        ("1: all", 2, None), ("2: last", 2, 2), ("3: one", 1, None)]
    equal = rows[1]["difference"]["utterance"].values()
    assert all(numbers == [0, 0, 0] for numbers in equal)  # the same code, here
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
            compare.compare([tmp_path / "x"])


def test_variants_csv_names_the_variants_and_what_each_is_compared_with(
        small, tmp_path, no_pool):
    trained(small, tmp_path, "01_a/0", "02_b/0", "03_c/0", "04_d/0")
    data.write_csv(tmp_path / "variants.csv", [
        ("folder", "variant", "against"), ("01_a", "a", "a"), ("02_b", "b", "a"),
        ("03_c", "c", "b"), ("04_d", "d", "gone")])
    rows = compare.compare(sorted(tmp_path.glob("0*")))
    assert [row["variant"] for row in rows] == ["1: a", "2: b", "3: c", "4: d"]
    assert [row.get("first") for row in rows] == [None, 1, 2, 1]


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
    found = compare.compare([tmp_path / "runs" / panel for panel in ("training", "second")])
    assert "parts" not in found[0]
    mse = [json.loads((tmp_path / "runs" / panel / "metrics.json").read_text())["utterance"]["MSE"]
           for panel in ("training", "second")]
    assert found[1]["difference"]["utterance"]["MSE"][0] == pytest.approx(mse[1] - mse[0])
    assert sum(part[0] for part in found[1]["parts"].values()) == pytest.approx(mse[1])


def test_all_runs_on_one_corpus_draw_the_same_clips(small, tmp_path):
    trained(small, tmp_path, "0", "1")
    for name in "01":
        run = compare.read_run(tmp_path / name)
        rows = table(tmp_path / name / "predictions.csv")
        errors = np.array([float(row["predicted"]) - float(row["mos"]) for row in rows])
        rng = np.random.default_rng(zlib.crc32(small.name.encode()))
        draws = rng.integers(16, size=(evaluate.RESAMPLES, 16))
        assert run.resampled[:, 0] == pytest.approx([np.mean(errors[d] ** 2) for d in draws])


@pytest.mark.parametrize(("name", "content"), [
    ("metrics.json", "{}"), ("metrics.json", "null"), ("model.pt", "text"),
    ("predictions.csv", "wav,system,model,mos,predicted\n"),
    ("predictions.csv", "wav,system,model,mos,predicted\na,s,m,3,nan\n")])
def test_damaged_files_of_a_run_are_refused(small, tmp_path, name, content):
    trained(small, tmp_path, "run")
    evaluate.evaluate(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(data.InputError, match="its files are damaged"):
        compare.read_run(tmp_path / "run")


@pytest.mark.parametrize(("words", "why"), [
    (["nowhere"], "nowhere: is no folder"), (["EMPTY"], "is no run and holds none"),
    (["README.md"], "is no folder")])
def test_what_is_no_variant_gets_one_sentence(tmp_path, monkeypatch, capsys, words, why):
    (tmp_path / "empty").mkdir()
    words = [word.replace("EMPTY", str(tmp_path / "empty")) for word in words]
    assert call(monkeypatch, compare, *words) == 2
    assert why in capsys.readouterr().err


def test_numbers_are_printed_short():
    assert [compare.short(x) for x in (0.1234, -0.05, 1.5, -0.0, 12.0)] == [
        "+.123", "-.050", "+1.500", "-.000", "+12.000"]
    assert compare.short(nan) == "+nan"
