"""Experiments: variants of the method, each trained with several seeds on as many corpora (ours).

    python -m studies.experiments NAME --seeds 5 [train.py's options]
    python -m studies.compare runs/NAME/*

trains what is missing under runs/NAME/<variant>/<seed> and evaluates it, one process a core. Seed s
has the simulated corpus 30 + s, in runs/corpora/, unless --data names a corpus: so both vary.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing
import os
import signal
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

FIRST_CORPUS = 30  # seed of the first; nothing was tuned on these


@dataclass(frozen=True)
class Variant:
    name: str
    settings: dict = field(default_factory=dict)  # of train.Config
    panel: str = ""    # of simulated.PANELS, which rates the test clips; "": the corpus's own
    against: str = ""  # the variant that it is compared with; "": the first
    run: Callable = alternatives.run              # trains and evaluates a Config
    options: dict = field(default_factory=dict)   # of run


class Experiment(NamedTuple):
    question: str
    variants: tuple


def with_settings(against="", **settings):
    name = ",".join(f"{key}={value}" for key, value in settings.items())
    return Variant(name, settings, against=against)


def with_raters(kind, panel, against=""):
    return Variant(f"raters={kind},{panel}", {}, panel, against, raters.run, {"kind": kind})


def with_schedule(schedule):
    settings = {"auxiliary": "none"} if schedule == "mos_only" else {}
    return Variant(schedule, settings, options={"schedule": schedule})


DEFAULT = Variant("default")
ONE_EXPERT = {"experts": 1, "auxiliary": "none", "augmentation": "no"}
LOGMELS = ("logmel", "logmel48")
BUNDLES = [name for name, bundle in vars(torchaudio.pipelines).items()
           if isinstance(bundle, torchaudio.pipelines.Wav2Vec2Bundle)
           and not isinstance(bundle, torchaudio.pipelines.Wav2Vec2ASRBundle)]
EXPERIMENTS = {
    "baseline": Experiment(
        "What do experts, second task and clips without MOS add to one expert?",
        (Variant("one expert alone", ONE_EXPERT), DEFAULT)),
    "experts": Experiment(
        "How many experts, and does L_diversity prevent collapse?",  # of one it is constant
        (with_settings(experts=1),
         *(with_settings(experts=number, lambda_1=0.02) for number in (2, 4, 8)),
         *(with_settings(experts=number, lambda_1=0.0, against=f"experts={number},lambda_1=0.02")
           for number in (2, 4, 8)))),
    "raters": Experiment(
        "How much of the utterance-level error is the panel, the noise of the labels, the model?",
        tuple(Variant(f"{panel} panel", panel=panel)
              for panel in ("training", "second", "unbiased"))),
    "adaptation": Experiment(
        "Do biases and gains of raters help, and how many ratings does a new rater need?",
        (*(Variant(f"raters=no,{panel}", panel=panel)
           for panel in ("second", "strict", "unbiased")),
         with_raters("single", "second"),
         with_raters("yes", "second"),
         with_raters("yes", "strict", "raters=no,strict"),
         with_raters("yes", "unbiased", "raters=no,unbiased"))),
    "augmentation": Experiment(
        "Do 400 clips of four more models, without MOS, help?",
        (with_settings(augmentation="no"), DEFAULT)),
    "auxiliary": Experiment(
        "Which second task helps?",
        (Variant("task=none", {"auxiliary": "none"}),
         *(Variant(f"task={task}", options={"task": task}) for task in alternatives.TASKS))),
    "stages": Experiment(
        "Do three stages in this order help?",
        tuple(with_schedule(schedule) for schedule in alternatives.SCHEDULES)),
    "prosody": Experiment(
        "Do pitch, energy and duration add to the fused features?",
        (DEFAULT, Variant("prosody", run=prosody.run))),
    "fusion": Experiment(
        "What does each part of fusion and heads buy?",
        (DEFAULT, *(Variant(part, run=fusion.run, options={"part": part})
                    for part in fusion.PARTS))),
    "frontend": Experiment(
        "Which backbone?", tuple(with_settings(backbone=name) for name in (*LOGMELS, *BUNDLES))),
}


def at_hand(backbone):
    """Whether a backbone can be loaded without a download."""
    if backbone in LOGMELS:
        return True
    file = getattr(torchaudio.pipelines, backbone)._path
    return Path(torch.hub.get_dir(), "checkpoints", file).is_file()


def check(name, seeds, base):
    """Raises InputError for an experiment that cannot be run so."""
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: must be at least 1")
    variants = EXPERIMENTS[name].variants
    varied = {"out", *(setting for variant in variants for setting in variant.settings)}
    for setting in sorted(varied):
        if getattr(base, setting) != getattr(train.Config, setting):
            raise InputError(f"--{setting.replace('_', '-')}: experiment {name} sets it itself; "
                             "leave it out")
    if base.data != train.Config.data and any(variant.panel for variant in variants):
        raise InputError(f"--data {base.data}: experiment {name} has the test clips rated again, "
                         "so it needs the simulated corpora")
    train.check(base)


def folder_of(i, variant):
    return f"{i + 1:02d}_{variant.name}"


def plan_runs(name, seeds, base):
    """-> [(index of the variant, Config of a run)] of an experiment."""
    own_data = base.data != train.Config.data
    planned = []
    for i, variant in enumerate(EXPERIMENTS[name].variants):
        if not at_hand(variant.settings.get("backbone", "logmel")):
            continue
        for seed in range(base.seed, base.seed + seeds):
            corpus = base.data if own_data else f"runs/corpora/{FIRST_CORPUS + seed}"
            table = f"{corpus}/ratings_{variant.panel}.csv" if variant.panel else corpus
            out = f"runs/{name}/{folder_of(i, variant)}/{seed}"
            config = replace(base, **variant.settings, data=table, seed=seed, out=out)
            train.check(config)
            planned.append((i, config))
    return planned


def write_variants(name):
    """variants.csv tells studies.compare of each folder what it is and what it is compared with."""
    variants = EXPERIMENTS[name].variants
    rows = [(folder_of(i, variant), variant.name, variant.against or variants[0].name)
            for i, variant in enumerate(variants)]
    data.write_csv(f"runs/{name}/variants.csv", [("folder", "variant", "against"), *rows])


def run_experiment(name, seeds, base):
    """Trains and evaluates what is missing of an experiment. base: Config of everything that the
    variants leave open. Raises InputError before any work."""
    check(name, seeds, base)
    variants = EXPERIMENTS[name].variants
    if "backbone" not in variants[0].settings:  # here once, so that no two processes download it
        backbone = data.open_backbone(base.backbone, base.device)
        base = replace(base, backbone=backbone.name)
    planned = plan_runs(name, seeds, base)
    there = sum(is_finished(variants[i], config) for i, config in planned)
    print(f"{EXPERIMENTS[name].question} {len(planned)} runs, {there} there already")
    start = time.monotonic()
    write_variants(name)
    with worker_pool(len(planned)) as pool:
        if base.data == train.Config.data:
            corpora = [FIRST_CORPUS + seed for seed in range(base.seed, base.seed + seeds)]
            folders = [f"runs/corpora/{seed}" for seed in corpora]
            list(pool.map(simulated.prepare, folders, corpora))
        print(f"corpora are there after {time.monotonic() - start:.0f} s")
        finished = pool.map(functools.partial(finish_run, name), planned)
        for i, out in enumerate(finished):
            print(f"{i + 1}/{len(planned)} {out}, {time.monotonic() - start:.0f} s")
    print(f"now: python -m studies.compare runs/{name}/*")


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
                         f"delete or rename {Path(config.out).parent.parent}")
    return Path(config.out, "metrics.json").exists()


def finish_run(name, planned):
    """Trains and evaluates a run, unless it is there; returns its folder."""
    torch.set_num_threads(1)
    i, config = planned
    variant = EXPERIMENTS[name].variants[i]
    if not is_finished(variant, config):
        with contextlib.redirect_stdout(io.StringIO()):
            variant.run(config, **variant.options)
    return config.out


def worker_pool(jobs):
    """As many processes as there are cores, or jobs; they end with this one, even if killed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(min(cores, jobs), spawn, initializer=end_with_parent)


def end_with_parent():
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # at once; the parent says why

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains the runs of an experiment into runs/EXPERIMENT/.")
    parser.add_argument("experiment", choices=tuple(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5, help="the first is --seed (default: 5)")
    config, options = train.parse(parser)
    with data.one_sentence("studies.experiments"):
        try:
            run_experiment(options["experiment"], options["seeds"], config)
        except BrokenProcessPool:
            raise InputError("a process was killed, perhaps for lack of memory; start again, what "
                             "is finished stays") from None


if __name__ == "__main__":
    main()
