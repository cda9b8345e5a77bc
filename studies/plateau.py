"""Are the defaults on a plateau or on a peak? Random settings near them (ours).

    python -m studies.plateau

draws SETTINGS settings, each number of ours between half and twice the default's (dropout between
0.55 and 0.85, 2 to 8 experts), trains each on a simulated corpus, and prints how their numbers on
the test clips are spread, beside those of the default with other seeds: what chance alone does. One
corpus and one run a setting: it says how far a setting may be off, not which is best.
"""

import argparse
import functools
from dataclasses import replace

import numpy as np
import torch

import data
import evaluate
import moemos
import train
from studies.choose import learn, prepare
from studies.experiments import worker_pool

CORPUS = 110     # the corpus's seed; no other study uses it
SETTINGS = 200
SEEDS = 10       # of the default
NEAR = ("hidden", "batch_size", "weight_decay", "lambda_1", "lambda_2", "smooth_l1_beta")


def draw(number):
    """The number-th random setting -> (Config, stages)."""
    rng = np.random.default_rng([number, 6])
    default = train.Config(backbone="logmel", seed=number)
    near = {name: getattr(default, name) * 2 ** rng.uniform(-1, 1) for name in NEAR}
    near["hidden"], near["batch_size"] = round(near["hidden"]), round(near["batch_size"])
    config = replace(default, dropout=rng.uniform(0.55, 0.85),
                     experts=int(rng.integers(2, 9)), **near)
    stages = [stage._replace(steps=round(stage.steps * 2 ** rng.uniform(-1, 1)))
              for stage in train.STAGES]
    stages[1] = stages[1]._replace(lr=stages[1].lr * 2 ** rng.uniform(-1, 1))
    return config, stages


def try_some(cache, numbers):
    """Settings by number, from 0, or the default with a seed, -1, -2 ... -> of each utterance MSE,
    LCC, system LCC on the test clips: (numbers, 3)."""
    torch.set_num_threads(1)
    corpus = prepare(CORPUS)
    clips = [clip for clip in data.read_manifest(corpus) if clip.split != "dev"]
    test = [clip for clip in clips if clip.split == "test"]
    backbone = data.open_backbone("logmel", "cpu")
    everything, classes = train.as_tensors(clips, backbone, cache, train.synthesis_model)
    rows = np.array([clip.split == "train" for clip in clips])
    reached = []
    for number in numbers:
        config, stages = train.Config(backbone="logmel", seed=-1 - number), train.STAGES
        if number >= 0:
            config, stages = draw(number)
        torch.manual_seed(config.seed)
        model = train.build_model(config, backbone, classes)
        reached.append(three(learn(everything, rows, ~rows, model, config, stages), test))
    return reached


def by_ridge(cache):
    """The same numbers of ridge."""
    clips = data.read_manifest(prepare(CORPUS))
    backbone = data.open_backbone("logmel", "cpu")
    learned = [clip for clip in clips if clip.split == "train" and clip.ratings]
    test = [clip for clip in clips if clip.split == "test"]
    x, new = (data.extract_features(some, backbone, cache).flatten(1).double().numpy()
              for some in (learned, test))
    return three(evaluate.ridge(x, np.array([clip.mos for clip in learned]), new), test)


def three(predicted, test):
    result = moemos.metrics(predicted, [clip.mos for clip in test], [clip.system for clip in test])
    return result["utterance"]["MSE"], result["utterance"]["LCC"], result["system"]["LCC"]


def plateau(cache):
    straight = by_ridge(cache)  # here first, so that the features are there
    numbers = [*range(-SEEDS, 0), *range(SETTINGS)]
    shares = [numbers[i:i + 10] for i in range(0, len(numbers), 10)]
    with worker_pool(len(shares)) as pool:
        results = np.concatenate(list(pool.map(functools.partial(try_some, cache), shares)))
    print(f"{'':22}    least      5 %   median     95 %     most      sd    ridge")
    for label, rows in ((f"default, {SEEDS} seeds", results[:SEEDS]),
                        (f"{SETTINGS} random settings", results[SEEDS:])):
        print(label)
        for name, column, line in zip(("utterance MSE", "utterance LCC", "system LCC"), rows.T,
                                      straight):
            spread = np.quantile(column, (0, 0.05, 0.5, 0.95, 1))
            cells = "".join(f"{value:9.3f}" for value in spread)
            print(f"  {name:20}{cells}{column.std():8.4f}{line:9.3f}")
    better = np.mean(results[SEEDS:, 1] > straight[1])
    print(f"of the random settings {100 * better:.0f} % have a higher utterance LCC than ridge")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains random settings near the defaults.")
    parser.add_argument("--cache", default="cache", help="folder of the features")
    options = parser.parse_args()
    with data.one_sentence("studies.plateau"):
        plateau(options.cache)


if __name__ == "__main__":
    main()
