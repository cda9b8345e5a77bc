"""Does the gate follow the synthesis model, the bandwidth, or quality itself (ours)?

    python -m studies.gates RUN RUN ...

Of the variance of the gates over the test clips of a run, summed over the experts: the share that
groups of clips explain, those of one model, of one sampling rate, or of like quality (rated MOS, in
as many groups of about equal size as there are models); of all three together; and what each adds
to the other two. Shares are adjusted for the number of groups, so that groups by chance explain 0
on average. Means over the runs, with Student's 95 % intervals where there are several.
"""

import argparse

import numpy as np

import data
import evaluate
import moemos
from data import InputError
from studies.compare import student

CAUSES = ("synthesis model", "sampling rate", "quality")


def indicators(names):
    """(n,) names -> (n, groups) float: 1 where a clip is of the group."""
    names = np.asarray(names)
    return (names[:, None] == np.unique(names)).astype(float)


def explained(gates, groupings):
    """Adjusted share of the variance of (n, E) gates that additive effects of groupings, (n,
    groups) indicators each, explain: 1 - (1 - R^2) (n - 1) / (n - rank)."""
    x = np.concatenate([np.ones((len(gates), 1)), *groupings], axis=1)
    centred = gates - gates.mean(0)
    coefficients, _, rank, _ = np.linalg.lstsq(x, centred, rcond=None)
    left = np.square(centred - x @ coefficients).sum() / np.square(centred).sum()
    n = len(gates)
    return 1 - left * (n - 1) / (n - rank)


def quality_groups(mos, groups):
    """(n,) -> (n,) int: groups of about equal size, from the worst to the best; equal MOS are in
    one."""
    place = moemos.ranks(np.asarray(mos)) - 0.5  # within 0 and n
    return (place * groups // len(mos)).astype(int)


def shares(gates, model, rate, mos):
    """-> (7,): explained by each of CAUSES alone, by all, and what each adds to the others."""
    groupings = [indicators(model), indicators(rate),
                 indicators(quality_groups(mos, len(set(model))))]
    alone = [explained(gates, [grouping]) for grouping in groupings]
    together = explained(gates, groupings)
    added = [together - explained(gates, groupings[:i] + groupings[i + 1:]) for i in range(3)]
    return np.array([*alone, together, *added])


def of_run(run, device=""):
    """shares() of a run's test clips. Raises InputError."""
    trained = evaluate.load_run(run, device)
    clips = data.read_manifest(trained.config.data, trained.config.scale)
    clips = [clip for clip in clips if clip.split == "test" and clip.ratings]
    data.check_clips(clips)  # of which each has its rate
    groups = 2 * len({clip.model for clip in clips}) + len({clip.rate for clip in clips})
    if len(clips) < 2 * max(groups, 1):
        raise InputError(f"{run}: {len(clips)} rated test clips are too few for {groups} groups, "
                         "two of each synthesis model and one of each rate; take a larger corpus")
    gates = evaluate.predict_clips(trained, clips).gates.double().numpy()
    if gates.std(0).max() < 1e-6:
        raise InputError(f"{run}: its gates are the same for all clips; nothing is to be explained")
    return shares(gates, [clip.model for clip in clips], [clip.rate for clip in clips],
                  [clip.mos for clip in clips])


def show(found):
    """found: (runs, 7)."""
    mean, low, high = student(found)
    print(f"{len(found)} runs; of the variance of the gates, %")
    print(f"{'':20}{'alone':24}added to the other two")
    cells = [f"{share:.0f}" for share in 100 * mean]
    if len(found) > 1:
        bounds = [f"[{least:.0f}, {most:.0f}]" for least, most in 100 * np.stack([low, high], 1)]
        cells = [f"{cell} {bound}" for cell, bound in zip(cells, bounds)]
    for i, cause in enumerate(CAUSES):
        print(f"{cause:20}{cells[i]:24}{cells[4 + i]}")
    print(f"{'all three':20}{cells[3]}")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Says what the gates of runs follow.")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--device", default="", help="as of train.py")
    options = parser.parse_args()
    with data.one_sentence("studies.gates"):
        show(np.array([of_run(run, options.device) for run in options.runs]))


if __name__ == "__main__":
    main()
