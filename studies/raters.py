"""Raters: how much of the error of a predictor is the panel that it learned from (IV names it).

The raters of a listening test are split into two panels. The method learns from the first, on clips
of other groups, and is compared with both. Learning from single ratings, with or without a bias and
a gain of each rater, and calibrating the second panel's raters by a few of their ratings are ours;
IV names rater adaptation as future work. `python -m studies.questions raters`.
"""

import numpy as np
import torch
from scipy.special import stdtrit
from torch import nn

import train
from studies import lab, tables
from studies.lab import Variant

SHOTS = (5, 20)  # ratings of a new rater
REACH = 100      # of a parameter, which is so much smaller, as the learning rate is low


# -- Two panels ------------------------------------------------------------------------------------

def ratings_of(corpus):
    """(clips, R) of all raters in order of name, NaN where there is none."""
    raters = sorted({rater for clip in corpus.clips for rater in clip.ratings})
    return np.array([[clip.ratings.get(rater, np.nan) for rater in raters]
                     for clip in corpus.clips])


def panels(corpus, seed):
    """-> the ratings of two halves of the raters, drawn by a seed: (clips, R / 2) each."""
    return halves(ratings_of(corpus), seed)


def halves(ratings, seed):
    """(clips, R) -> as panels()."""
    order = np.random.default_rng(seed).permutation(ratings.shape[1])
    half = ratings.shape[1] // 2
    return ratings[:, order[:half]], ratings[:, order[half:]]


def panel_mean(corpus, seed):
    return lab.means(panels(corpus, seed)[0])


def single_ratings(corpus, seed):
    return panels(corpus, seed)[0]


# -- A model of the raters -------------------------------------------------------------------------

class RaterMOS(nn.Module):
    """A MoEMOS, the mos of which is, in training, what each of R raters gives, (B, R), so that the
    loss is of single ratings; in evaluation (B,), of their mean.

        mean + gain (MOS - mean) + bias

    Biases average 0 and gains 1."""

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
    """The control: single ratings, but every bias 0 and every gain 1."""
    return RaterMOS(train.build_model(config, weights), clips.mos.shape[1], learned=False)


MEANS = Variant("a panel's mean", target=panel_mean)
SINGLE = Variant("its single ratings", target=single_ratings, build=build_single)
MODEL = Variant("a bias and a gain a rater", target=single_ratings, build=build_raters)
VARIANTS = (MEANS, SINGLE, MODEL)


# -- New raters ------------------------------------------------------------------------------------

def bias_and_gain(predicted, ratings, prior=None, noise=1.0):
    """(n,) predictions, (n,) ratings of one rater, NaN: none -> his (bias, gain - 1): least squares
    or, with the variances of both beforehand, (2,), their posterior mean (ridge regression).

        rating - p = bias + (gain - 1) (p - c) + noise,  c: the mean of p
    """
    known = ~np.isnan(ratings)
    x = np.stack([np.ones(len(predicted)), predicted - predicted.mean()], axis=1)[known]
    penalty = np.zeros(2) if prior is None else noise / prior
    return np.linalg.pinv(x.T @ x + np.diag(penalty)) @ x.T @ (ratings - predicted)[known]


def calibrated(predicted, first, second, shots, seed):
    """What the raters of the second panel are said to give, (n, R), once each has given some
    ratings of other clips; the priors are from the first panel. predicted: (n,)."""
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
    """{row: mean squared error, as a share of the variance of the second panel's MOS}; of clips
    that both panels have rated. predictions: {variant's name: (clips,)}."""
    first, second = panels(corpus, seed)
    both = ~np.isnan(lab.means(first)) & ~np.isnan(lab.means(second))
    first, second = first[both], second[both]
    own, other = lab.means(first), lab.means(second)
    found = {"the first panel's own MOS, no model": np.mean((own - other) ** 2)}
    for name, predicted in predictions.items():
        predicted = predicted[both]
        found[f"{name}, against the first panel"] = np.mean((predicted - own) ** 2)
        found[f"{name}, against the second"] = np.mean((predicted - other) ** 2)
        if name == MEANS.name:
            for shots in SHOTS:
                said = calibrated(predicted, first, second, shots, seed)
                label = f"  after {shots} ratings of each of its raters"
                found[label] = np.mean((lab.means(said) - other) ** 2)
    found["noise of the second panel's ratings"] = label_noise(second)
    return {name: float(value / other.var()) for name, value in found.items()}


def label_noise(ratings):
    """Variance of a clip's MOS if the same raters rated it again, mean over clips: from what is
    left of (n, R) ratings after a level of each clip and of each rater."""
    rated = ~np.isnan(ratings)
    left = np.where(rated, ratings, 0)
    for _ in range(100):  # once is exact where all rate all; where few do, the two means settle
        left = left - rated * (left.sum(1) / np.maximum(rated.sum(1), 1))[:, None]
        left = left - rated * (left.sum(0) / np.maximum(rated.sum(0), 1))
    freedom = max(rated.sum() - rated.shape[0] - rated.shape[1] + 1, 1)
    return np.sum(left ** 2) / freedom * np.mean(1 / np.maximum(rated.sum(1), 1))


def jobs_of(columns, panels):
    return [lab.Job(variant, cell, seed) for cell in columns.values() for variant in VARIANTS
            for seed in range(panels)]


def answer(columns, panels):
    """columns: {name: Cell} -> what studies.questions stores: each of errors() by column, [its
    mean over the pairs of panels, the reach of its interval for others]."""
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
    """[the mean of several, the reach of its 95 % interval by Student's t]."""
    number = len(values)
    return [np.mean(values), stdtrit(number - 1, 0.975) * np.std(values, ddof=1) / number ** 0.5]
