"""From predictions to numbers: the eight metrics, the difference of two variants and its interval,
Holm's correction, tables in Markdown, and a check of JSON files.

All numbers of a variant are means over seeds. The interval of a difference comes from a jackknife,
in which the parts of evaluate.parts_of() are left out in turn, and from how much seeds differ.
"""

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
from scipy.special import stdtr, stdtrit

import data
import evaluate
import moemos
from data import InputError

WITHIN = "LCC within systems"


def lcc_within_systems(predicted, true, system):
    """The LCC among the clips of a system, in the mean over systems; NaN if all are undefined."""
    predicted, true, system = np.asarray(predicted), np.asarray(true), np.asarray(system)
    values = np.array([moemos.lcc(predicted[system == name], true[system == name])
                       for name in np.unique(system)])
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def numbers(predicted, true, system):
    """The eight metrics, and LCC within systems."""
    within = lcc_within_systems(predicted, true, system)
    return moemos.metrics(predicted, true, system) | {WITHIN: within}


class Predicted:
    """The predictions of a variant in a cell, (seeds, n), with the MOS and systems of the n clips.
    """

    def __init__(self, predictions, true, system):
        self.predictions = predictions
        self.true = np.asarray(true)
        self.system = np.asarray(system)

    def systems(self):
        return len(set(self.system))

    @functools.cached_property
    def by_seed(self):
        return [numbers(one, self.true, self.system) for one in self.predictions]

    def value(self, metric):
        """One of numbers() for each seed, (seeds,)."""
        return np.array([one[metric] for one in self.by_seed])

    def numbers(self):
        """Each of the numbers in the mean over seeds."""
        return {metric: float(self.value(metric).mean()) for metric in self.by_seed[0]}

    @functools.cached_property
    def left_out(self):
        """{metric: (parts,)} as evaluate.leave_one_out() gives it, in the mean over seeds."""
        several = [evaluate.leave_one_out(one, self.true, self.system) for one in self.predictions]
        return {metric: np.mean([one[metric] for one in several], 0) for metric in several[0]}

    def interval(self, metric):
        """[low, high], the 95 % interval of one of the eight metrics, in the mean over seeds."""
        return evaluate.interval(self.numbers()[metric], self.left_out[metric], metric)


def as_predicted(corpus, predictions):
    """The Predicted of several seeds. corpus: as lab.load() gives it. predictions: (clips,) for
    each seed, NaN for a clip that is not predicted."""
    rows = ~np.isnan(predictions[0])
    systems = np.array([clip.system for clip in corpus.clips])[rows]
    return Predicted(np.array(predictions)[:, rows], corpus.mos[rows], systems)


def difference(terms, metric, same_draws=False):
    """(value, standard error, degrees of freedom) of the sum of weight * (one minus other) over the
    terms (weight, one, other). one, other: Predicted of the same clips of one corpus; two terms may
    have two backbones.

    The variance is a sum: that of the jackknife, which has parts - 1 degrees of freedom, and those
    of the means over seeds, which have seeds - 1. If a seed matters for some parts only, that
    counts in both, so the error is rather too large. One seed gives no variance. For a variant that
    does not depend on the seed that is right; for another, the difference then holds for that one
    training. same_draws: the seed also draws the clips that are learned from, the same for all. The
    variance over seeds is then that of the whole sum, seed by seed."""
    value = sum(weight * (one.value(metric).mean() - other.value(metric).mean())
                for weight, one, other in terms)
    change = sum(weight * (one.left_out[metric] - other.left_out[metric])
                 for weight, one, other in terms)
    variances, freedom = [(len(change) - 1) * np.var(change)], [len(change) - 1]
    by_seed = [weight * one.value(metric) for weight, *pair in terms for one in pair]
    if same_draws:
        by_seed = [sum(by_seed[::2]) - sum(by_seed[1::2])]
    for values in by_seed:
        if len(values) > 1:
            variances.append(np.var(values, ddof=1) / len(values))
            freedom.append(len(values) - 1)
    return float(value), math.sqrt(sum(variances)), joined_freedom(variances, freedom)


def joined_freedom(variances, freedom):
    """The degrees of freedom of a sum of independent variances, by Welch and Satterthwaite:
    (sum_i v_i)^2 / sum_i (v_i^2 / f_i); 1 where all are 0."""
    variances, freedom = np.array(variances), np.array(freedom)
    total = variances.sum()
    return float(total ** 2 / np.sum(variances ** 2 / freedom)) if total else 1.0


def added(differences):
    """The sum of independent differences. It has the form of each: (value, error, degrees of
    freedom)."""
    value, error, freedom = np.array(differences).T
    variances = np.square(error)
    return float(value.sum()), float(np.sqrt(variances.sum())), joined_freedom(variances, freedom)


def claim(difference):
    """{"value", "low", "high", "p"} of (value, error, degrees of freedom): the 95 % interval, and
    the probability that chance gives so large a difference, by Student's t."""
    value, error, freedom = difference
    reach = float(stdtrit(freedom, 0.975)) * error
    p = float(2 * stdtr(freedom, -abs(value) / error)) if error else 1.0
    return {"value": value, "low": value - reach, "high": value + reach, "p": p}


def holm(p):
    """The p of all claims after Holm's correction, in the same order."""
    order = np.argsort(p)
    scaled = np.array(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()


FOLLOWED = ("entropy of a clip's gates", "entropy of the mean gate", "MOS", "systems",
            "sampling rates", "rater panels")


def gate_use(gates, true, labels):
    """A number for each of FOLLOWED. The first two are the mean entropy of a clip's gates and the
    entropy of the mean gate, in nats. The others say which share of the variance of the gates is
    explained by a linear function of the MOS and by each of the labels, after share() has
    subtracted what chance explains. NaN for a label that is the same for all clips, or another for
    each. gates: (n, E). true: MOS, (n,). labels: several lists of n."""
    centred = gates - gates.mean(0)
    along = (true - true.mean())[:, None] / np.std(true)
    means = [along * np.mean(along * centred, 0)]
    parts = [2]
    for label in labels:
        _, group, size = np.unique(label, return_inverse=True, return_counts=True)
        sums = np.zeros((len(size), gates.shape[1]))
        np.add.at(sums, group, centred)
        means.append((sums / size[:, None])[group])
        parts.append(len(size))
    entropies = moemos.gate_entropies(torch.from_numpy(gates))
    return [*map(float, entropies), *map(share, itertools.repeat(centred), means, parts)]


def gate_use_in(corpus, gates):
    """gate_use() of a corpus. gates: (clips, E), NaN for a clip that has none. The labels are the
    clip's system, the sampling rate of its file, and the raters who rated it."""
    rows = ~np.isnan(gates[:, 0])
    clips = [clip for clip, row in zip(corpus.clips, rows) if row]
    labels = [[clip.system for clip in clips],
              [data.decode(clip.path, data.read_bytes(clip.path))[0] for clip in clips],
              [" ".join(sorted(clip.ratings)) for clip in clips]]
    return gate_use(gates[rows], corpus.mos[rows], labels)


def share(centred, means, parts):
    """The share of the variance of centred values, (n, E), that is explained by their means in some
    parts, (n, E), corrected for what as many parts explain by chance:
    1 - (1 - share) (n - 1) / (n - parts)."""
    n = len(centred)
    if not 1 < parts < n or not centred.any():
        return math.nan
    return float(1 - (1 - np.sum(means ** 2) / np.sum(centred ** 2)) * (n - 1) / (n - parts))


def mean_use(several):
    """Each number of gate_use() in the mean over those cells and seeds in which it is defined."""
    columns = [[value for value in column if math.isfinite(value)] for column in zip(*several)]
    return [float(np.mean(column)) if column else None for column in columns]


def number(value):
    """A number as text: .812, -.004, 12.3, or a dash for one that does not exist. [value, half the
    width of its interval] becomes .812 ± .004."""
    if isinstance(value, list):
        return " ± ".join(map(number, value))
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def with_interval(claim, p=1.0):
    """A claim as text: +.012 [-.003, +.027], with a star if the corrected p is below .05; a dash if
    it has no value."""
    if not math.isfinite(claim["value"]):
        return "-"
    value, low, high = (f"{claim[name]:+.3f}".replace("0.", ".", 1)
                        for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" + "*" * (p < 0.05)


def table(rows):
    """A Markdown table with aligned columns. rows: lists of cells, of which the first is the
    heading."""
    rows = [[data.printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
             for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


# -- JSON files ------------------------------------------------------------------------------------

def read_json(path, form, remedy):
    """What a JSON file holds. Raises InputError, which ends with the remedy, for a file that does
    not exist, or is damaged, or has not the form that fits() describes."""
    if not Path(path).is_file():
        raise InputError(f"{path}: is not there; {remedy}")
    content = data.read_bytes(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not fits(value, form):
        raise InputError(f"{path}: is damaged or of another version; {remedy}")
    return value


def fits(value, form):
    """Whether a value out of a JSON file has a form, which is written like the value itself: float
    for a finite number, str, None, {"key": form, ...} for a dict with at least these keys, {str:
    form} for any keys, [form] for a list of one or more, [form, form, ...] for a list of so many,
    and (form, ...) for any one of these forms."""
    if isinstance(form, tuple):
        return any(fits(value, one) for one in form)
    if form is float:
        return type(value) in (int, float) and abs(value) < 1e12
    if form is None:
        return value is None
    if form is str:
        return isinstance(value, str)
    if not isinstance(value, type(form)):
        return False
    if isinstance(form, list):
        forms = form * len(value) if len(form) == 1 else form
        return 0 < len(value) == len(forms) and all(map(fits, value, forms))
    if str in form:
        return all(fits(one, form[str]) for one in value.values())
    return all(key in value and fits(value[key], own) for key, own in form.items())
