"""Tests of what the gates follow: shares of their variance whose answer is known."""

import numpy as np
import pytest

import data
import evaluate
import train
from studies import gates
from studies.compare import student
from studies.test_choose import talkers  # noqa: F401 - a fixture
from test_moemos import call, no_network, quick, run, small  # noqa: F401 - fixtures

RNG = np.random.default_rng(0)
MODEL = RNG.integers(4, size=4000)
RATE = RNG.integers(3, size=4000)
MOS = RNG.normal(size=4000)


def test_gates_of_each_model_alone_are_explained_by_it_alone():
    own = np.eye(4)[MODEL]
    found = gates.shares(own, MODEL, RATE, MOS)
    assert found[[0, 3]] == pytest.approx([1, 1])
    assert found[[1, 2]] == pytest.approx([0, 0], abs=0.01)
    assert found[4:] == pytest.approx([1, 0, 0], abs=0.01)


def test_shares_of_a_mixture_are_those_of_its_variances():
    """Effects of model, rate and noise of variances 1, 4 and 5, the same of both experts."""
    effect = RNG.normal(size=4)[MODEL], RNG.normal(size=3)[RATE], RNG.normal(size=4000)
    total = sum(np.sqrt(variance) * (own - own.mean()) / own.std()
                for variance, own in zip((1, 4, 5), effect))
    found = gates.shares(np.stack([total, 1 - total], axis=1), MODEL, RATE, MOS)
    assert found == pytest.approx([0.1, 0.4, 0, 0.5, 0.1, 0.4, 0], abs=0.03)


def test_two_causes_that_are_one_add_nothing_to_each_other():
    quality = MODEL + 1e-6 * MOS  # the groups are the models
    found = gates.shares(np.eye(4)[MODEL], MODEL, RATE, quality)
    assert found[2] > 0.9
    assert found[4] < 0.1
    assert found[6] == pytest.approx(0, abs=0.01)


def test_groups_that_mean_nothing_explain_nothing_on_average():
    rng = np.random.default_rng(1)
    found = [gates.explained(rng.normal(size=(40, 3)), [gates.indicators(rng.integers(8, size=40))])
             for _ in range(200)]
    assert np.mean(found) == pytest.approx(0, abs=0.02)


def test_quality_groups_are_of_equal_size_from_the_worst_to_the_best():
    assert gates.quality_groups(np.array([3.0, 1.0, 2.0, 9.0]), 2).tolist() == [1, 0, 0, 1]
    assert gates.quality_groups(np.array([3.0, 1.0, 3.0, 3.0]), 2).tolist() == [1, 0, 1, 1]


def test_a_runs_shares_are_of_its_own_gates(run, monkeypatch, capsys):
    assert call(monkeypatch, gates, run, run) == 0
    printed = capsys.readouterr().out
    trained = evaluate.load_run(run)
    clips = [clip for clip in data.read_manifest(trained.config.data) if clip.split == "test"]
    own = evaluate.predict_clips(trained, clips).gates.double().numpy()
    expected = gates.shares(own, [clip.model for clip in clips], ["one"] * 16,
                            [clip.mos for clip in clips])
    assert gates.of_run(run) == pytest.approx(expected)
    mean, low, high = (100 * value[0] for value in student(np.stack([expected] * 2)))
    assert f"synthesis model     {mean:.0f} [{low:.0f}, {high:.0f}]" in printed
    assert printed.startswith("2 runs;")
    assert call(monkeypatch, gates, run) == 0
    assert "[" not in capsys.readouterr().out  # of one run there is no interval


def test_a_run_of_one_expert_gets_one_sentence(small, tmp_path, monkeypatch, capsys):
    train.train(quick(small, tmp_path, steps=1, experts=1))
    assert call(monkeypatch, gates, tmp_path / "run") == 2
    assert "its gates are the same for all clips" in capsys.readouterr().err


def test_too_few_clips_for_the_groups_get_one_sentence(talkers, tmp_path, monkeypatch, capsys):
    train.train(quick(talkers, tmp_path, steps=1))
    assert call(monkeypatch, gates, tmp_path / "run") == 2
    assert "1 rated test clips are too few for 3 groups" in capsys.readouterr().err
    rows = (talkers / "ratings.csv").read_text().replace(",test,", ",train,")
    (talkers / "ratings.csv").write_text(rows)
    assert call(monkeypatch, gates, tmp_path / "run") == 2
    assert "0 rated test clips are too few" in capsys.readouterr().err
