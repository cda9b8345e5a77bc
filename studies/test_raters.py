"""Tests of the model of the raters, of the calibration of new ones, and of label noise."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import data
import evaluate
import moemos
import train
from corpora import simulated
from studies import raters
from test_moemos import (  # noqa: F401 - fixtures
    call,
    corpus,
    nan,
    no_network,
    quick,
    simulated_corpus,
    small,
)


def clip(name, ratings):
    return data.Clip(name, None, "test", "s", "m", ratings)


# -- The model -------------------------------------------------------------------------------------

def test_raters_are_centred_and_the_mean_rater_is_the_mos():
    model = raters.Raters(3, 50.5, 24.75)
    model.raw_bias.data = torch.tensor([1.0, 2.0, 6.0]) / raters.REACH
    model.raw_gain.data = torch.tensor([0.0, 0.3, 0.0]) / raters.REACH
    mos = torch.tensor([10.0, 80.0])
    said = model(mos)
    assert tuple(said.shape) == (2, 3)
    torch.testing.assert_close(said.mean(1), mos)
    expected = 50.5 + 0.9 * (10.0 - 50.5) + 24.75 * torch.tensor(3.0)
    torch.testing.assert_close(said[0, 2], expected)


def test_the_model_gives_each_raters_opinion_in_training_and_the_mean_raters_in_evaluation():
    torch.manual_seed(0)
    model = raters.RaterMOS(3, 5, 2, hidden=7, dropout=0.0, raters=4, fixed=False)
    model.raters.raw_bias.data = torch.tensor([1.0, 0.0, 0.0, -1.0]) / raters.REACH
    features = torch.randn(6, 3, 10)
    single, mean = model.train()(features).mos, model.eval()(features).mos
    assert (tuple(single.shape), tuple(mean.shape)) == ((6, 4), (6,))
    torch.testing.assert_close(single, mean[:, None] + torch.tensor([1.0, 0.0, 0.0, -1.0]))


def test_without_raters_the_weights_are_drawn_as_without_them():
    weights = []
    for build in (lambda: moemos.MoEMOS(3, 80, 3),
                  lambda: raters.RaterMOS(3, 80, 3, raters=2, fixed=False)):
        torch.manual_seed(0)
        weights.append(build().state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_single_ratings_are_a_matrix_with_nan_where_a_rater_has_none():
    clips = [clip("a", {"x": 1.0, "y": 4.0}), clip("b", {"y": 2.0}), clip("c", {})]
    ratings = raters.single_ratings(clips, ["x", "y"])
    torch.testing.assert_close(ratings, torch.tensor([[1, 4], [nan, 2], [nan, nan]]),
                               equal_nan=True)


# -- Training --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def rater_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "RESAMPLES", 10)  # no test is on its intervals
        raters.run(quick(simulated_corpus(), folder, steps=0), "yes")
    return folder / "run"


def test_the_rater_model_recovers_the_simulated_biases_and_gains(rater_run):
    model = raters.load_raters(rater_run, "yes").model
    true = simulated.draw_panel(np.random.default_rng([101, 0]))
    order = sorted(range(10), key=str)  # of the names of the raters
    for learned, known, least in zip(model.raters.bias_and_gain(), true, (0.9, 0.7)):
        assert moemos.lcc(learned.detach(), known[order]) > least
    assert 0.6 < model.raters.noise.item() < 1.3  # 0.88 ** 2 and the model's own error


def test_calibration_lowers_the_error_where_there_is_bias_and_not_where_there_is_none(rater_run):
    trained = raters.load_raters(rater_run, "yes")
    clips = {c.wav: c for c in data.read_manifest(simulated_corpus())}
    errors = {}
    for panel in ("strict", "unbiased"):
        rated = []
        for planned in simulated.plan_corpus(101, panel):
            if planned.split == "test":
                ratings = {str(r): float(x) for r, x in planned.scores.items()}
                rated.append(replace(clips[f"wav/{planned.name}.wav"], ratings=ratings))
        features = data.extract_features(rated, trained.backbone, trained.config.cache)
        predicted = evaluate.predict(trained.model, features).mos.tolist()
        errors[panel] = raters.adaptation(trained.model.raters, predicted, rated)
    strict, unbiased = errors["strict"], errors["unbiased"]
    assert list(strict) == [0, 1, 5, 20]
    assert strict[20]["MOS"] < strict[0]["MOS"] - 0.1
    assert strict[20]["rating"] < strict[5]["rating"] < strict[0]["rating"] - 0.1
    assert abs(unbiased[20]["MOS"] - unbiased[0]["MOS"]) < 0.03


def test_a_run_with_raters_writes_what_new_raters_cost_and_a_control_has_none(
        small, tmp_path, capsys):
    for kind in ("yes", "single"):
        raters.run(quick(small, tmp_path), kind)
        adaptation = tmp_path / "run" / "adaptation.json"
        assert adaptation.exists() is (kind == "yes")
        assert ("after k ratings" in capsys.readouterr().out) is (kind == "yes")
        if kind == "yes":
            assert list(json.loads(adaptation.read_text())) == ["0", "1", "5", "20"]
    model = raters.load_raters(tmp_path / "run", "single").model
    bias, gain = model.raters.bias_and_gain()
    assert (bias == 0).all()
    assert (gain == 1).all()
    with pytest.raises(data.InputError, match="of another version"):  # it is no run of the core
        evaluate.load_run(tmp_path / "run")


def test_the_noise_of_a_rating_is_that_of_the_held_out_clips_without_dropout(small, tmp_path):
    config = quick(small, tmp_path)
    model = raters.train_raters(config, "yes")
    _, clips = train.training_clips(config)
    backbone = moemos.load_backbone("logmel")
    with torch.no_grad():
        mos = model.eval()(data.extract_features(clips, backbone, config.cache)).mos
        said = model.raters(mos)
    errors = [said[i, int(rater)].item() - score
              for i, c in enumerate(clips) for rater, score in c.ratings.items()]
    assert model.raters.noise.item() == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


def test_the_command_line_trains_and_says_what_it_cannot_use(
        small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("--data", small, "--backbone", "logmel", "--steps", 1)
    assert call(monkeypatch, raters, *words, "--kind", "single", "--out", "runs/single") == 0
    assert (tmp_path / "runs" / "single" / "metrics.json").exists()
    assert call(monkeypatch, raters, "--kind", "none") == 2
    assert call(monkeypatch, raters, "--data", "nowhere") == 2
    assert "nowhere" in capsys.readouterr().err


# -- New raters ------------------------------------------------------------------------------------

def test_calibration_by_hand_and_never_on_the_clips_scored():
    model = raters.Raters(2, 3.0, 1.0)
    model.raw_bias.data = torch.tensor([1.0, -1.0]) / raters.REACH  # variance 1
    model.raw_gain.data = torch.tensor([0.5, -0.5]) / raters.REACH  # variance 0.25
    model.noise.fill_(0.5)
    predicted = np.full(4, 3.0)  # so that the gain has no say
    clips = [clip(str(i), {"r": 5.0}) for i in range(4)]
    errors = raters.adaptation(model, predicted, clips)
    for k, bias in ((0, 0), (1, 2 / (1 + 0.5)), (5, 2 * 2 / (2 + 0.5))):  # two of four are known
        assert errors[k]["MOS"] == errors[k]["rating"] == pytest.approx((2 - bias) ** 2)
    odd = [replace(c, ratings={"r": 3.0 if i else 5.0}) for i, c in enumerate(clips)]
    shift = 2 / (2 + 0.5)  # of the two of the other half alone, by the odd clip's rating
    expected = (2 ** 2 + 2 * shift ** 2 + 0) / 4
    assert raters.adaptation(model, predicted, odd)[20]["MOS"] == pytest.approx(expected)


def test_calibration_learns_a_gain_too():
    model = raters.Raters(2, 3.0, 1.0)
    model.raw_gain.data = torch.tensor([0.5, -0.5]) / raters.REACH
    model.noise.fill_(1e-6)
    predicted = np.linspace(1.5, 4.5, 40)
    clips = [clip(str(i), {"r": 3 + 1.5 * (p - 3)}) for i, p in enumerate(predicted)]
    errors = raters.adaptation(model, predicted, clips)
    assert errors[0]["MOS"] == pytest.approx(0.25 * np.mean((predicted - 3) ** 2))
    assert errors[20]["MOS"] < 1e-6


# -- Label noise -----------------------------------------------------------------------------------

def test_label_noise_is_that_of_an_additive_panel_and_nan_of_single_ratings():
    rng = np.random.default_rng(0)
    bias = rng.normal(size=10)
    clips = []
    for i, quality in enumerate(rng.normal(size=2000)):
        ratings = {str(r): quality + bias[r] + 0.8 * rng.normal() for r in range(10)}
        clips.append(clip(str(i), ratings))
    assert raters.label_noise(clips) == pytest.approx(0.064, rel=0.03)

    few = []  # where not all rate all
    for c in clips:
        some = map(str, rng.permutation(10)[:3])
        few.append(replace(c, ratings={r: c.ratings[r] for r in some}))
    assert raters.label_noise(few) == pytest.approx(0.64 / 3, rel=0.05)

    apart = [replace(c, ratings={f"{i // 3}:{r}": c.ratings[r] for r in "01"})
             for i, c in enumerate(clips)]  # groups of raters that share no clip
    assert raters.label_noise(apart) == pytest.approx(0.64 / 2, rel=0.1)

    assert math.isnan(raters.label_noise([replace(c, ratings={"mean": 3.0}) for c in clips]))
