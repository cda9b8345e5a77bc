"""A head that starts as a straight line: what it would take to hold on clips that chose nothing.

The settings of train.py were chosen on four listening tests and one encoder. Here is the same
method, whose weights start from linear models of both tasks, in closed form, and whose one strength
comes from the training clips. Training a random head distorts features that generalise; starting
from linear probes keeps them (Kumar et al. 2022, arXiv 2202.10054).

What differs from the core: fused features are turned to the principal axes of the training clips;
none is dropped; all stages have as many steps, the first two with the paper's learning rate of
stage 1; AdamW decays weights as much as it does by default. `python -m studies.questions encoders`.
Letters of dimensions: see moemos.py; A is the number of axes.
"""

import contextlib
from dataclasses import replace

import numpy as np
import torch
from torch import nn

import evaluate
import moemos
import train
from studies import lab

LEAST_KEPT = 0.01  # axes of which ridge regression keeps less are left out
STAGES = tuple(stage._replace(steps=200, lr=lr)
               for stage, lr in zip(train.STAGES, (1e-4, 1e-4, 1e-5)))


class Axes(nn.Module):
    """The fusion: standardised features (B, L, 2D) -> (B, A), along the principal axes of the
    training clips. Along each axis those have a variance of 1, times the share that ridge
    regression keeps of it, so that what varies little is hardly heard, as by a straight line."""

    def __init__(self, center, scale, axes):
        super().__init__()
        self.register_buffer("center", center)  # (L, 2D)
        self.register_buffer("scale", scale)    # (L, 2D)
        self.register_buffer("axes", axes)      # (L 2D, A)

    def forward(self, features):                                            # (B, L, 2D)
        return ((features - self.center) / self.scale).flatten(1) @ self.axes  # (B, A)


class FromTheLine(moemos.MoEMOS):
    """MoEMOS on such axes. y is 1 + C wide: y_0 is to start as the MOS, y_1 ... y_C as the classes;
    the second layers of the experts start from 0, so that the shared path is all there is."""

    def __init__(self, fusion, classes, config):
        nn.Module.__init__(self)
        inputs, outputs = fusion.axes.shape[1], 1 + classes
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("p", torch.zeros(()))  # nothing is dropped
        self.fusion = fusion
        self.moe = moemos.MixtureOfExperts(inputs, config.experts, outputs)
        for i in range(config.experts):
            last = nn.Linear(config.hidden, outputs)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.moe.experts[i] = nn.Sequential(nn.Linear(inputs, config.hidden), nn.GELU(), last)
        self.class_head = nn.Linear(outputs, classes)
        self.mos_head = nn.Linear(outputs, 1)


def strength(x, mos, folds):
    """The one of evaluate.ALPHAS whose squared error in cross-validation is least: the penalty a
    feature of ridge regression. x (n, I), mos (n,), folds (n,) int."""
    errors = np.zeros(len(evaluate.ALPHAS))
    for fold in np.unique(folds):
        held_out = folds == fold
        predicted = evaluate.ridge_by_alpha(x[~held_out], mos[~held_out], x[held_out])
        errors += np.square(predicted - mos[held_out]).sum(1)
    return float(evaluate.ALPHAS[errors.argmin()])


def ridge_weights(white, target, penalties):
    """Ridge regression of targets (n, m) on coordinates (n, A), a penalty for each: (m, A)."""
    centred = white - white.mean(0)
    covariance = centred.T @ centred / len(white)
    towards = centred.T @ (target - target.mean(0)) / len(white)
    return torch.linalg.solve(covariance + torch.diag(penalties), towards).T


def build(clips, classes, alpha, config):
    """The model that training starts from; clips: train.Clips; alpha: of strength().

    y_0 is ridge regression of the MOS, in deviations, and y_c of whether a clip is of class c, less
    the share of that class. The class head makes logits of them, log P to first order:

        log share_c + y_c / share_c

    The MOS head takes the mean of y_0 and of the MOS to be expected from the classes:

        y_0 / 2 + sum_c (share_c + y_c) MOS_c / 2
    """
    known = ~clips.mos.isnan()
    mean = clips.mos[known].mean()
    deviation = clips.mos[known].std(correction=0)
    spread, center = torch.std_mean(clips.features.double(), 0, correction=0)
    scale = spread.clamp_min(1e-3)  # a feature may never vary
    x = ((clips.features - center) / scale).flatten(1)                  # (n, I)
    penalty = alpha * x.shape[1] / known.sum()

    variance, u = torch.linalg.eigh(x @ x.T / len(x))                   # along the axes
    kept = variance / (variance + penalty)
    large = kept > LEAST_KEPT
    variance, kept, white = variance[large], kept[large], u[:, large] * len(x) ** 0.5
    axes = x.T @ (white * kept / variance) / len(x)                     # (I, A)

    one_hot = nn.functional.one_hot(clips.model, classes).double()      # (n, C)
    share = one_hot.mean(0)
    mos = (clips.mos[known].double() - mean) / deviation
    rated = one_hot[known]
    class_mos = rated.T @ mos / rated.sum(0).clamp_min(1)               # (C,), 0 without ratings
    of_mos = ridge_weights(white[known], mos[:, None], penalty / variance)    # (1, A)
    of_classes = ridge_weights(white, one_hot, penalty / variance)            # (C, A)

    model = FromTheLine(Axes(center.float(), scale.float(), axes.float()), classes, config)
    model.mean.copy_(mean)
    model.deviation.copy_(deviation)
    with torch.no_grad():
        model.moe.path.weight.copy_(torch.cat([of_mos, of_classes]) / kept)
        model.class_head.weight.copy_(torch.cat([torch.zeros(classes, 1), (1 / share).diag()], 1))
        model.class_head.bias.copy_(share.log())
        model.mos_head.weight.copy_(torch.cat([torch.ones(1), class_mos]) / 2)
        expected = (share * class_mos).sum() - of_mos @ white[known].mean(0)
        model.mos_head.bias.copy_(expected / 2)
    return model


def predict(variant, corpus, learned, predicted, seed, how):
    """As lab.by_head, of such a model; its strength by folds of what lab.by_ridge takes."""
    clips, classes = lab.training_clips(variant, corpus, learned, seed)
    x, mos, folds = lab.for_ridge(variant, corpus, learned, seed, how)
    config = replace(train.Config(), weight_decay=0.01, seed=seed, **variant.settings)
    torch.manual_seed(seed)
    model = build(clips, len(classes), strength(x, mos, folds), config)
    with contextlib.redirect_stdout(None):
        for stage in variant.stages:
            for _ in train.run_stage(model, stage, config, clips):
                pass
    return lab.outcome(model, corpus, predicted)
