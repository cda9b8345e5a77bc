"""How much of a predictor's error comes from the panel of raters that it learned from?

Section IV of the paper says that single clips are predicted poorly because panels rate differently.
Here the raters of a listening test are split into panel 1 and panel 2. The method learns from
panel 1, on clips of other groups, and is compared with both panels. Rater adaptation, which section
IV names as future work, is tried in two forms, which are ours: to learn from single ratings with a
bias and a gain of each rater, and to correct the predictions by a few ratings of each rater of
panel 2. The command is `python -m studies.questions raters`.
"""

import numpy as np
import torch
from scipy.special import stdtrit
from torch import nn

import train
from studies import lab, tables
from studies.lab import Variant

SHOTS = (5, 20)  # how many ratings of each rater of panel 2 are known
REACH = 100      # biases and gains are so many times their parameters, as the learning rate is low


# -- Two panels ------------------------------------------------------------------------------------

def ratings_of(corpus):
    """(clips, R) ratings by all raters in the order of their names, NaN where a rater has not rated
    a clip."""
    raters = sorted({rater for clip in corpus.clips for rater in clip.ratings})
    return np.array([[clip.ratings.get(rater, np.nan) for rater in raters]
                     for clip in corpus.clips])


def panels(corpus, seed):
    """The ratings of panel 1 and panel 2, (clips, R / 2) each: two random halves of the raters."""
    return halves(ratings_of(corpus), seed)


def halves(ratings, seed):
    """The ratings (clips, R) of all raters -> those of two random halves, as in panels()."""
    order = np.random.default_rng(seed).permutation(ratings.shape[1])
    half = ratings.shape[1] // 2
    return ratings[:, order[:half]], ratings[:, order[half:]]


def panel_mean(corpus, seed):
    return lab.means(panels(corpus, seed)[0])


def single_ratings(corpus, seed):
    return panels(corpus, seed)[0]


# -- A model of the raters -------------------------------------------------------------------------

class RaterMOS(nn.Module):
    """A MoEMOS with a bias and a gain of each of R raters. In training it predicts the rating that
    each rater gives, (B, R), so that the loss counts single ratings:

        rating = mean + gain (MOS - mean) + bias

    In evaluation it predicts the MOS, (B,). Biases have the mean 0, and gains the mean 1."""

    def __init__(self, network, raters, learned=True):
        super().__init__()
        self.network = network
        self.deviation = network.deviation
        self.bias = nn.Parameter(torch.zeros(raters), requires_grad=learned)
        self.gain = nn.Parameter(torch.zeros(raters), requires_grad=learned)

    def forward(self, features):
        output = self.network(features)
        if not self.training:
            return output
        mean = self.network.mean
        bias = REACH * self.deviation * (self.bias - self.bias.mean())
        gain = 1 + REACH * (self.gain - self.gain.mean())
        return output._replace(mos=mean + gain * (output.mos[:, None] - mean) + bias)


def build_raters(config, weights, clips):
    return RaterMOS(train.build_model(config, weights), clips.mos.shape[1])


def build_single(config, weights, clips):
    """For comparison: learns from single ratings, but every bias is 0 and every gain 1."""
    return RaterMOS(train.build_model(config, weights), clips.mos.shape[1], learned=False)


MEANS = Variant("learned from means", target=panel_mean)
SINGLE = Variant("learned from single ratings", target=single_ratings, build=build_single)
MODEL = Variant("learned with a bias and a gain for each rater", target=single_ratings,
                build=build_raters)
VARIANTS = (MEANS, SINGLE, MODEL)


# -- New raters ------------------------------------------------------------------------------------

def bias_and_gain(predicted, ratings, prior=None, noise=1.0):
    """(bias, gain - 1) of one rater, from predictions p, (n,), and the rater's ratings, (n,), NaN
    where there is none:

        rating - p = bias + (gain - 1) (p - mean of p) + noise

    They are found by least squares. If prior is given, the variances (2,) that biases and gains
    have among raters, they are instead the posterior mean, which is ridge regression. noise: the
    variance of the noise.
    """
    known = ~np.isnan(ratings)
    x = np.stack([np.ones(len(predicted)), predicted - predicted.mean()], axis=1)[known]
    penalty = np.zeros(2) if prior is None else noise / prior
    return np.linalg.pinv(x.T @ x + np.diag(penalty)) @ x.T @ (ratings - predicted)[known]


def calibrated(predicted, first, second, shots, seed):
    """Predictions of the ratings by the raters of panel 2, (n, R), by a bias and a gain of each
    rater, which are found from as many as shots of the rater's ratings of other clips. The priors
    are from panel 1. predicted: MOS, (n,). first, second: the ratings of both panels."""
    x = np.stack([np.ones(len(predicted)), predicted - predicted.mean()], axis=1)
    known = np.array([bias_and_gain(predicted, own) for own in first.T])    # (R, 2)
    noise = np.nanmean((first - predicted[:, None] - x @ known.T) ** 2)
    prior = np.maximum(known.var(0), 1e-6)
    rng = np.random.default_rng(seed)
    said = np.full(second.shape, np.nan)
    half = rng.permutation(len(predicted)) < len(predicted) // 2
    for r, own in enumerate(second.T):
        for scored in (half, ~half):
            given = np.full(len(own), np.nan)
            some = rng.permutation(np.flatnonzero(~scored & ~np.isnan(own)))[:shots]
            given[some] = own[some]
            told = predicted + x @ bias_and_gain(predicted, given, prior, noise)
            rows = scored & ~np.isnan(own)
            said[rows, r] = told[rows]
    return said


def errors(corpus, seed, predictions):
    """{row: mean squared error divided by the variance of panel 2's MOS}, on the clips that both
    panels have rated. predictions: {a variant's name: (clips,)}."""
    first, second = panels(corpus, seed)
    both = ~np.isnan(lab.means(first)) & ~np.isnan(lab.means(second))
    first, second = first[both], second[both]
    mos_1, mos_2 = lab.means(first), lab.means(second)
    found = {"panel 1 itself, against panel 2": np.mean((mos_1 - mos_2) ** 2)}
    for name, predicted in predictions.items():
        predicted = predicted[both]
        found[f"{name}, against panel 1"] = np.mean((predicted - mos_1) ** 2)
        found[f"{name}, against panel 2"] = np.mean((predicted - mos_2) ** 2)
        if name == MEANS.name:
            for shots in SHOTS:
                corrected = lab.means(calibrated(predicted, first, second, shots, seed))
                label = f"{name}, corrected by {shots} ratings each, against panel 2"
                found[label] = np.mean((corrected - mos_2) ** 2)
    found["chance in the ratings of panel 2"] = label_noise(second)
    return {name: float(value / mos_2.var()) for name, value in found.items()}


def label_noise(ratings):
    """The variance that a clip's MOS would have if the same raters rated it again and again, in the
    mean over clips. It is found from what remains of the ratings, (n, R), when the level of each
    clip and of each rater is subtracted."""
    rated = ~np.isnan(ratings)
    left = np.where(rated, ratings, 0)
    for _ in range(100):  # once is enough if all rate all; otherwise the means settle slowly
        left = left - rated * (left.sum(1) / np.maximum(rated.sum(1), 1))[:, None]
        left = left - rated * (left.sum(0) / np.maximum(rated.sum(0), 1))
    freedom = max(rated.sum() - rated.shape[0] - rated.shape[1] + 1, 1)
    return np.sum(left ** 2) / freedom * np.mean(1 / np.maximum(rated.sum(1), 1))


def jobs_of(columns, panels):
    return [lab.Job(variant, cell, seed) for cell in columns.values() for variant in VARIANTS
            for seed in range(panels)]


def answer(columns, panels):
    """What studies.questions stores: for each row of errors() and each column [the mean over all
    pairs of panels, half the width of its interval]. columns: {name: Cell}. panels: how many pairs
    of panels are drawn."""
    jobs = jobs_of(columns, panels)
    results = lab.run(jobs)
    predictions = {(job.variant.name, job.cell, job.seed): result["mos"]
                   for job, result in zip(jobs, results)}
    shares, numbers = [], []
    for cell in columns.values():
        corpus = lab.load(cell.corpus, cell.backbone)
        by_name = {variant.name: [predictions[variant.name, cell, seed] for seed in range(panels)]
                   for variant in VARIANTS}
        found = [errors(corpus, seed, {name: several[seed] for name, several in by_name.items()})
                 for seed in range(panels)]
        shares.append({name: with_reach([one[name] for one in found]) for name in found[0]})
        for name, several in by_name.items():
            said = tables.as_predicted(corpus, several)
            numbers.append({"variant": name, "cell": cell, "clips": len(said.true),
                            "seeds": said.value("utterance LCC").tolist()})
    rows = [{"metric": "MSE, share of the variance", "variant": name,
             "numbers": [share[name] for share in shares]} for name in shares[0]]
    return {"columns": list(columns), "rows": rows, "gates": {}, "compared": {},
            "numbers": numbers}


def with_reach(values):
    """[the mean of several values, half the width of its 95 % interval by Student's t]."""
    number = len(values)
    return [np.mean(values), stdtrit(number - 1, 0.975) * np.std(values, ddof=1) / number ** 0.5]
