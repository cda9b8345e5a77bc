"""Is it good for my ratings? One command that cross-validates the method on any table of ratings.

    python -m studies.crossvalidate RATINGS            a ratings.csv, or the folder that holds it
    python -m studies.crossvalidate RATINGS --unheard  for systems that nobody has rated
    python -m studies.crossvalidate RATINGS --unheard --new-groups   if their sentences are new, too
    python -m studies.crossvalidate RATINGS --scale 1 7 --backbone studies.distilled

With each seed, every rated clip, whatever its split, is predicted once by each of five predictors,
which have learned from clips of other groups: the method, the method with one expert,
ridge regression, the mean MOS of the clip's system, and the method on half of the clips. With
--unheard they have learned from clips of other systems (with --new-groups: and other groups), and
only the first three are asked.
Predictions are kept under runs/lab/, so that after an interruption the same command goes on where
it was.
"""

import argparse
import math
import os
import textwrap

import numpy as np

import data
import evaluate
import moemos
import train
from data import InputError
from studies import lab, raters, tables
from studies.lab import MEAN, METHOD, RIDGE, Cell, Job
from studies.variants import ONE

VARIANTS = (METHOD, ONE, RIDGE, MEAN)  # the first is compared with each of the others
HALF = "the method, half the clips"    # it learns from about half of each system's clips
FEWEST = 5                             # rated clips to learn from must remain outside each part
HALVINGS = 20                          # how often the raters are halved at random
# How the clips are split, as for lab.split(), and from what other clips is then learned.
OTHERS = {"groups": "groups", "system": "systems", "system and groups": "systems and groups"}


def check(path, clips, how):
    """Raises InputError for rated clips that cannot be cross-validated. how: as for lab.split()."""
    needed = evaluate.FEWEST["clips"]
    number = {"groups": len({clip.group for clip in clips}),
              "system": len({clip.system for clip in clips})}
    mos = [clip.mos for clip in clips]
    too_few = min(number[part] for part in how.split(" and ")) < 2
    if len(clips) < needed or too_few or moemos.why_undefined(mos, mos):
        raise InputError(f"{path}: has {len(clips)} rated clips in {number['groups']} groups, by "
                         f"{number['system']} systems, with {len(set(mos))} different MOS; "
                         f"cross-validation needs {needed} clips, two groups (with --unheard, two "
                         "systems) and two different MOS")
    splits = lab.split(lab.Corpus(clips, None, None), how)
    fewest = min(learned.sum() for learned, _ in splits)
    if fewest < FEWEST:
        raise InputError(f"{path}: for one part of its clips, only {fewest} of {len(clips)} rated "
                         f"clips remain to learn from; at least {FEWEST} are needed")


def inventory(path, clips, how):
    """Yields lines that say what was found in a table, and what is done with it. how: as for
    lab.split()."""
    rated = [clip for clip in clips if clip.ratings]
    given = [rater for clip in rated for rater in clip.ratings]
    mos = [clip.mos for clip in rated]
    yield f"{path}: {len(rated)} rated clips, {len(clips) - len(rated)} without ratings"
    yield (f"{len(given)} ratings or means by {len({*given} - {''})} named raters, "
           f"{len({clip.system for clip in rated})} systems, "
           f"{len({clip.group for clip in rated})} groups, MOS {min(mos):.2f} to {max(mos):.2f}")
    yield f"With each seed, every rated clip is predicted once, from clips of other {OTHERS[how]}."


def reliability(ratings):
    """The LCC to be expected between the MOS of two panels as large as this one: 2 r / (1 + r), by
    Spearman and Brown, where r is the mean LCC between two random halves of the raters. NaN if both
    halves have rated too few clips, or if r is not above 0. ratings: (clips, R), NaN where a rater
    has not rated a clip."""
    found = []
    for seed in range(HALVINGS):
        one, other = (lab.means(half) for half in raters.halves(ratings, seed))
        both = ~np.isnan(one + other)
        enough = both.sum() >= evaluate.FEWEST["clips"]
        found.append(moemos.lcc(one[both], other[both]) if enough else math.nan)
    r = float(np.mean(found))
    return 2 * r / (1 + r) if r > 0 else math.nan


# -- Cross-validation ------------------------------------------------------------------------------

def half_of_a_system(corpus):
    """Half of the number of a system's rated clips that are learned from, in the median over
    systems and folds."""
    systems = np.array([clip.system for clip in corpus.clips])
    counts = [np.unique(systems[learned & corpus.rated], return_counts=True)[1]
              for learned, _ in lab.split(corpus, "groups")]
    return int(np.median(np.concatenate(counts))) // 2


def cross_validate(table, backbone, seeds, how):
    """{label: tables.Predicted} of VARIANTS and, if the systems have enough clips, of the method
    that learns from half of them. table: the absolute path of a ratings.csv. how: as for
    lab.split(). If systems are left out, no predictor can know their mean, and none learns from
    half."""
    corpus = lab.load(table, backbone)
    unheard = how != "groups"
    asked = [(variant.name, variant, how) for variant in VARIANTS
             if not (unheard and variant.name == MEAN.name)]
    half = 0 if unheard else half_of_a_system(corpus)
    if half:
        asked.append((HALF, VARIANTS[0], f"groups, {half} a system"))
    jobs = {label: [Job(variant, Cell(table, backbone, how), seed)
                    for seed in range(seeds if variant.drawn else 1)]
            for label, variant, how in asked}
    results = iter(lab.run([job for own in jobs.values() for job in own]))
    return {label: tables.as_predicted(corpus, [next(results)["mos"] for _ in own])
            for label, own in jobs.items()}


def compare(predicted):
    """{label: {metric: tables.claim}}: the method minus each other predictor. The system level is
    left out if there are too few systems."""
    method = predicted[METHOD.name]
    metrics = ["utterance LCC", "utterance MSE", "system LCC"]
    if method.systems() < evaluate.FEWEST["systems"]:
        metrics.remove("system LCC")
    return {label: {metric: tables.claim(tables.difference([(1, method, one)], metric))
                    for metric in metrics}
            for label, one in predicted.items() if one is not method}


# -- The report ------------------------------------------------------------------------------------

def with_bounds(one, metric):
    """A metric of a tables.Predicted with its interval, as text."""
    low, high = map(tables.number, one.interval(metric))
    return f"{tables.number(one.numbers()[metric])} [{low}, {high}]"


def show(predicted, claims):
    """Prints two tables: what each predictor reaches, and the method minus each other one."""
    metrics = list(claims[RIDGE.name])
    rows = [[label, *(with_bounds(one, metric) for metric in metrics)]
            for label, one in predicted.items()]
    print(f"\n{tables.table([['95 % intervals', *metrics], *rows])}")
    rows = [[label, *map(tables.with_interval, own.values())] for label, own in claims.items()]
    print(f"\n{tables.table([['the method minus', *metrics], *rows])}\n")


def verdict(lead):
    """How the method compares with another predictor, in words. lead: the claim on its utterance
    LCC minus that of the other."""
    word = evaluate.verdict("utterance LCC", lead["value"], lead["low"], lead["high"])
    return evaluate.WORDS[word]


def in_one_fold(clips):
    """The systems all of whose clips are in the same fold."""
    folds = {}
    for clip, fold in zip(clips, data.folds_of(clips, lab.FOLDS)):
        folds.setdefault(clip.system, set()).add(fold)
    return [name for name, own in folds.items() if len(own) == 1]


def in_words(clips, predicted, claims, ceiling, scale, others):
    """Yields sentences that explain the numbers. clips: the rated ones. claims: as compare() gives
    them. ceiling: as reliability() gives it. others: one of OTHERS, from which was learned."""
    method = predicted[METHOD.name]
    lcc, mse, tau = (method.numbers()[f"utterance {name}"] for name in ("LCC", "MSE", "KTAU"))
    lead = {label: claim["utterance LCC"] for label, claim in claims.items()}
    heard = MEAN.name in lead
    answer = (f"Is it good? By the utterance LCC of {len(clips)} clips the method is "
              f"{verdict(lead[RIDGE.name])} {evaluate.MEANING[evaluate.RIDGE]}")
    if heard:
        answer += (f", and it is {verdict(lead[MEAN.name])} "
                   f"{evaluate.MEANING[evaluate.SYSTEM_MEAN]}")
    yield f"{answer}."
    if not method.interval("utterance LCC")[0] > 0:
        yield "It is not even shown that its scores follow the ratings at all."
    if math.isnan(ceiling):
        yield ("How good can it be? That is not known. To find out, each clip needs several "
               "ratings, and the raters must agree at least a little.")
    else:
        yield (f"How good can it be? Suppose that a second panel, as large as yours, rated the "
               f"same clips. The MOS of the two panels would have an LCC of about "
               f"{tables.number(ceiling)} (estimated from halves of your panel, by the formula of "
               f"Spearman and Brown). That is less than 1 because both MOS are partly chance. The "
               f"scores of a perfect predictor contain no chance, so their LCC with the MOS of "
               f"your panel would be higher: "
               f"{tables.number(math.sqrt(ceiling))}, the square root of "
               f"{tables.number(ceiling)}. The method has {tables.number(lcc)}.")
    yield (f"What does a score mean? On the scale from {scale[0]:g} to {scale[1]:g} it is off by "
           f"{tables.number(math.sqrt(mse))} (root mean square). A predictor that gives every clip "
           f"the mean MOS would be off by {tables.number(np.std(method.true))}. Of two clips "
           "of any systems, the one with the higher MOS gets the higher score in about "
           f"{50 * (1 + tau):.0f} % of cases.")
    if math.sqrt(mse) > np.std(method.true):
        yield ("So the mean MOS would be a better guess than these scores; at most their order "
               "says something.")
    if method.systems() >= evaluate.FEWEST["systems"]:
        system_mse, system_tau = (method.numbers()[f"system {name}"] for name in ("MSE", "KTAU"))
        yield (f"What does the score of a system mean, that is, the mean score of its clips? It is "
               f"off by {tables.number(math.sqrt(system_mse))}. Of two systems, the one with the "
               f"higher MOS gets the higher score in about {50 * (1 + system_tau):.0f} % of cases.")
    reach = lead[RIDGE.name]["high"] - lead[RIDGE.name]["value"]
    left_out = "systems" if method.systems() >= evaluate.FEWEST["systems"] else "clips"
    yield (f"Are there enough {left_out} to compare predictors? A difference in LCC from ridge is "
           f"shown if it is larger than {tables.number(reach)}. To show a difference half as "
           f"large takes about four times as many {left_out}.")
    if HALF in lead:
        helps = "more clips should help" if lead[HALF]["low"] > 0 else (
            "it is not shown that more clips help")
        half = predicted[HALF].numbers()["utterance LCC"]
        yield (f"Are there enough clips to learn from? With half of each system's clips the LCC is "
               f"{tables.number(half)}, with all of them {tables.number(lcc)}: {helps}.")
    yield f"The intervals are {evaluate.parts_of(method.system)[1]}."
    if not heard:
        yield f"Each clip was predicted by models that had learned from other {others} only."
    elif alone := in_one_fold(clips):
        yield (f"Of {method.systems()} systems, {len(alone)} have all their clips in one fold. The "
               "models had learned from no clip of these systems, and no predictor could know "
               "their mean. If your groups are talkers, and each system is a talker, then let the "
               "groups be sentences.")
    else:
        yield ("The models had learned from other clips of each system. Expect less for a system "
               "that nobody has rated; --unheard shows how much.")
    if len(method.predictions) == 1:
        yield ("Everything was trained once. With other seeds the numbers would differ somewhat; "
               "--seeds 5 shows by how much.")
    if others != "systems" and len({clip.group for clip in clips}) == len(clips):
        yield ("No two clips are of one group. If some share a talker or a sentence, all numbers "
               "may be too good, and that cannot be seen here: add a column `group`.")


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Cross-validates the method on your ratings.")
    parser.add_argument("ratings", metavar="RATINGS", help="Name a ratings.csv or its folder.")
    parser.add_argument("--backbone", default="",
                        help="Use this torchaudio bundle, logmel or Python module. The default is "
                        "WAV2VEC2_BASE, or logmel if its weights are missing.")
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 5.0),
                        metavar=("LOW", "HIGH"),
                        help="No rating is below LOW or above HIGH (default: 1 5).")
    parser.add_argument("--max-seconds", type=float, default=60.0,
                        help="Longer clips are refused (default: 60).")
    parser.add_argument("--device", default="", help="Features are extracted on it: cpu, cuda, ...")
    parser.add_argument("--unheard", action="store_true",
                        help="Leave out all clips of a system together, not those of a group.")
    parser.add_argument("--new-groups", action="store_true",
                        help="With --unheard, leave out both: no model has heard the system of a "
                        "clip that it predicts, nor its group.")
    parser.add_argument("--seeds", type=int, default=2, help="Each predictor is trained so often, "
                        "each time with another seed (default: 2).")
    options = parser.parse_args()
    with data.errors_in_one_sentence("studies.crossvalidate"):
        if not 1 <= options.seeds <= 100:
            raise InputError(f"--seeds {options.seeds}: must be at least 1 and at most 100")
        if options.new_groups and not options.unheard:
            raise InputError("--new-groups needs --unheard")
        train.check(train.Config(data=options.ratings, scale=tuple(options.scale),
                                 max_seconds=options.max_seconds))
        clips = data.read_ratings(options.ratings, options.scale)
        data.check_clips(clips, options.max_seconds)
        how = "system" if options.unheard else "groups"
        how += " and groups" if options.new_groups else ""
        rated = [clip for clip in clips if clip.ratings]
        check(options.ratings, rated, how)
        backbone = data.open_backbone(options.backbone, options.device)
        print(*map(data.printable, inventory(options.ratings, clips, how)), sep="\n")
        data.extract_features(clips, backbone)  # on the device; lab.load() finds them in the cache
        table = os.path.abspath(data.table_of(options.ratings))
        predicted = cross_validate(table, backbone.name, options.seeds, how)
        claims = compare(predicted)
        show(predicted, claims)
        ceiling = reliability(raters.ratings_of(lab.load(table, backbone.name)))
        for sentence in in_words(rated, predicted, claims, ceiling, options.scale, OTHERS[how]):
            print(textwrap.fill(sentence, 92, initial_indent="- ", subsequent_indent="  "))


if __name__ == "__main__":
    main()
