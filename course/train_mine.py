"""Trains and evaluates the default run twice: with the core, and with a student's functions in the
core's places. Nothing in the core's files changes; its names are exchanged for a while."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import evaluate
import moemos
import train
from course import check
from data import InputError

SETTINGS = train.Config(backbone="logmel", device="cpu", out="runs/course")
AGREE = """
The numbers of the core and of your code agree: no two of them differ by 0.001. You have written the
method."""
LEGEND = "The core computes both MSE (squared error) and both KTAU (pairs in the right order)."
DIFFER = """
The numbers differ, although each of your functions is right in the cases that were tried. One of
them must do something else in training. Compare them with the core's, one by one."""


def compare(mine, settings=SETTINGS):
    """Prints both reports side by side -> whether no number differs by .001, the last digit shown.
    mine: a module whose functions are right. Writes the runs OUT_core and OUT_mine. Raises
    InputError, also where the student's code raises anything."""
    core = replace(settings, out=f"{settings.out}_core")
    print("\nBoth trainings take about a minute, and longer where a corpus must be made first.\n"
          f"Training with the core, this repository's own code, into {core.out} ...", flush=True)
    of_core = numbers(core)
    # A folder of features of one's own, emptied first: what the student's code makes must neither
    # get into the core's features nor come from an earlier version of the student's code.
    features = Path(f"{settings.out}_mine", "features")
    shutil.rmtree(features, ignore_errors=True)
    own = replace(settings, out=f"{settings.out}_mine", cache=str(features))
    print(f"Training with your functions, into {own.out} ...", flush=True)
    try:
        with in_the_cores_places(mine):
            of_mine = numbers(own)
    except (InputError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a student's code raises anything
        where = check.told(error, mine.__file__)
        raise InputError(f"your code stops in training with an error: {where}") from None
    print(f"\n{'on the test clips':20}{'core':>8}{'mine':>8}")
    for name, number in of_core.items():
        print(f"{name:20}{number:8.3f}{of_mine[name]:8.3f}")
    pairs = [(of_core[name], of_mine[name]) for name in of_core]
    agree = all(np.isclose(*pair, rtol=0, atol=1e-3, equal_nan=True) for pair in pairs)
    print(LEGEND)
    print(AGREE if agree else DIFFER)
    return agree


def numbers(config):
    """Trains and evaluates, in silence -> {name: number}, the eight numbers of the report."""
    with contextlib.redirect_stdout(None):
        train.train(config)
        result = evaluate.evaluate(config.out, "cpu")
    return {name: number / result["unit"][name] for name, number in result["metrics"].items()}


@contextlib.contextmanager
def in_the_cores_places(mine):
    """Within it the core calls the functions of the module `mine`."""
    core_start, core_predict = moemos.start, evaluate.predict
    seen = {}

    def start(features, *others):
        seen["training"] = features
        return core_start(features, *others)

    def fuse(self, features):
        return mine.standardise(features, seen["training"]).flatten(1) @ self.axes

    def mix(self, x):
        scores = self.gate(x)
        gates = mine.softmax_gate(scores)
        gates.scores = scores  # for losses(), as total_loss begins with them
        experts = torch.stack([mlp(x) for mlp in self.mlps], 1) + self.linear(x)[:, None]
        return mine.gated_sum(gates, experts), gates, experts

    def losses(output, mos, label, alpha, beta, lambda_1, lambda_2, deviation):
        mos_term = mine.mos_loss((output.mos / deviation)[:, None], mos / deviation)
        class_term = moemos.classification_loss(output.logits, label)
        return {"total": mine.total_loss(mos_term, class_term, output.gates.scores, alpha,
                                         lambda_1, lambda_2)}

    def run_stages(model, stages, config, training, dev=None):
        def loss_of(output, rows, weight):
            batch = training.take(rows)
            return losses(output, batch.mos, batch.label, weight, 1 - weight, config.lambda_1,
                          config.lambda_2, model.deviation)["total"]

        for stage in stages:
            mine.run_stage(model, training.features, loss_of, stage.steps, stage.lr,
                           stage.alpha_start, stage.alpha_end, config.batch_size)
        return [stage._asdict() for stage in stages]  # log.csv has no more than that

    def predict(model, features):
        return core_predict(model, features)._replace(mos=mine.predict(model, features))

    def system_means(values, system):
        return mine.system_means(np.asarray(values, np.float64), np.asarray(system))

    def ridge(features, target, new, penalties):
        return np.stack([mine.ridge(features, target, new, penalty)
                         for penalty in penalties])

    metrics = {"LCC": lambda predicted, true: float(mine.lcc(predicted, true)),
               "SRCC": lambda predicted, true: float(mine.srcc(predicted, true))}
    with (mock.patch.multiple(moemos, pool_statistics=mine.pool_statistics, start=start,
                              losses=losses, system_means=system_means, ridge=ridge),
          mock.patch.object(moemos.FeatureFusion, "forward", fuse),
          mock.patch.object(moemos.MixtureOfExperts, "forward", mix),
          mock.patch.dict(moemos.METRICS, metrics),
          mock.patch.object(train, "run_stages", run_stages),
          mock.patch.object(evaluate, "predict", predict),
          np.errstate(all="ignore")):  # as where a correlation is NaN
        yield
