"""What the experiments may claim: how many seeds each needs, and what survives Holm's correction.

    python -m studies.claims [--on NAME]

reads what studies.compare has written of the experiments. The first table, where pairs of runs have
corpora of their own: of each comparison the pairs there are, and the pairs with which a difference
as large as the yardstick would be shown in 80 of 100 cases, were it tested alone, from the
deviation of the differences between pairs; n pairs cost 2 n runs. The second: of all comparisons,
each in four numbers, those with p below .05, and what Holm's correction leaves of them; that asks
for more than .05, so for more pairs than the first table says. Ratings by another panel differ by
construction and are left out. Yardsticks are half of the paper's gains over the baseline B03 at
system level; at utterance level it has none, and the yardstick is ours.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

import data
from data import InputError
from evaluate import PUBLISHED, eight, nested
from studies.compare import holm, with_interval
from studies.experiments import EXPERIMENTS, ROOT, SIMULATED

PAPER = nested(PUBLISHED["the paper"])
BASELINE = nested(PUBLISHED["B03, the organisers' SSL-MOS"])
OWN_PANEL = "second"  # of simulated.PANELS, the corpus's own
YARDSTICKS = {  # (level, metric): the difference that matters
    ("utterance", "LCC"): 0.005,
    ("system", "LCC"): (PAPER["system"]["LCC"] - BASELINE["system"]["LCC"]) / 2,
    ("system", "MSE"): (BASELINE["system"]["MSE"] - PAPER["system"]["MSE"]) / 2,
}
COMPARED = (("utterance", "MSE"), *YARDSTICKS)  # one family, the columns of all tables


def seeds_needed(deviation, difference, most=1000):
    """The least n >= 2 pairs, whose differences have that standard deviation, with which Student's
    95 % interval of a true `difference` excludes 0 in about 80 of 100 cases (of two pairs 73):

        (t(.975, n - 1) + t(.8, n - 1)) deviation / sqrt(n) <= difference

    most + 1, where it takes more than that.
    """
    n = np.arange(2, most + 1)
    reach = (stdtrit(n - 1, 0.975) + stdtrit(n - 1, 0.8)) * deviation / np.sqrt(n)
    enough = n[reach <= difference]
    return int(enough[0]) if len(enough) else most + 1


def read_comparisons(on):
    """-> {"variant - other": its row of studies.compare}, of all experiments that were compared; a
    comparison that two of them share counts once. Raises InputError."""
    panels = {variant.name: variant.panel or OWN_PANEL
              for experiment in EXPERIMENTS.values() for variant in experiment.variants}
    found = {}
    for name in EXPERIMENTS:
        path = Path(ROOT, on, f"{name}.json")
        if not path.exists():
            continue
        try:
            rows = json.loads(path.read_bytes())
            names = [row["variant"].partition(": ")[2] for row in rows]
            for row, own in zip(rows, names):
                if "difference" not in row:
                    continue
                other = names[row["first"] - 1]
                eight(row["sd_of_pairs"])
                if panels.get(own) == panels.get(other):
                    found.setdefault(f"{own} - {other}", row)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path}: is damaged or of another version ({data.first_line(error)});"
                             f" python -m studies.compare --experiment {name}") from None
    if not found:
        raise InputError(f"{ROOT}/{on} has no comparison; run studies.experiments, and then "
                         "studies.compare --experiment")
    return found


def show_power(comparisons):
    columns = "".join(f"{f'{level} {metric}':>16}" for level, metric in YARDSTICKS)
    yardsticks = "".join(f"{difference:16.4f}" for difference in YARDSTICKS.values())
    print(f"{'pairs with which 80 % would be shown':44}pairs{columns}")
    print(f"{'  a difference of':44}there{yardsticks}")
    for name, row in comparisons.items():
        if not row["own_corpora"]:
            continue
        cells = ""
        for (level, metric), difference in YARDSTICKS.items():
            deviation = row["sd_of_pairs"][level][metric]
            needed = math.nan if deviation is None else seeds_needed(deviation, difference)
            cells += f"{needed:16.0f}"
        print(f"{name:44.44}{row['pairs']:5}{cells}")
    print()


def show_holm(comparisons):
    tests = []  # (name, level, metric, mean, low, high, p)
    for level, metric in COMPARED:
        for name, row in comparisons.items():
            tests.append((name, level, metric, *row["difference"]["these"][level][metric]))
    adjusted = holm([test[-1] for test in tests])
    shown = [i for i in range(len(tests)) if tests[i][-1] < 0.05]
    kept = [i for i in shown if adjusted[i] < 0.05]
    print(f"{len(tests)} comparisons, of which {0.05 * len(tests):.1f} would have p < .05 by "
          f"chance; {len(shown)} have, and {len(kept)} of them after Holm's correction:")
    print(f"{'':62}{'difference':24}      p  Holm's")
    for i in sorted(shown, key=lambda i: tests[i][-1]):
        name, level, metric, mean, low, high, p = tests[i]
        change = with_interval(mean, low, high)
        mark = " *" if i in kept else ""
        print(f"{name:44.44}{f'{level} {metric}':18}{change:24}{p:7.4f} {adjusted[i]:7.4f}{mark}")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Says what the experiments may claim.")
    parser.add_argument("--on", default=SIMULATED, metavar="NAME",
                        help="the folder of runs/experiments that the runs are in")
    options = parser.parse_args()
    with data.one_sentence("studies.claims"):
        comparisons = read_comparisons(options.on)
        if any(row["own_corpora"] for row in comparisons.values()):
            show_power(comparisons)
        show_holm(comparisons)


if __name__ == "__main__":
    main()
