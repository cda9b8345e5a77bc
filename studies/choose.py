"""The settings of ours, chosen: cross-validation over sentences of the training clips alone.

    python -m studies.choose                    on simulated corpora
    python -m studies.choose --data PATH ...    and on other corpora

A candidate differs from the defaults in one thing. A corpus's rated training clips are in FOLDS
folds, by sentence or talker; each is predicted by a model of the others and of the clips without
MOS. Test clips are not looked at. Printed are the numbers of all predictions of a corpus, and last
the mean of utterance LCC over the corpora. That decides: a default stays unless another is better
by more than 0.002.
"""

import argparse
import contextlib
import functools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import data
import evaluate
import moemos
import train
from corpora import simulated
from studies.experiments import group_of, groups_of, worker_pool

SEEDS = (100, 101)  # of the simulated corpora; no other study uses these
FOLDS = 3
FIRST, SECOND, THIRD = train.STAGES


@dataclass(frozen=True)
class Candidate:
    name: str
    settings: dict = field(default_factory=dict)  # of train.Config
    stages: tuple = train.STAGES


def setting(**settings):
    name = ",".join(f"{key}={value}" for key, value in settings.items())
    return Candidate(name, settings)


def stage(number, **changes):
    """A candidate with another steps or lr of a stage."""
    stages = list(train.STAGES)
    stages[number - 1] = stages[number - 1]._replace(**changes)
    name = ",".join(f"{key}={value}" for key, value in changes.items())
    return Candidate(f"stage {number}: {name}", {}, tuple(stages))


CANDIDATES = (
    Candidate("default"),
    stage(1, steps=FIRST.steps // 2), stage(1, steps=FIRST.steps * 2),
    stage(2, steps=SECOND.steps // 2), stage(2, steps=SECOND.steps * 2),
    stage(2, lr=1e-3), stage(2, lr=6e-3),
    stage(3, steps=THIRD.steps // 3),
    setting(dropout=0.5), setting(dropout=0.8),
    setting(weight_decay=0.1), setting(weight_decay=3.0),
    setting(experts=1), setting(experts=8),
    setting(hidden=16), setting(hidden=64),
    setting(lambda_1=0.2), setting(lambda_2=0.2),
    setting(batch_size=64), setting(smooth_l1_beta=0.5),
    setting(backbone="logmel48"),
)


def fold_of(clips, folds=FOLDS):
    """(clips,) int: the fold of each, groups whole; -1 of a clip without ratings, which has none.
    """
    names = sorted({group_of(clip) for clip in clips if clip.ratings})
    number = {name: i % folds for i, name in enumerate(names)}
    return np.array([number[group_of(clip)] if clip.ratings else -1 for clip in clips])


def learn(everything, rows, new, model, config, stages=train.STAGES):
    """Trains a new model on some rows of train.Clips -> the MOS that it says of others, (new,).
    rows, new: (clips,) bool."""
    rows, new = torch.from_numpy(rows), torch.from_numpy(new)
    with contextlib.redirect_stdout(None):
        train.run_stages(model, stages, config, everything.take(rows), everything.take(new))
    return evaluate.predict(model.eval(), everything.features[new]).mos.numpy()


def cross_validate(candidate, corpus, cache):
    """-> (predictions of the rated training clips, ridge's, those clips), fold by fold."""
    torch.set_num_threads(1)
    config = replace(train.Config(backbone="logmel"), **candidate.settings)
    clips = [clip for clip in data.read_manifest(corpus) if clip.split == "train"]
    rated = [clip for clip in clips if clip.ratings]
    groups_of(rated, corpus)
    backbone = data.open_backbone(config.backbone, "cpu")
    everything, classes = train.as_tensors(clips, backbone, cache, train.synthesis_model)
    x, y = everything.features.flatten(1).double().numpy(), everything.mos.double().numpy()
    fold = fold_of(clips)
    predicted, by_ridge = np.zeros((2, len(clips)))
    for number in range(FOLDS):
        held_out, others = fold == number, (fold != number) & (fold >= 0)
        torch.manual_seed(config.seed)
        model = train.build_model(config, backbone, classes)
        predicted[held_out] = learn(everything, ~held_out, held_out, model, config,
                                    candidate.stages)
        by_ridge[held_out] = evaluate.ridge(x[others], y[others], x[held_out], fold[others])
    return predicted[fold >= 0], by_ridge[fold >= 0], rated


def numbers(predicted, clips):
    """-> utterance MSE, utterance LCC, LCC within systems, system LCC."""
    true, system = [clip.mos for clip in clips], [clip.system for clip in clips]
    result = moemos.metrics(predicted, true, system)
    within = evaluate.lcc_within_systems(predicted, true, system)
    return result["utterance"]["MSE"], result["utterance"]["LCC"], within, result["system"]["LCC"]


def prepare(seed):
    """A simulated corpus of that seed, in runs/corpora/ -> its folder."""
    folder = f"runs/corpora/{seed}"
    simulated.prepare(folder, seed)
    return folder


def choose(candidates, others, cache):
    """Prints a line a candidate. others: paths of corpora beside the simulated ones."""
    corpora = [*map(prepare, SEEDS), *others]
    print(f"{len(SEEDS)} simulated corpora, means{'':14}utterance     within  system"
          + "".join(f"   {Path(path).name:.14}" for path in others) + "   all")
    print(f"{'':37}  MSE    LCC    LCC     LCC" + "        MSE    LCC" * len(others) + "    LCC")
    with worker_pool(len(candidates) * len(corpora)) as pool:
        jobs = [(candidate, corpus) for candidate in candidates for corpus in corpora]
        results = pool.map(functools.partial(cross_validate, cache=cache), *zip(*jobs))
        for candidate in candidates:
            own = [next(results) for _ in corpora]
            if candidate is candidates[0]:
                show("ridge", [numbers(by_ridge, clips) for _, by_ridge, clips in own])
            show(candidate.name, [numbers(predicted, clips) for predicted, _, clips in own])


def show(name, rows):
    """rows: numbers() of each corpus, the simulated ones first."""
    rows = np.array(rows)
    mean = rows[:len(SEEDS)].mean(0)
    real = "".join(f"      {row[0]:.3f}  {row[1]:.3f}" for row in rows[len(SEEDS):])
    print(f"{name:34}  " + "  ".join(f"{value:.3f}" for value in mean)
          + f"{real}  {rows[:, 1].mean():.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Cross-validates the settings of ours.")
    parser.add_argument("--data", nargs="+", default=[], metavar="PATH",
                        help="other corpora, on the scale of 1 to 5")
    parser.add_argument("--cache", default="cache", help="folder of the features")
    options = parser.parse_args()
    with data.one_sentence("studies.choose"):
        choose(CANDIDATES, options.data, options.cache)


if __name__ == "__main__":
    main()
