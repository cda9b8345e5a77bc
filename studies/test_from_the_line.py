"""Tests of the head that starts as a straight line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import evaluate
import moemos
import train
from studies import from_the_line, lab
from studies import variants as v
from studies.test_lab import make_corpus
from test_moemos import nan


def some_clips(rated=40, unrated=0, classes=3):
    """Gives clips of random features, of which the MOS is a noisy line."""
    rng = np.random.default_rng(0)
    n = rated + unrated
    x = rng.normal(size=(n, 12)) * np.linspace(0.5, 3, 12) + 1
    mos = 3 + x @ rng.normal(size=12) / 6 + rng.normal(size=n) / 4
    mos[rated:] = nan
    features = torch.from_numpy(x).float().view(n, 2, 6)
    model = torch.from_numpy(rng.integers(classes, size=n))
    return train.Clips(features, torch.from_numpy(mos).float(), model)


def plain_ridge(x, target, new, penalty):
    """Solves the normal equations of standardised features."""
    middle = x.mean(0)
    weights = np.linalg.solve((x - middle).T @ (x - middle) + penalty * np.eye(x.shape[1]),
                              (x - middle).T @ (target - target.mean(0)))
    return target.mean(0) + (new - middle) @ weights


@pytest.mark.parametrize("unrated", [0, 25])
def test_it_starts_as_the_mean_of_ridge_and_of_what_the_classes_let_expect(unrated):
    clips, alpha = some_clips(unrated=unrated), 0.3
    model = from_the_line.build(clips, 3, alpha, train.Config()).eval()
    x = clips.features.flatten(1).double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    rated = ~clips.mos.isnan().numpy()
    mos = clips.mos.double().numpy()[rated]
    one_hot = np.eye(3)[clips.model.numpy()]
    share = one_hot.mean(0)

    line = plain_ridge(x[rated], mos, x, alpha * 12)
    of_classes = plain_ridge(x, one_hot, x, alpha * 12 * len(x) / rated.sum())
    means = np.array([mos[clips.model.numpy()[rated] == c].mean() for c in range(3)])
    expected = line / 2 + (mos.mean() + of_classes @ (means - mos.mean())) / 2
    output = model(clips.features)
    np.testing.assert_allclose(output.mos.detach().numpy(), expected, atol=1e-4)
    logits = np.log(share) + (of_classes - share) / share
    np.testing.assert_allclose(output.logits.detach().numpy(), logits, atol=1e-3)


def test_axes_have_the_variance_that_ridge_keeps_and_the_faint_ones_are_left_out():
    clips, alpha = some_clips(), 200.0
    fused = from_the_line.build(clips, 3, alpha, train.Config()).fusion(clips.features).double()
    x = clips.features.flatten(1).double().numpy()
    variance = np.linalg.eigvalsh(np.corrcoef(x.T))
    kept = variance / (variance + alpha * 12 / 40)
    kept = kept[kept > 0.01]
    assert 0 < len(kept) < 12
    torch.testing.assert_close(fused.T @ fused / 40, torch.from_numpy(np.diag(kept ** 2)),
                               atol=1e-5, rtol=1e-4)


def test_experts_add_nothing_at_the_start_and_something_after_training():
    clips = some_clips(unrated=20)
    torch.manual_seed(0)
    model = from_the_line.build(clips, 3, 0.1, train.Config())
    x = model.fusion(clips.features)
    assert torch.equal(model(clips.features).experts[:, 0], model.moe.path(x))
    for stage in from_the_line.STAGES:
        assert list(train.run_stage(model, stage._replace(steps=20), train.Config(), clips))
    added = model(clips.features).experts - model.moe.path(x)[:, None]
    assert (added.abs().amax((0, 2)) > 0).all()


def test_its_stages_are_of_one_length_and_have_the_papers_rates():
    assert [(stage.name, stage.steps, stage.lr) for stage in from_the_line.STAGES] == [
        ("classification", 200, 1e-4), ("joint", 200, 1e-4), ("mos", 200, 1e-5)]
    assert [stage[3:] for stage in from_the_line.STAGES] == [stage[3:] for stage in train.STAGES]


def test_its_strength_is_the_one_that_ridge_itself_would_choose():
    clips = some_clips()
    x, mos = clips.features.flatten(1).double().numpy(), clips.mos.double().numpy()
    folds = np.arange(40) % 5
    alpha = from_the_line.strength(x, mos, folds)
    row = evaluate.ALPHAS.tolist().index(alpha)
    np.testing.assert_array_equal(evaluate.ridge_by_alpha(x, mos, x)[row],
                                  evaluate.ridge(x, mos, x, folds))


def test_the_engine_predicts_by_it_from_learned_clips_alone():
    corpus, blind = make_corpus(), make_corpus()
    learned, predicted = next(lab.split(corpus, "groups"))
    variant = replace(v.FROM_LINE, stages=[stage._replace(steps=2) for stage in train.STAGES])
    mos, gates = variant.predict(variant, corpus, learned, predicted, 0, "groups")
    assert mos.shape == (predicted.sum(),)
    assert gates.shape == (predicted.sum(), 4)
    for clip, row in zip(blind.clips, predicted):
        clip.ratings = {"": 1.0} if row else clip.ratings
    again, _ = variant.predict(variant, blind, learned, predicted, 0, "groups")
    np.testing.assert_array_equal(mos, again)
    start, _ = v.LINE_ALONE.predict(v.LINE_ALONE, corpus, learned, predicted, 0, "groups")
    assert not np.array_equal(mos, start)
    assert moemos.lcc(mos, start) > 0.9
