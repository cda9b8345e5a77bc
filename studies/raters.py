"""Rater adaptation, which section IV names as future work; the form is ours.

    python -m studies.raters --kind yes [train.py's options]

trains from single ratings into runs/with_raters, with a bias and a gain of each training rater
(--kind yes), or with bias 0 and gain 1 for all (--kind single, the control: what single ratings
alone change); evaluates the run, and for `yes` writes adaptation.json: the error once each new
rater has given a few ratings.
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from torch import nn

import data
import evaluate
import moemos
import train
from evaluate import rating_matrix

SPLITS = 20            # of the clips into halves: ours, as is the next
SHOTS = (0, 1, 5, 20)  # ratings of a new rater
REACH = 5              # of a parameter, which is so much smaller, and weight decay pulls less


# -- The model -------------------------------------------------------------------------------------

class Raters(nn.Module):
    """(B,) MOS of the mean rater -> (B, R) what each of the R training raters would give:

        middle + gain (MOS - middle) + bias

    Biases average 0 and gains 1, so that the MOS head speaks for the mean rater. noise: variance of
    a rating around its prediction, set after training. fixed: bias 0 and gain 1 are not learned.
    """

    def __init__(self, raters, middle, unit, fixed=False):
        super().__init__()
        self.raw_bias = nn.Parameter(torch.zeros(raters), requires_grad=not fixed)
        self.raw_gain = nn.Parameter(torch.zeros(raters), requires_grad=not fixed)
        self.register_buffer("noise", torch.zeros(()))
        self.middle = middle
        self.unit = unit

    def bias_and_gain(self):
        """(R,) on the scale of the ratings, (R,)."""
        bias = REACH * self.unit * (self.raw_bias - self.raw_bias.mean())
        gain = 1 + REACH * (self.raw_gain - self.raw_gain.mean())
        return bias, gain

    def forward(self, mos):
        bias, gain = self.bias_and_gain()
        return self.middle + gain * (mos[:, None] - self.middle) + bias


class RaterMOS(moemos.MoEMOS):
    """MoEMOS with Raters behind its MOS head: in training its Output's mos is (B, R), what each
    rater gives, so that the loss is of single ratings; in evaluation (B,), the mean rater's."""

    def __init__(self, *arguments, raters, fixed, **options):
        super().__init__(*arguments, **options)
        self.raters = Raters(raters, self.middle, self.unit, fixed)

    def forward(self, features):
        output = super().forward(features)
        if self.training:
            output = output._replace(mos=self.raters(output.mos))
        return output


# -- Training and evaluation -----------------------------------------------------------------------

def single_ratings(clips, raters):
    """(clips, R), NaN where a rater has not rated."""
    return torch.tensor([[clip.ratings.get(rater, math.nan) for rater in raters]
                         for clip in clips])


def builder(raters, kind):
    """build, as of train.train."""
    def build(config, backbone, classes):
        return RaterMOS(backbone.layers, backbone.width, len(classes), config.experts,
                        config.hidden, config.dropout, config.scale,
                        raters=raters, fixed=kind == "single")
    return build


def train_raters(config, kind):
    """train.train, with single ratings for the MOS; returns the model."""
    train.check(config)
    device = data.pick_device(config.device)
    data.check_writable(config.out)
    clips, held_out = train.training_clips(config)
    backbone = data.open_backbone(config.backbone, device)
    config = replace(config, backbone=backbone.name)
    both = clips + held_out
    everything, classes = train.as_tensors(both, backbone, config.cache, train.synthesis_model)
    raters = sorted({rater for clip in both for rater in clip.ratings})
    ratings = single_ratings(both, raters).to(backbone.device)
    training = everything.take(slice(len(clips)))._replace(mos=ratings[:len(clips)])
    validation = everything.take(slice(len(clips), None))

    torch.manual_seed(config.seed)
    model = builder(len(raters), kind)(config, backbone, classes)
    stages = train.stages_to_run(train.STAGES, config)
    rows = train.run_stages(model, stages, config, training, validation)
    with torch.no_grad():
        said = model.raters(model.eval()(validation.features).mos)
    errors = (said - ratings[len(clips):]).square().nanmean()
    model.raters.noise.fill_(errors.nan_to_num(model.unit ** 2))
    train.write_run(config, model, stages, classes, backbone, rows)
    return model


def load_raters(run, kind, device=""):
    """evaluate.load_run of what train_raters has written."""
    weights = torch.load(Path(run, "model.pt"), map_location="cpu", weights_only=True)["weights"]
    return evaluate.load_run(run, device, builder(len(weights["raters.raw_bias"]), kind))


def run(config, kind):
    """Trains and evaluates; writes adaptation.json for kind yes."""
    train_raters(config, kind)
    Path(config.out, "adaptation.json").unlink(missing_ok=True)  # of the model that was there
    trained = load_raters(config.out, kind, config.device)
    errors = adapt(trained) if kind == "yes" else None
    if errors:
        data.write_atomically(Path(config.out, "adaptation.json"), evaluate.as_json(errors))
    evaluate.evaluate(config.out, trained=trained)  # last: metrics.json says that a run is whole
    if errors:
        show(errors)


def adapt(trained):
    """adaptation() on the rated test clips of a run's own corpus; None without any."""
    clips = data.read_manifest(trained.config.data, trained.config.scale)
    clips = [clip for clip in clips if clip.split == "test" and clip.ratings]
    if not clips:
        return None
    predicted = evaluate.predict_clips(trained, clips).mos.tolist()
    return adaptation(trained.model.raters, predicted, clips)


def show(errors):
    heading = "".join(f"{f'k = {k}':>8}" for k in SHOTS)
    print(f"\n{'after k ratings of each new rater':34}{heading}")
    for what, label in (("MOS", "utterance MSE"), ("rating", "MSE of a single rating")):
        print(evaluate.line(label, [errors[k][what] for k in SHOTS]))


# -- New raters ------------------------------------------------------------------------------------

def adaptation(raters, predicted, clips, seed=0):
    """Utterance MSE once each new rater has given k ratings, for k of SHOTS:
    {k: {"MSE" of clips as "MOS", of single ratings as "rating"}}.

    Mean over SPLITS: a half of the clips, drawn anew in each, is scored after calibration on the
    other, each rater on k clips of his own (all that he has, where fewer), and the other way round.
    A clip's MOS is the mean of what its raters would give.
    """
    predicted = np.asarray(predicted)
    mos = np.array([clip.mos for clip in clips])
    _, ratings = rating_matrix(clips)  # (R, clips)
    rng = np.random.default_rng(seed)
    errors = {k: {"MOS": [], "rating": []} for k in SHOTS}
    for _ in range(SPLITS):
        half = rng.permutation(len(clips)) < len(clips) // 2        # (clips,)
        said = {k: np.full(ratings.shape, math.nan) for k in SHOTS}
        for scored in (half, ~half):
            for r, own in enumerate(ratings):
                rated = ~np.isnan(own)
                pool = rng.permutation(np.flatnonzero(~scored & rated))
                for k in SHOTS:
                    calibrated = calibrate(raters, predicted, own, pool[:k])
                    said[k][r, scored & rated] = calibrated[scored & rated]
        for k in SHOTS:
            errors[k]["MOS"].append(np.mean((np.nanmean(said[k], axis=0) - mos) ** 2))
            errors[k]["rating"].append(np.nanmean((said[k] - ratings) ** 2))
    return {k: {what: float(np.mean(values)) for what, values in errors[k].items()} for k in SHOTS}


def calibrate(raters, predicted, own, known):
    """(clips,) predicted MOS -> what a new rater would give, whose ratings `own` are known at some
    clips.

    His bias and gain are their posterior mean (ridge regression): beforehand as spread as those of
    the training raters, and with their noise. p: predicted, c: the middle, x = (1, p - c);

        rating - p = bias + (gain - 1) (p - c) + noise
        (bias, gain - 1) = (x'x / noise + diag(1 / variances))^-1  x' (rating - p) / noise
    """
    bias, gain = (part.detach().cpu().numpy() for part in raters.bias_and_gain())
    variances = np.maximum([bias.var(), gain.var()], 1e-6)
    noise = raters.noise.item()
    x = np.stack([np.ones(len(predicted)), predicted - raters.middle], axis=1)  # (clips, 2)
    precision = x[known].T @ x[known] / noise + np.diag(1 / variances)
    coefficients = np.linalg.solve(precision, x[known].T @ (own - predicted)[known] / noise)
    return predicted + x @ coefficients


def label_noise(clips):
    """Variance of a clip's MOS if the same raters rated it again, mean over clips; NaN where the
    ratings do not tell.

    From the residuals of the additive model rating = clip + rater, each clip's variance over its
    number of ratings. Raters' gains count as noise in it: in the simulation it is 3 % high.
    """
    raters, residuals = rating_matrix(clips)
    rated = ~np.isnan(residuals)  # (R, clips)
    for _ in range(100):  # once is exact where all rate all; where few do, the two means settle
        residuals = residuals - np.nanmean(residuals, axis=0)
        residuals = residuals - np.nanmean(residuals, axis=1, keepdims=True)
    groups, _ = connected_components(rated.astype(float) @ rated.T)  # of raters joined by clips
    degrees_of_freedom = rated.sum() - len(clips) - len(raters) + groups
    if degrees_of_freedom <= 0:
        return math.nan
    variance = np.nansum(residuals ** 2) / degrees_of_freedom
    return float(variance * np.mean(1 / rated.sum(0)))


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains from single ratings, with a model of the raters.")
    parser.add_argument("--kind", choices=("yes", "single"), default="yes",
                        help="bias and gain of each rater, or 0 and 1 for all (default: yes)")
    config, options = train.parse(parser, out="runs/with_raters")
    with data.one_sentence("studies.raters"):
        run(config, options["kind"])


if __name__ == "__main__":
    main()
