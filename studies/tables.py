"""From predictions to numbers: the eight metrics, differences of two variants with their intervals,
Holm's correction, the tables that are printed, and JSON files that are read.

All numbers of a variant are means over seeds. An interval of a difference is a jackknife's, with
what evaluate.parts_of says left out in turn; its error is joined with that over seeds.
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
    """Mean over systems of the LCC among a system's clips; NaN if every one is undefined."""
    predicted, true, system = np.asarray(predicted), np.asarray(true), np.asarray(system)
    values = np.array([moemos.lcc(predicted[system == name], true[system == name])
                       for name in np.unique(system)])
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def numbers(predicted, true, system):
    """The eight metrics, and LCC within systems."""
    within = lcc_within_systems(predicted, true, system)
    return moemos.metrics(predicted, true, system) | {WITHIN: within}


class Predicted:
    """The predictions of a variant in a cell: (seeds, n), with the n clips' MOS and systems."""

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
        """(seeds,) of one of numbers()."""
        return np.array([one[metric] for one in self.by_seed])

    def numbers(self):
        """The mean of each over seeds."""
        return {metric: float(self.value(metric).mean()) for metric in self.by_seed[0]}

    @functools.cached_property
    def left_out(self):
        """{metric: (parts,)}, as evaluate.leave_one_out has it, the mean over seeds."""
        several = [evaluate.leave_one_out(one, self.true, self.system) for one in self.predictions]
        return {metric: np.mean([one[metric] for one in several], 0) for metric in several[0]}

    def interval(self, metric):
        """[low, high], the 95 % interval of the mean over seeds of one of the eight numbers."""
        return evaluate.interval(self.numbers()[metric], self.left_out[metric], metric)


def as_predicted(corpus, predictions):
    """Predicted of the predictions (clips,) of several seeds, NaN where there is none; corpus: as
    of lab.load."""
    rows = ~np.isnan(predictions[0])
    systems = np.array([clip.system for clip in corpus.clips])[rows]
    return Predicted(np.array(predictions)[:, rows], corpus.mos[rows], systems)


def difference(terms, metric):
    """(value, standard error, degrees of freedom) of a weighted sum of differences, each of one
    Predicted less another: terms (weight, one, other), all of the same clips of one corpus, such as
    with one encoder and with another.

    Variances add up: the jackknife's of the whole sum, of parts - 1 degrees, and those of the means
    over seeds, of seeds - 1. What a seed does to some parts only counts in the first as in the
    others, so the error is rather too large. Of one seed there is no variance: a variant that is
    not drawn has none, and of one that is drawn the difference then holds for that one training."""
    value = sum(weight * (one.value(metric).mean() - other.value(metric).mean())
                for weight, one, other in terms)
    change = sum(weight * (one.left_out[metric] - other.left_out[metric])
                 for weight, one, other in terms)
    variances, freedom = [(len(change) - 1) * np.var(change)], [len(change) - 1]
    for weight, *pair in terms:
        for seeds in (one.value(metric) for one in pair):
            if len(seeds) > 1:
                variances.append(weight ** 2 * np.var(seeds, ddof=1) / len(seeds))
                freedom.append(len(seeds) - 1)
    return float(value), math.sqrt(sum(variances)), joined_freedom(variances, freedom)


def joined_freedom(variances, freedom):
    """The degrees of freedom of a sum of independent variances, by Welch and Satterthwaite:
    (sum_i v_i)^2 / sum_i (v_i^2 / f_i); 1 where all are 0."""
    variances, freedom = np.array(variances), np.array(freedom)
    total = variances.sum()
    return float(total ** 2 / np.sum(variances ** 2 / freedom)) if total else 1.0


def added(differences):
    """The sum of independent (value, error, degrees of freedom), as one of them."""
    value, error, freedom = np.array(differences).T
    variances = np.square(error)
    return float(value.sum()), float(np.sqrt(variances.sum())), joined_freedom(variances, freedom)


def claim(difference):
    """(value, error, degrees of freedom) -> {"value", "low", "high", "p"}: the 95 % interval and
    the probability of a difference as large by chance, by Student's t."""
    value, error, freedom = difference
    reach = float(stdtrit(freedom, 0.975)) * error
    p = float(2 * stdtr(freedom, -abs(value) / error)) if error else 1.0
    return {"value": value, "low": value - reach, "high": value + reach, "p": p}


def holm(p):
    """Holm's correction of all p that are claimed together, in the same order."""
    order = np.argsort(p)
    scaled = np.array(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()


FOLLOWED = ("entropy, a clip", "entropy, the mean", "MOS", "systems", "sampling rates",
            "rater panels")


def gate_use(gates, true, labels):
    """(n, E) gates -> a number for each of FOLLOWED: the entropy of a clip's gates and that of the
    mean gate, in nats, and the shares of the gates' variance along a straight line in the MOS, and
    between the clips of each of labels. A share is less what chance gives; NaN where a label is the
    same for all, or another for each."""
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
    """gate_use() of the gates (clips, E) that a variant gave to a corpus, NaN where none."""
    rows = ~np.isnan(gates[:, 0])
    clips = [clip for clip, row in zip(corpus.clips, rows) if row]
    labels = [[clip.system for clip in clips],
              [data.decode(clip.path, data.read_bytes(clip.path))[0] for clip in clips],
              [" ".join(sorted(clip.ratings)) for clip in clips]]
    return gate_use(gates[rows], corpus.mos[rows], labels)


def share(centred, means, parts):
    """Of the variance of (n, E) centred values that of their means (n, E) in some parts, less what
    as many parts have by chance: 1 - (1 - share) (n - 1) / (n - parts)."""
    n = len(centred)
    if not 1 < parts < n or not centred.any():
        return math.nan
    return float(1 - (1 - np.sum(means ** 2) / np.sum(centred ** 2)) * (n - 1) / (n - parts))


def mean_use(several):
    """The mean of each number of gate_use() over the cells and seeds in which there is one."""
    columns = [[value for value in column if math.isfinite(value)] for column in zip(*several)]
    return [float(np.mean(column)) if column else None for column in columns]


def number(value):
    """.812, -.004, 12.3; a dash for what does not exist; a value and its reach with ±."""
    if isinstance(value, list):
        return " ± ".join(map(number, value))
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def with_interval(claim, p=1.0):
    """+.012 [-.003, +.027], and a star where p, corrected, is below .05; a dash without a value."""
    if not math.isfinite(claim["value"]):
        return "-"
    value, low, high = (f"{claim[name]:+.3f}".replace("0.", ".", 1)
                        for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" + "*" * (p < 0.05)


def table(rows):
    """Rows of cells, the first one the heading -> a Markdown table in aligned columns."""
    rows = [[data.printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
             for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


# -- JSON files ------------------------------------------------------------------------------------

def read_json(path, form, remedy):
    """What a JSON file holds. Raises InputError, which ends with the remedy, for a file that is not
    there, or damaged, or has not the form that fits() describes."""
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
    """Whether a value out of a JSON file has a form, which is written like the value: float, a
    finite number; str; None; {"key": form, ...}, these keys at least; {str: form}, any keys;
    [form], a list of one or more; [form, form, ...], a list of so many; (form, ...), any of these.
    """
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
