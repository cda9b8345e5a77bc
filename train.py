"""Training: arXiv 2507.06116 section III.E, three stages over features of a frozen backbone.

    python train.py                                simulates a corpus if there is none, trains, writes runs/default/
    python train.py --data DIR --out runs/mine     clips and ratings of your own
    python train.py --help                         every setting and where it comes from

Letters of dimensions: see moemos.py. A constant is the paper's where its section is named, else "ours".
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import moemos  # first: it says what is wrong where torch and torchaudio are no pair

# isort: split
import torch

import data
from moemos import InputError


class Stage(NamedTuple):
    name: str
    epochs: int          # ours: the paper gives none
    lr: float            # peak; annealed to 0 within the stage by a cosine
    alpha_start: float   # weight of the MOS loss, moving linearly over the stage; beta = 1 - alpha
    alpha_end: float


STAGES = (  # III.E
    Stage("classification", 60, 1e-4, 0.0, 0.0),  # lr: paper
    Stage("joint", 60, 3e-3, 0.3, 0.7),           # alpha: paper; lr ours: chosen (see Config), as are the epochs of stages 1 and 2
    Stage("mos", 20, 1e-5, 0.9, 0.9),             # lr, alpha: paper
)
SCHEDULES = {  # the others are ours, for comparison, with as many epochs in all
    "three": STAGES,
    "joint_only": (Stage("joint", 140, 3e-3, 0.3, 0.7),),
    "mos_only": (Stage("mos", 140, 3e-3, 1.0, 1.0),),
    "reversed": tuple(stage._replace(alpha_start=stage.alpha_end, alpha_end=stage.alpha_start) for stage in reversed(STAGES)),
}
CLIP_NORM = 1.0  # III.E, gradient clipping
RESULTS = ("metrics.json", "predictions.csv", "raters.csv", "answer.txt",  # what evaluate.py writes into a run
           "predictions.png", "experts.png", "training.png", "raters.png")
LABELS = {  # what the second task predicts of a clip
    "model": lambda clip: clip.model,       # III.C
    "condition": lambda clip: clip.system,  # ours, as is the next
    "rate": lambda clip: f"{clip.rate} Hz",
    "none": lambda clip: clip.model,        # its head stays untrained
}


def option(default, help, choices=None, least=None, below=math.inf):
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "below": below})


@dataclass(frozen=True)
class Config:
    """Every setting besides STAGES; each is an option of the command line, with - for _. "chosen": by cross-validation over the
    sentences of training clips of simulated corpora; the experiment named with it shows what other values change."""
    data: str = option("corpus", "ratings.csv or the folder of a corpus; the default one is simulated where it is missing")
    augment: str = option("", "folder of more clips without MOS, a subfolder a synthesis model (III.D)")
    scale: tuple = option((1.0, 5.0), "lowest and highest rating")
    max_seconds: float = option(60.0, "longer clips are refused: the backbone's memory grows with the square of the length", least=0)
    backbone: str = option("", "a torchaudio bundle or logmel; not given: WAV2VEC2_BASE if it can be had, else logmel")
    precision: str = option("float32", "of the backbone", choices=("float32", "bfloat16"))
    out: str = option("runs/default", "folder of the run")
    cache: str = option("cache", "folder of the features")
    device: str = option("", "cpu, cuda, ...; not given: the accelerator if there is one")
    seed: int = option(0, "of everything that is random in training", least=0, below=2 ** 63)
    experts: int = option(4, "N of III.B; ours: chosen (others: experiment experts)", least=1, below=100)
    hidden: int = option(64, "width H of an expert; ours: chosen (others: experiment choices)", least=1, below=2000)
    dropout: float = option(0.5, "on the fused features and inside the experts; ours: chosen (others: experiment choices)", least=0, below=1)
    auxiliary: str = option("model", "what the second task classifies: the synthesis model (III.C), or others of ours",
                            choices=tuple(LABELS))
    augmentation: str = option("yes", "train on clips without MOS too (III.D)", choices=("yes", "no"))
    batch_size: int = option(32, "ours: the usual", least=1, below=10 ** 6)
    weight_decay: float = option(0.01, "of AdamW; ours: its default", least=0)
    lambda_1: float = option(0.02, "weight of diversity (III.B); ours: chosen (others: experiment experts)", least=0)
    lambda_2: float = option(0.02, "weight of sparsity (III.B); ours: chosen (others: experiment choices)", least=0)
    smooth_l1_beta: float = option(1.0, "where smooth L1 turns linear, in quarters of the scale; ours: its default", least=0)
    epochs: int = option(0, "of each stage, for quick trials; 0: those of the schedule", least=0)
    schedule: str = option("three", "stages: the paper's three (III.E), or one of ours to compare them with", choices=tuple(SCHEDULES))
    prosody: str = option("no", "join pitch, energy and duration to the fused features (future work of IV)", choices=("yes", "no"))
    raters: str = option("no", "yes: learn from single ratings, with a bias and a gain of each rater (future work of IV); "
                         "single: with bias 0 and gain 1; no: from a clip's mean",
                         choices=("yes", "single", "no"))


EXTENSIONS = ("schedule", "prosody", "raters")  # beyond the paper; a checkpoint has them only where they are used


def flag(name):
    return "--" + name.replace("_", "-")


def check(config):
    """Raises InputError for a setting that cannot work."""
    for setting in fields(Config):
        value, (_, choices, least, below) = getattr(config, setting.name), setting.metadata.values()
        wanted, fits = setting.type.__name__, isinstance(value, (float, int) if setting.type is float else setting.type)
        if choices:
            wanted, fits = f"one of {', '.join(choices)}", value in choices
        elif fits and least is not None:
            wanted, fits = f"at least {least} and below {below}", least <= value < below
        if not fits:
            raise InputError(f"{flag(setting.name)} {value}: must be {wanted}")
    if not -1e6 <= config.scale[0] < config.scale[1] <= 1e6:
        raise InputError(f"--scale {config.scale[0]} {config.scale[1]}: must be two numbers, the lower first, of a million at most")
    if config.backbone:
        moemos.check_backbone(config.backbone)
    if not (config.data and config.out and config.cache):
        raise InputError("--data, --out and --cache must not be empty")


def learning_rate(step, steps, peak):
    """Cosine annealing (III.E): peak at step 0, 0 at step == steps. Of the step alone, so no optimiser remembers it."""
    return 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def alpha(step, steps, start, end):
    """Weight of the MOS loss: start at step 0, end at the last step, linear between (the shape is ours)."""
    return start + (end - start) * min(step / max(steps - 1, 1), 1.0)


class Clips(NamedTuple):
    inputs: tuple          # features (clips, L, 2D), and with --prosody yes also prosody (clips, 1, P)
    ratings: torch.Tensor  # (clips, R), NaN where a rater has none, with --raters yes or single; else the MOS
    mos: torch.Tensor      # (clips,), NaN without MOS
    model: torch.Tensor    # (clips,) index of its class

    def take(self, rows):
        """The same of some clips."""
        return Clips(tuple(part[rows] for part in self.inputs), *(part[rows] for part in self[1:]))


SCREEN = {  # column of log.csv: heading, width and format on the screen
    "epoch": ("epoch", 5, "d"), "lr": ("lr", 7, ".1e"), "alpha": ("alpha", 5, ".2f"), "total": ("total", 5, ".2f"),
    "mos": ("mos", 5, ".3f"), "classification": ("class", 5, ".2f"), "diversity": ("div", 4, ".2f"), "sparsity": ("spar", 4, ".2f"),
    "grad_norm": ("norm", 4, ".1f"), "gate_entropy": ("H(g)", 4, ".2f"), "mean_gate_entropy": ("H(p)", 4, ".2f"),
    "val_mse": ("vMSE", 5, ".3f"), "val_lcc": ("vLCC", 5, ".3f"), "val_srcc": ("vSRCC", 5, ".3f"), "val_accuracy": ("vacc", 4, ".2f"),
}


def weighted_losses(config, mos_weight, output, ratings, model, unit):
    """moemos.losses with a configuration's weights; beta = 1 - alpha (III.E), or 0 without second task."""
    beta = 1 - mos_weight if config.auxiliary != "none" else 0.0
    return moemos.losses(output, ratings, model, alpha=mos_weight, beta=beta, lambda_1=config.lambda_1, lambda_2=config.lambda_2,
                         smooth_l1_beta=config.smooth_l1_beta, unit=unit)


def teaches(stage, config):
    """Whether a stage has a loss of MOS, and whether it has one of the second task."""
    weights = stage.alpha_start, stage.alpha_end
    return max(weights) > 0, min(weights) < 1 and config.auxiliary != "none"


def run_stage(model, stage, config, clips, validation):
    """Trains model on clips for one stage; yields a row of log.csv after each epoch, as a dict. Terms are means over its batches.

    Raises FloatingPointError, saying where, for a loss that is not finite.
    """
    mos, second_task = teaches(stage, config)
    model.mos_head.requires_grad_(mos)  # a gradient of 0 would not keep weight decay off it
    model.raters.requires_grad_(mos and config.raters == "yes")
    model.class_head.requires_grad_(second_task)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=config.weight_decay)
    batches = math.ceil(len(clips.mos) / config.batch_size)
    for epoch in range(stage.epochs):
        model.train()
        sums, gates = {}, []
        for i, rows in enumerate(torch.randperm(len(clips.mos)).to(clips.mos.device).split(config.batch_size)):
            step, steps = epoch * batches + i, stage.epochs * batches
            lr = learning_rate(step, steps, stage.lr)
            mos_weight = alpha(step, steps, stage.alpha_start, stage.alpha_end)
            optimiser.param_groups[0]["lr"] = lr

            batch = clips.take(rows)
            output = model(*batch.inputs)
            terms = weighted_losses(config, mos_weight, output, batch.ratings, batch.model, model.unit)
            model.zero_grad()
            terms["total"].backward()
            terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)  # the one before clipping
            if not (terms["total"] + terms["grad_norm"]).isfinite():
                raise FloatingPointError(f"the loss or its gradient is not finite in stage {stage.name}, epoch {epoch + 1}, "
                                         f"step {i + 1}: " + ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items()))
            optimiser.step()

            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item()
            gates.append(output.gates.detach())
        gates = torch.cat(gates)
        entropy, mean_entropy = moemos.gate_entropies(gates)
        yield {"stage": stage.name, "epoch": epoch + 1, "lr": lr, "alpha": mos_weight,
               **{name: total / batches for name, total in sums.items()},
               "gate_entropy": entropy.item(), "mean_gate_entropy": mean_entropy.item(),
               **{f"gate_{e + 1}": use for e, use in enumerate(gates.mean(0).tolist())}, **validate(model, validation)}


@torch.no_grad()
def validate(model, clips):
    """What log.csv says of the held-out clips."""
    model.eval()
    outputs = [model(*part) for part in zip(*(tensor.split(256) for tensor in clips.inputs))]
    predicted, mos = torch.cat([output.mos for output in outputs]).cpu(), clips.mos.cpu()
    hits = torch.cat([output.logits.argmax(1) for output in outputs]) == clips.model
    rated = ~mos.isnan()
    return {"val_mse": moemos.mse(predicted[rated], mos[rated]), "val_lcc": moemos.lcc(predicted[rated], mos[rated]),
            "val_srcc": moemos.srcc(predicted[rated], mos[rated]), "val_accuracy": hits.float().mean().item()}


def default_backbone(device, precision="float32"):
    """The paper's bundle, or with a warning that cannot be missed the stand-in, where no --backbone is given."""
    try:
        return moemos.load_backbone(moemos.PAPER_BACKBONE, device, precision)
    except moemos.WeightsUnavailable as error:
        line = "!" * 100
        print(f"{line}\nWARNING: {error}.\nUsing logmel, a stand-in that hears spectra only: "
              f"the results are NOT those of the paper's method.\n{line}", file=sys.stderr)
        return moemos.load_backbone("logmel", device, precision)


def processes():
    """(rank, number) of this process among those of torchrun, (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))  # ranks may be hours apart
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def extract_in_shares(clips, backbone, cache):
    """data.extract_features; of torchrun's processes each extracts its share, rank 0 returns all and the others None."""
    rank, ranks = processes()
    if ranks > 1:
        data.extract_features(clips[rank::ranks], backbone, cache)
        torch.distributed.barrier()
    return data.extract_features(clips, backbone, cache) if rank == 0 else None


def extractors(backbone, config):
    """The backbones whose features are the model's inputs, in order."""
    return [backbone, moemos.load_backbone("prosody", backbone.device)] if config.prosody == "yes" else [backbone]


def build(config, layers, width, classes, raters):
    """The untrained model of a configuration; layers and width are the backbone's."""
    return moemos.MoEMOS(layers, width, len(classes), config.experts, config.hidden, config.dropout, config.scale,
                         prosody=2 * moemos.Prosody.tracks * (config.prosody == "yes"), raters=len(raters) * (config.raters != "no"))


def stages_of(config):
    """The stages that a run goes through: those of its schedule, less those that have nothing to learn without second task."""
    return [stage._replace(epochs=config.epochs or stage.epochs) for stage in SCHEDULES[config.schedule]
            if any(teaches(stage, config))]


def recorded(config):
    """The settings that a checkpoint has."""
    return {name: value for name, value in asdict(config).items()
            if name not in ("out", "cache") and (name not in EXTENSIONS or value != getattr(Config, name))}


def training_clips(config):
    """-> (clips to train on in an order drawn by the seed, how many of the first are held out). Raises InputError."""
    rank, ranks = processes()
    if rank == 0 and config.data == Config.data and not Path(config.data).exists():
        print(f"{config.data}/ is missing: simulating it (python data.py --out {config.data})")
        data.simulate(config.data, 0)
    if ranks > 1:
        torch.distributed.barrier()
    clips = data.read_corpus(config.data, config.augment, config.scale, config.max_seconds, say=rank == 0)
    clips = [clip for clip in clips if clip.split == "train" and (clip.ratings or config.augmentation == "yes")]
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(config.seed)).tolist()
    clips = [clips[i] for i in order]  # before extraction: what follows are views, no copies
    held_out = max(len(clips) // 10, 1)  # ours
    if sum(bool(clip.ratings) for clip in clips[held_out:]) < 2:
        raise InputError(f"{config.data}: fewer than two training clips with ratings, a tenth being held out")
    return clips, held_out


def as_tensors(config, clips, inputs, device):
    """-> (Clips on the device, names of the classes, names of the raters)."""
    label = LABELS[config.auxiliary]
    classes, raters = sorted({label(clip) for clip in clips}), sorted({rater for clip in clips for rater in clip.ratings})
    mos = ratings = torch.tensor([clip.mos for clip in clips])
    if config.raters != "no":
        ratings = torch.tensor([[clip.ratings.get(rater, math.nan) for rater in raters] for clip in clips])
    model = torch.tensor([classes.index(label(clip)) for clip in clips])
    return Clips(tuple(part.to(device) for part in inputs), ratings.to(device), mos.to(device), model.to(device)), classes, raters


def show_epoch(row):
    """Prints a row of log.csv, below a heading where a stage begins."""
    if row["epoch"] == 1:
        print(f"stage {row['stage']}\n" + " ".join(f"{name:>{width}}" for name, width, _ in SCREEN.values()) + "  gates %")
    print(" ".join(f"{row[column]:{width}{form}}" for column, (_, width, form) in SCREEN.items()), "",
          *(f"{100 * use:2.0f}" for name, use in row.items() if re.fullmatch(r"gate_\d+", name)))


def train(config):
    """Trains as config says and writes model.pt, config.json and log.csv into config.out; returns the model.

    Under torchrun each process extracts its share of the features, and rank 0 alone goes on; the others return None.
    Raises InputError for whatever cannot be used, before any work that it would spoil.
    """
    check(config)
    device = moemos.pick_device(config.device)
    data.check_writable(config.out, config.cache)
    clips, held_out = training_clips(config)
    backbone = (moemos.load_backbone(config.backbone, device, config.precision) if config.backbone
                else default_backbone(device, config.precision))
    config = replace(config, backbone=backbone.name)
    inputs = [extract_in_shares(clips, extractor, config.cache) for extractor in extractors(backbone, config)]
    if inputs[0] is None:
        return None

    everything, classes, raters = as_tensors(config, clips, inputs, device)
    validation, training = everything.take(slice(held_out)), everything.take(slice(held_out, None))
    torch.manual_seed(config.seed)
    model = build(config, backbone.layers, backbone.width, classes, raters)
    model.fusion.set_statistics(inputs[0][held_out:])
    if model.prosody:
        model.prosody.set_statistics([inputs[1][held_out:]])
    model.to(device)

    rated = [int((~part.mos.isnan()).sum()) for part in (training, validation)]
    print(f"{len(training.mos)} clips to train on, {rated[0]} with MOS; {held_out} held out, {rated[1]} with MOS; "
          f"{len(classes)} classes; backbone {backbone.name} on {device}")
    rows = []
    for stage in stages_of(config):
        for row in run_stage(model, stage, config, training, validation):
            show_epoch(row)
            rows.append(row)
    if config.raters != "no":
        with torch.no_grad():
            errors = model.eval()(*validation.inputs).ratings - validation.ratings
            model.raters.noise.fill_(errors.square().nanmean().nan_to_num(model.unit ** 2))
    write_run(config, model, classes, raters, backbone, rows)
    return model


def write_run(config, model, classes, raters, backbone, rows):
    """Writes log.csv, config.json and, last, model.pt: the head, as plain tensors and values."""
    out = Path(config.out)
    for name in RESULTS if (out / "model.pt").exists() else ():  # of the model that was there
        (out / name).unlink(missing_ok=True)
    data.write_csv(out / "log.csv", [rows[0].keys(), *(row.values() for row in rows)])
    data.write_atomically(out / "config.json", (json.dumps(asdict(config), indent=2) + "\n").encode())
    checkpoint = io.BytesIO()  # saved by name, the file would hold that name
    torch.save({"weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
                "config": recorded(config), "stages": [stage._asdict() for stage in stages_of(config)], "classes": classes,
                **({"raters": raters} if config.raters != "no" else {}),
                "backbone": {name: getattr(backbone, name) for name in ("name", "identity", "layers", "width")}},
               checkpoint)
    data.write_atomically(out / "model.pt", checkpoint.getvalue())
    print(f"wrote {out}/model.pt, config.json, log.csv")


# ---------------------------------------------------------------------------------------------------------
# Experiments (ours): variants of a configuration, each trained with several seeds on as many corpora

class Experiment(NamedTuple):
    question: str
    variants: tuple  # of changes to Config; each is compared with the first that has one setting other. data: one of data.PANELS


EXPERIMENTS = {
    "baseline": Experiment("What do experts, second task and clips without MOS add to one expert?",
                           ({"experts": 1, "auxiliary": "none", "augmentation": "no"}, {})),
    "experts": Experiment("How many experts, and does L_diversity prevent collapse?",  # with one expert it is constant
                          ({"experts": 1}, *({"experts": n, "lambda_1": weight} for weight in (0.02, 0.0) for n in (2, 4, 8)))),
    "raters": Experiment("How much of the utterance-level error is the panel, the noise of the labels, the model?",
                         ({"data": "training"}, {"data": "second"}, {"data": "unbiased"})),
    "adaptation": Experiment("Do biases and gains of raters help, and how many ratings does a new rater need?",
                             tuple({"data": panel, "raters": raters} for raters in ("no", "single", "yes")
                                   for panel in ("second", "strict", "unbiased") if raters != "single" or panel == "second")),
    "augmentation": Experiment("Do 400 clips of four more models, without MOS, help?", ({"augmentation": "no"}, {})),
    "auxiliary": Experiment("Which second task helps?",
                            ({"auxiliary": "none"}, {}, {"auxiliary": "condition"}, {"auxiliary": "rate"})),
    "stages": Experiment("Do three stages in this order help?", ({}, *({"schedule": name} for name in SCHEDULES if name != "three"))),
    "prosody": Experiment("Do pitch, energy and duration add to the fused features?", ({}, {"prosody": "yes"})),
    "choices": Experiment("What do the other choices of ours change?",
                          ({}, {"hidden": 128}, {"batch_size": 64}, {"smooth_l1_beta": 0.5}, {"weight_decay": 0.1},
                           {"dropout": 0.2}, {"lambda_2": 0.0})),
    "frontend": Experiment("Which backbone?", tuple({"backbone": name} for name in ("logmel", *moemos.bundles()))),
}
FIRST_CORPUS = 30  # training seed s has corpus seed 30 + s; nothing was tuned on these


def run_experiment(name, seeds, base):
    """Trains what is missing of an experiment's runs, each into runs/NAME/<variant>_seed<s>, one process a core, of one thread
    each. base: Config of everything that the variants leave open. Raises InputError before any work."""
    experiment, own_data = EXPERIMENTS[name], base.data != Config.data
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: must be at least 1")
    if "RANK" in os.environ:
        raise InputError("--experiment starts processes of its own; run it without torchrun")
    for setting in {"out", *(key for changes in experiment.variants for key in changes)} - {"data"}:
        if getattr(base, setting) != getattr(Config, setting):
            raise InputError(f"{flag(setting)}: experiment {name} sets it itself; leave it out")
    if own_data and any("data" in changes for changes in experiment.variants):
        raise InputError(f"--data {base.data}: experiment {name} has test clips rated again, so it needs the simulated corpora")
    check(base)
    if "backbone" not in experiment.variants[0]:  # loaded here once, so that no two processes download it
        base = replace(base, backbone=(moemos.load_backbone(base.backbone) if base.backbone else default_backbone("cpu")).name)
    jobs = []
    for i, changes in enumerate(experiment.variants):
        if not moemos.at_hand(changes.get("backbone", "logmel")):
            continue
        label = ",".join(f"{key}={value}" for key, value in changes.items()) or "default"
        for seed in range(base.seed, base.seed + seeds):
            corpus = base.data if own_data else f"corpora/{FIRST_CORPUS + seed}"
            ratings = {"data": f"{corpus}/ratings_{changes['data']}.csv" if "data" in changes else corpus}
            jobs.append(replace(base, **changes | ratings, seed=seed, out=f"runs/{name}/{i + 1:02d}_{label}_seed{seed}"))
            check(jobs[-1])
    print(f"{experiment.question} {len(jobs)} runs, {sum(map(is_trained, jobs))} there already")
    start = time.monotonic()
    with worker_pool(len(jobs)) as pool:
        if not own_data:
            corpora = [FIRST_CORPUS + seed for seed in range(base.seed, base.seed + seeds)]
            list(pool.map(data.prepare, [f"corpora/{seed}" for seed in corpora], corpora))
        print(f"corpora are there after {time.monotonic() - start:.0f} s")
        for i, job in enumerate(pool.map(train_if_missing, jobs)):
            print(f"{i + 1}/{len(jobs)} {job}, {time.monotonic() - start:.0f} s")
    print(f"now: python evaluate.py runs/{name}/*")


def worker_pool(jobs):
    """As many processes as there are cores, or jobs; they end with this one, even if it is killed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(min(cores, jobs), multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent():
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))  # at once; the parent says what there is to say
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def is_trained(config):
    """Whether the run is there. Raises InputError for one with other settings."""
    try:
        checkpoint = torch.load(Path(config.out, "model.pt"), weights_only=True)  # written last
        there, wanted = (parts | {"STAGES": stages} for parts, stages in (
            (checkpoint["config"], checkpoint["stages"]), (recorded(config), [stage._asdict() for stage in stages_of(config)])))
    except Exception:  # noqa: BLE001 - missing or damaged: to be trained
        return False
    if there != wanted:
        names = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
        raise InputError(f"{config.out} holds a run with other settings ({', '.join(names)}); "
                         f"delete or rename {Path(config.out).parent}")
    return True


def train_if_missing(config):
    """Trains a run, unless it is there; returns its folder."""
    torch.set_num_threads(1)
    if not is_trained(config):
        with contextlib.redirect_stdout(io.StringIO()):
            train(config)
    return config.out


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Trains the speech quality predictor of arXiv 2507.06116.")
    for setting in fields(Config):
        kind = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")} if setting.type is tuple else {"type": setting.type}
        parser.add_argument(flag(setting.name), **kind, default=setting.default, choices=setting.metadata["choices"],
                            help=f"{setting.metadata['help']} (default: {setting.default!r})")
    parser.add_argument("--experiment", choices=tuple(EXPERIMENTS), help="train the runs of an experiment, into runs/EXPERIMENT/")
    parser.add_argument("--seeds", type=int, help="of an experiment; the first is --seed (default: 5)")
    arguments = vars(parser.parse_args())
    experiment, seeds = arguments.pop("experiment"), arguments.pop("seeds")
    config = Config(**arguments | {"scale": tuple(arguments["scale"])})
    with moemos.one_sentence("train.py"):
        if experiment:
            run_experiment(experiment, 5 if seeds is None else seeds, config)
        elif seeds is not None:
            raise InputError("--seeds goes with --experiment; --seed sets the seed of one run")
        else:
            train(config)


if __name__ == "__main__":
    main()
