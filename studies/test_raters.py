"""Tests of studies/raters.py: the panels, the model of raters, and the correction by ratings."""

import numpy as np
import pytest
import torch

import data
import moemos
import train
from studies import lab, raters
from test_moemos import nan, no_network  # noqa: F401 - a fixture


def simulate_ratings(clips=200, number=8, noise=0.3, seed=0):
    """(corpus, true MOS of the clips, biases of the raters, gains of the raters)."""
    rng = np.random.default_rng(seed)
    mos = rng.normal(3, 0.8, clips)
    bias, gain = rng.normal(0, 0.5, number), 1 + rng.normal(0, 0.2, number)
    bias, gain = bias - bias.mean(), gain - gain.mean() + 1
    given = 3 + gain * (mos[:, None] - 3) + bias + noise * rng.normal(size=(clips, number))
    made = [data.Clip(f"{i}.wav", None, "train", "s", "m", f"{i % 6}",
                      {f"r{r}": value for r, value in enumerate(row)})
            for i, row in enumerate(given)]
    features = torch.from_numpy(np.stack([mos, rng.normal(size=clips)], 1)).float()[:, None]
    return lab.Corpus(made, features, None), mos, bias, gain


def test_panels_are_random_halves_of_the_raters_and_the_first_one_gives_the_mos_to_learn():
    corpus, *_ = simulate_ratings()
    first, second = raters.panels(corpus, 1)
    everybody = np.concatenate([first, second], axis=1)
    assert first.shape == second.shape == (200, 4)
    assert np.array_equal(np.sort(everybody), np.sort(raters.ratings_of(corpus)))
    assert not np.array_equal(first, raters.panels(corpus, 2)[0])
    assert np.array_equal(raters.panel_mean(corpus, 1), lab.means(first))


def test_means_skips_missing_ratings_and_leaves_a_mos_as_it_is():
    means = lab.means(np.array([[1.0, nan, 2], [nan, nan, nan]]))
    assert means[0] == 1.5
    assert np.isnan(means[1])
    mos = np.array([2.5, nan, 4])
    assert np.array_equal(lab.means(mos), mos, equal_nan=True)


def test_a_rater_model_learns_the_biases_and_gains_of_simulated_raters():
    corpus, _, bias, gain = simulate_ratings()
    ratings = torch.from_numpy(raters.ratings_of(corpus)).float()
    clips = train.Tensors(corpus.features, ratings, torch.zeros(200, dtype=torch.int64))
    config, mos = train.Config(), torch.from_numpy(corpus.mos)
    weights = moemos.start(corpus.features, mos, clips.label, 1, np.arange(200) % 5)
    torch.manual_seed(0)
    model = raters.build_raters(config, weights, clips)
    before = train.build_model(config, weights).eval()(corpus.features).mos
    torch.testing.assert_close(model.train()(corpus.features).mos, before[:, None].expand(200, 8))
    torch.testing.assert_close(model.eval()(corpus.features).mos, before)
    train.run_stages(model, train.STAGES, config, clips)
    learned = raters.REACH * model.deviation * (model.bias - model.bias.mean())
    assert np.corrcoef(learned.detach(), bias)[0, 1] > 0.95
    assert np.corrcoef(model.gain.detach(), gain)[0, 1] > 0.8
    single, mean = model.train()(corpus.features).mos, model.eval()(corpus.features).mos
    assert (tuple(single.shape), tuple(mean.shape)) == ((200, 8), (200,))
    control = raters.build_single(config, weights, clips)
    train.run_stages(control, train.STAGES, config, clips)
    assert not control.bias.any()
    assert not control.gain.any()
    moved = control.eval()(corpus.features).mos - before
    assert moved.abs().max() > 1e-3  # it learns nevertheless


def test_the_predicted_rating_is_the_mos_with_the_raters_gain_and_bias_as_computed_by_hand():
    torch.manual_seed(0)
    network = moemos.MoEMOS(1, 1, axes=2, classes=2, experts=2, hidden=3)
    network.mean.fill_(3.0)
    network.deviation.fill_(2.0)
    model = raters.RaterMOS(network, 2)
    model.bias.data = torch.tensor([0.002, 0.0])
    model.gain.data = torch.tensor([0.0, 0.004])
    features = torch.randn(5, 1, 2)
    mos = network(features).mos
    given = model.train()(features).mos
    torch.testing.assert_close(given[:, 0], 3 + 0.8 * (mos - 3) + 0.2)
    torch.testing.assert_close(given[:, 1], 3 + 1.2 * (mos - 3) - 0.2)
    torch.testing.assert_close(model.eval()(features).mos, mos)


def test_bias_and_gain_are_exact_without_noise_and_shrunk_by_a_prior():
    predicted = np.array([1.0, 2, 3, 4])
    ratings = 0.5 + 1.2 * (predicted - 2.5) + 2.5
    assert raters.bias_and_gain(predicted, ratings) == pytest.approx([0.5, 0.2])
    few = np.array([nan, nan, nan, ratings[3]])
    assert raters.bias_and_gain(predicted, np.full(4, nan), np.ones(2)).tolist() == [0, 0]
    bias, gain = raters.bias_and_gain(predicted, few, np.array([1.0, 1e-9]), noise=1.0)
    assert bias == pytest.approx((ratings[3] - 4) / 2)  # prior and noise have the same variance
    assert gain == pytest.approx(0, abs=1e-6)


def test_errors_against_both_panels_and_chance_agree_with_plain_computations():
    corpus, mos, *_ = simulate_ratings(noise=0.3)
    found = raters.errors(corpus, 0, {raters.MEANS.name: mos})
    first, second = raters.panels(corpus, 0)
    own, other = lab.means(first), lab.means(second)
    share = found["panel 1 itself, against panel 2"]
    assert share == pytest.approx(np.mean((own - other) ** 2) / other.var())
    by_mean = found["learned from means, against panel 2"]
    assert by_mean == pytest.approx(np.mean((mos - other) ** 2) / other.var())
    noise = found["chance in the ratings of panel 2"]
    gains = 0.2 ** 2 * 0.8 ** 2 / 4  # the gains count as chance
    assert noise * other.var() == pytest.approx(0.3 ** 2 / 4 + gains, rel=0.3)
    corrected = found["learned from means, corrected by 20 ratings each, against panel 2"]
    assert corrected < by_mean


def test_chance_in_the_ratings_is_estimated_as_it_was_simulated():
    rng = np.random.default_rng(1)
    ratings = rng.normal(size=(300, 1)) + rng.normal(size=10) + 0.4 * rng.normal(size=(300, 10))
    assert raters.label_noise(ratings) == pytest.approx(0.4 ** 2 / 10, rel=0.1)
    ratings[rng.random(ratings.shape) < 0.5] = nan
    assert raters.label_noise(ratings) == pytest.approx(0.4 ** 2 / 5, rel=0.25)


def test_the_answer_is_the_mean_over_pairs_of_panels_and_half_the_width_of_its_interval(
        monkeypatch):
    corpus, mos, *_ = simulate_ratings(clips=60)
    monkeypatch.setattr(lab, "load", lambda name, backbone: corpus)
    said = {}

    def run(jobs):
        for job in jobs:
            noise = np.random.default_rng(job.seed).normal(size=60)
            said[job.variant.name, job.seed] = mos + 0.2 * noise
        return [{"mos": said[job.variant.name, job.seed]} for job in jobs]
    monkeypatch.setattr(lab, "run", run)
    found = raters.answer({"one": lab.Cell("one", "logmel", "groups")}, 3)
    by_panel = [raters.errors(corpus, seed, {variant.name: said[variant.name, seed]
                                             for variant in raters.VARIANTS}) for seed in range(3)]
    for row in found["rows"]:
        values = [errors[row["variant"]] for errors in by_panel]
        ((mean, reach),) = row["numbers"]
        assert mean == pytest.approx(np.mean(values))
        assert reach == pytest.approx(4.3027 * np.std(values, ddof=1) / 3 ** 0.5, rel=1e-4)
    assert [row["variant"] for row in found["rows"]] == list(by_panel[0]) == [
        "panel 1 itself, against panel 2",
        "learned from means, against panel 1",
        "learned from means, against panel 2",
        "learned from means, corrected by 5 ratings each, against panel 2",
        "learned from means, corrected by 20 ratings each, against panel 2",
        "learned from single ratings, against panel 1",
        "learned from single ratings, against panel 2",
        "learned with a bias and a gain for each rater, against panel 1",
        "learned with a bias and a gain for each rater, against panel 2",
        "chance in the ratings of panel 2"]
    row = found["numbers"][0]
    expected = [moemos.lcc(said[row["variant"], seed], corpus.mos) for seed in range(3)]
    assert row["seeds"] == pytest.approx(expected)
