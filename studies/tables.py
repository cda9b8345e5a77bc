"""From predictions to numbers: the eight metrics, differences of two variants with their intervals,
Holm's correction, and the tables that are printed.

All numbers of a variant are means over seeds. An interval of a difference is a jackknife's
(evaluate.interval): clips left out in turn, or systems, where it shall hold for other systems; its
error is joined with that over seeds.
"""

import functools
import math

import numpy as np
import torch
from scipy.special import stdtr, stdtrit

import moemos

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

    def left_out(self, metric, by):
        """(parts,) utterance LCC or MSE with parts of the clips left out in turn, mean over seeds;
        by: (n,) the part of each."""
        metric = {"utterance LCC": moemos.lcc, "utterance MSE": moemos.mse}[metric]
        kept = [by != part for part in np.unique(by)]
        return np.array([np.mean([metric(one[rows], self.true[rows]) for one in self.predictions])
                         for rows in kept])


def difference(one, other, metric, over="clips"):
    """(value, standard error, degrees of freedom) of one Predicted less another of the same clips,
    in utterance LCC or MSE. over: "clips" or "systems", which others might take the place of."""
    by = np.arange(len(one.true)) if over == "clips" else one.system
    change = one.left_out(metric, by) - other.left_out(metric, by)
    seeds = one.value(metric)[:, None] - other.value(metric)[None]
    parts = len(change)
    of_seeds = sum(np.var(np.mean(seeds, axis), ddof=1) / seeds.shape[1 - axis]
                   for axis in (0, 1) if seeds.shape[1 - axis] > 1)
    error = math.sqrt((parts - 1) * np.var(change) + of_seeds)
    return float(seeds.mean()), error, parts - 1


def pooled(differences):
    """The mean of independent (value, error, degrees of freedom), as one of them; its degrees of
    freedom by Welch and Satterthwaite."""
    value, error, freedom = np.array(differences).T
    variance = np.square(error / len(value))
    total = variance.sum()
    joined = total ** 2 / np.sum(variance ** 2 / freedom) if total else 1.0
    return float(value.mean()), float(np.sqrt(total)), float(joined)


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


def gate_use(gates, true, system):
    """(n, E) -> (entropy of a clip's gates, entropy of the mean gate, in nats; the shares of the
    gates' variance between systems, and along the MOS)."""
    centred = gates - gates.mean(0)
    total = max(np.sum(centred ** 2), 1e-12)
    between = sum(np.sum(centred[system == name].mean(0) ** 2) * np.sum(system == name)
                  for name in np.unique(system))
    along = true - true.mean()
    slope = along @ centred / (along @ along)
    entropies = moemos.gate_entropies(torch.from_numpy(gates))
    return *map(float, entropies), between / total, np.sum(np.outer(along, slope) ** 2) / total


def gate_table(uses):
    """{variant: gate_use() of cells and seeds} -> rows of a table of their means; with one expert
    there is nothing to follow."""
    rows = [["gates", "H of a clip's", "H of the mean", "variance between systems", "along MOS"]]
    for name, several in uses.items():
        if np.any(several):
            rows.append([name, *map(number, np.mean(several, axis=0))])
    return rows


def number(value, digits=3):
    """.812, -.004; a dash for what does not exist."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def with_interval(claim):
    """+.012 [-.003, +.027], and a star where p, corrected, is below .05."""
    value, low, high = (f"{claim[name]:+.3f}".replace("0.", ".", 1)
                        for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" + "*" * (claim.get("holm", 1) < 0.05)


def table(rows):
    """Rows of cells, the first one the heading -> a Markdown table in aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
             for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
