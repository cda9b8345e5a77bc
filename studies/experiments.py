"""Experiments: variants of the method, each trained with several seeds on as many corpora (ours).

    python -m studies.experiments NAME ...          [train.py's options]; without a NAME all of them
    python -m studies.experiments NAME ... --data PATH --by-talker
    python -m studies.compare --experiment NAME ... [--on FOLDER of runs/experiments]

trains what is missing under runs/experiments/simulated/<variant>/<seed> and evaluates it, one
process a core. Seed s has the simulated corpus 30 + s, in runs/corpora/: both vary. With --data
the runs are under runs/experiments/<its name>, of its own split; or --by-talker under
<its name>_by_talker/<variant>/<seed>/<talker>: each talker, what stands behind the last _ of a
file's name, predicted from the others.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torchaudio

import data
import train
from corpora import simulated
from data import InputError
from studies import alternatives, fusion, prosody, raters

FIRST_CORPUS = 30   # seed of the first; nothing was tuned on these
ROOT = "runs/experiments"
SIMULATED = "simulated"  # where in ROOT the runs on simulated corpora are


@dataclass(frozen=True)
class Variant:
    name: str          # a variant of several experiments has one name and is trained once
    settings: dict = field(default_factory=dict)  # of train.Config
    panel: str = ""    # of simulated.PANELS, which rates the test clips; "": the corpus's own
    against: str = ""  # the variant that it is compared with; "": the first
    run: Callable = alternatives.run              # trains and evaluates a Config
    options: dict = field(default_factory=dict)   # of run


class Experiment(NamedTuple):
    question: str
    variants: tuple
    seeds: int = 20  # 5 where studies.claims, after 5 of each, found that to be enough


def with_settings(against="", **settings):
    name = ",".join(f"{key}={value}" for key, value in settings.items())
    return Variant(name, settings, against=against)


def with_raters(kind, panel, against=""):
    return Variant(f"raters={kind},{panel}", {}, panel, against, raters.run, {"kind": kind})


def with_part(part, name="", **settings):
    return Variant(name or part, settings, run=fusion.run, options={"part": part})


DEFAULT = Variant("default")
NO_TASK = Variant("no second task", {"auxiliary": "none"})
LOGMELS = ("logmel", "logmel48")
BUNDLES = [name for name, bundle in vars(torchaudio.pipelines).items()
           if isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle)
           and not isinstance(bundle, torchaudio.pipelines.Wav2Vec2ASRBundle)]
EXPERIMENTS = {
    "baseline": Experiment(
        "What do experts, second task and clips without MOS add to one expert?",
        (Variant("one expert alone", {"experts": 1, "auxiliary": "none", "augmentation": "no"}),
         DEFAULT)),
    "experts": Experiment(
        "Do four experts help, against one, and against one as wide as all four together?",
        (DEFAULT, with_settings(experts=1), with_part("wide", "one wide expert", experts=1),
         with_settings(experts=2), with_settings(experts=8))),
    "collapse": Experiment(
        "Does L_diversity prevent collapse?",
        (DEFAULT, with_settings(lambda_1=0.0), with_settings(experts=8),
         with_settings(experts=8, lambda_1=0.0, against="experts=8")), 5),
    "raters": Experiment(
        "How much of the utterance-level error is the panel, the noise of the labels, the model?",
        (Variant("training panel", panel="training"), DEFAULT,
         Variant("unbiased panel", panel="unbiased")), 5),
    "adaptation": Experiment(
        "Do biases and gains of raters help, and how many ratings does a new rater need?",
        (DEFAULT, Variant("strict panel", panel="strict"),
         Variant("unbiased panel", panel="unbiased"),
         with_raters("single", "second"),
         with_raters("yes", "second"),
         with_raters("yes", "strict", "strict panel"),
         with_raters("yes", "unbiased", "unbiased panel")), 5),
    "augmentation": Experiment(
        "Do 400 clips of four more models, without MOS, help?",
        (with_settings(augmentation="no"), DEFAULT)),
    "auxiliary": Experiment(
        "Which second task helps?",
        (NO_TASK, DEFAULT, Variant("task: condition", options={"task": "condition"}),
         Variant("task: rate", options={"task": "rate"}))),
    "stages": Experiment(
        "Do three stages in this order help?",
        (DEFAULT, Variant("one joint stage", options={"schedule": "joint_only"}),
         Variant("MOS alone", {"auxiliary": "none"}, options={"schedule": "mos_only"}),
         Variant("stages reversed", options={"schedule": "reversed"}))),
    "prosody": Experiment(
        "Do pitch, energy and duration add to the fused features?",
        (DEFAULT, Variant("prosody", run=prosody.run)), 5),
    "fusion": Experiment(
        "What does each part of fusion and heads buy?",
        (DEFAULT, *(with_part(part) for part in fusion.PARTS if part != "wide"))),
    "frontend": Experiment(
        "Which backbone?",
        (DEFAULT, *(with_settings(backbone=name) for name in ("logmel48", *BUNDLES)))),
}


def at_hand(backbone):
    """Whether a backbone can be loaded without a download."""
    if backbone in LOGMELS:
        return True
    file = getattr(torchaudio.pipelines, backbone)._path
    return Path(torch.hub.get_dir(), "checkpoints", file).is_file()


def rates_anew(name):
    """Whether an experiment needs the simulated corpora, to have their test clips rated again."""
    return any(variant.panel for variant in EXPERIMENTS[name].variants)


def check(name, base, by_talker):
    """Raises InputError for an experiment that cannot be run so."""
    variants = EXPERIMENTS[name].variants
    varied = {"out", *(setting for variant in variants for setting in variant.settings)}
    varied.discard("backbone")  # the others have that of the command line
    for setting in sorted(varied):
        if getattr(base, setting) != getattr(train.Config, setting):
            raise InputError(f"--{setting.replace('_', '-')}: experiment {name} sets it itself; "
                             "leave it out")
    own_data = base.data != train.Config.data
    if own_data and rates_anew(name):
        raise InputError(f"--data {base.data}: experiment {name} has the test clips rated again, "
                         "so it needs the simulated corpora")
    if by_talker and not own_data:
        raise InputError("--by-talker is of a corpus of one's own; name it with --data")
    train.check(base)


# -- Which runs ------------------------------------------------------------------------------------

def root_of(base, by_talker):
    """The folder of the runs."""
    if base.data == train.Config.data:
        return f"{ROOT}/{SIMULATED}"
    name = name_of(base.data)
    return f"{ROOT}/{name}_by_talker" if by_talker else f"{ROOT}/{name}"


def name_of(corpus):
    """The name of a corpus's folder."""
    path = Path(corpus).resolve()
    return path.parent.name if path.is_file() else path.name


def plan_runs(name, seeds, base, talkers=()):
    """-> [(Variant, Config of a run)] of an experiment. talkers: of write_folds."""
    root = root_of(base, bool(talkers))
    planned = []
    for variant in EXPERIMENTS[name].variants:
        if not at_hand(variant.settings.get("backbone", "logmel")):
            continue
        for seed in range(base.seed, base.seed + seeds):
            run = f"{root}/{variant.name}/{seed}"
            tables = {run: table_of(base, variant, seed)}
            if talkers:
                tables = {f"{run}/{talker}": f"{root}/folds/{talker}" for talker in talkers}
            for out, table in tables.items():
                config = replace(base, **variant.settings, data=table, seed=seed, out=out)
                train.check(config)
                planned.append((variant, config))
    return planned


def table_of(base, variant, seed):
    if base.data != train.Config.data:
        return base.data
    corpus = f"runs/corpora/{FIRST_CORPUS + seed}"
    return f"{corpus}/ratings_{variant.panel}.csv" if variant.panel else corpus


def group_of(clip):
    """The sentence or talker of a clip: what stands behind the last _ of its file's name."""
    return clip.path.stem.rpartition("_")[2]


def groups_of(clips, corpus):
    """The groups of clips, sorted. Raises InputError for fewer than three: one is predicted from
    the others, and ridge needs two of those."""
    names = sorted({group_of(clip) for clip in clips})
    if len(names) < 3:
        raise InputError(f"{corpus}: fewer than three sentences or talkers, what stands behind the "
                         "last _ of a file's name")
    return names


def write_folds(base):
    """Of each talker a table whose test clips are his rated ones, whatever their split, and those
    of all others are for training; none of split dev -> the talkers. Raises InputError for fewer
    than three."""
    clips = [clip for clip in data.read_manifest(base.data, base.scale) if clip.split != "dev"]
    talkers = groups_of([clip for clip in clips if clip.ratings], base.data)
    for talker in talkers:
        folder = Path(root_of(base, True), "folds", talker).resolve()
        rows = []
        for clip in clips:
            own = group_of(clip) == talker
            if own and not clip.ratings:
                continue
            wav = os.path.relpath(clip.path.resolve(), folder)
            for rater, score in (clip.ratings or {"": ""}).items():
                split = "test" if own else "train"
                rows.append((wav, split, clip.system, clip.model, rater, score))
        data.write_csv(folder / "ratings.csv", [data.HEADER, *rows])
    print(f"{base.data}: {len(talkers)} talkers, {', '.join(talkers):.60}")
    return talkers


# -- Running them ----------------------------------------------------------------------------------

def run_experiments(names, seeds, base, by_talker=False):
    """Trains and evaluates what is missing of experiments. base: Config of everything that the
    variants leave open; seeds: 0 for each experiment's own. Raises InputError before any work."""
    if seeds < 0:
        raise InputError(f"--seeds {seeds}: must be at least 1, or 0 for each experiment's own")
    for name in names:
        check(name, base, by_talker)
    backbone = data.open_backbone(base.backbone, base.device)  # here once: no two download it
    base = replace(base, backbone=backbone.name)
    talkers = write_folds(base) if by_talker else ()
    jobs = {}  # a run of several experiments is one
    for name in names:
        planned = plan_runs(name, seeds or EXPERIMENTS[name].seeds, base, talkers)
        jobs |= {config.out: (variant, config) for variant, config in planned}
    there = sum(is_finished(*job) for job in jobs.values())
    print(f"{', '.join(names)}: {len(jobs)} runs, {there} there already")
    start = time.monotonic()
    with worker_pool(len(jobs)) as pool:
        if base.data == train.Config.data:
            corpora = sorted({FIRST_CORPUS + config.seed for _, config in jobs.values()})
            folders = [f"runs/corpora/{seed}" for seed in corpora]
            list(pool.map(simulated.prepare, folders, corpora))
            print(f"corpora are there after {time.monotonic() - start:.0f} s", flush=True)
        for i, out in enumerate(pool.map(finish_run, jobs.values())):
            print(f"{i + 1}/{len(jobs)} {out}, {time.monotonic() - start:.0f} s", flush=True)
    on = Path(root_of(base, by_talker)).name
    print(f"now: python -m studies.compare --on {on} --experiment {' '.join(names)}")


def is_finished(variant, config):
    """Whether the run is there, evaluated. Raises InputError for one with other settings."""
    try:
        checkpoint = torch.load(Path(config.out, "model.pt"), weights_only=True)  # written last
    except Exception:  # noqa: BLE001 - missing or damaged: to be trained
        return False
    stages = alternatives.SCHEDULES[variant.options.get("schedule", "three")]
    stages = [stage._asdict() for stage in train.stages_to_run(stages, config)]
    there = checkpoint["config"] | {"out": config.out, "stages": checkpoint["stages"]}
    wanted = asdict(config) | {"stages": stages}
    differing = sorted(name for name in wanted if there.get(name) != wanted[name])
    if differing:
        raise InputError(f"{config.out} holds a run with other settings ({', '.join(differing)}); "
                         "delete or rename it")
    return Path(config.out, "metrics.json").exists()


def finish_run(job):
    """Trains and evaluates a (Variant, Config), unless it is there; returns its folder."""
    torch.set_num_threads(1)
    variant, config = job
    if not is_finished(variant, config):
        with contextlib.redirect_stdout(io.StringIO()):
            variant.run(config, **variant.options)
    return config.out


@contextlib.contextmanager
def worker_pool(jobs):
    """As many processes as there are cores, or jobs; they end with this one, even if killed. Raises
    InputError where one of them is killed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(cores, jobs), spawn, initializer=end_with_parent) as pool:
            yield pool
    except BrokenProcessPool:
        raise InputError("a process was killed, perhaps for lack of memory; start again, what is "
                         "finished stays") from None


def followed(results, jobs):
    """The results of a pool's map, as they come; on a terminal they are counted."""
    for i, result in enumerate(results):
        if sys.stderr.isatty():
            print(f"\r{i + 1}/{jobs} ", end="\n" * (i + 1 == jobs), file=sys.stderr, flush=True)
        yield result


def end_with_parent():
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # at once; the parent says why

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains the runs of experiments into runs/experiments/.")
    parser.add_argument("experiments", nargs="*", metavar="NAME", default=[],
                        help=f"of {', '.join(EXPERIMENTS)}; none: all")
    parser.add_argument("--seeds", type=int, default=0,
                        help="the first is --seed (default: 0, each experiment's own number)")
    parser.add_argument("--by-talker", action="store_true",
                        help="of --data, each talker predicted from the others")
    config, options = train.parse(parser)
    with data.one_sentence("studies.experiments"):
        names = known(options["experiments"])
        own_data = config.data != train.Config.data
        names = names or [name for name in EXPERIMENTS if not (own_data and rates_anew(name))]
        run_experiments(names, options["seeds"], config, options["by_talker"])


def known(names):
    """The names, if they are of EXPERIMENTS. Raises InputError."""
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"{name}: there is no such experiment; there are "
                             f"{', '.join(EXPERIMENTS)}")
    return names


if __name__ == "__main__":
    main()
