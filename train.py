"""Training: arXiv 2507.06116 section III.E, three stages over features of a frozen backbone.

    python train.py                                simulates a corpus if there is none, trains, writes runs/default/
    python train.py --data DIR --out runs/mine     clips and ratings of your own
    python train.py --help                         every setting and where it comes from

Letters of dimensions: see moemos.py. A constant is the paper's where its section is named, else "ours".
"""

import argparse
import io
import json
import math
import os
import sys
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
    Stage("joint", 60, 3e-3, 0.3, 0.7),           # alpha: paper; lr ours: validated, as Config says, and so are the epochs of these two
    Stage("mos", 20, 1e-5, 0.9, 0.9),             # lr, alpha: paper
)
CLIP_NORM = 1.0  # III.E, gradient clipping


def option(default, help, choices=None, least=None, below=math.inf):
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "below": below})


@dataclass(frozen=True)
class Config:
    """Every setting besides STAGES; each is an option of the command line, with - for _. "validated": within 0.005 of
    the best LCC tried, in cross-validation over the sentences of training clips."""
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
    experts: int = option(4, "N of III.B; ours: validated against 8", least=1, below=1000)
    hidden: int = option(64, "width H of an expert; ours: validated against 32", least=1, below=10000)
    dropout: float = option(0.5, "on the fused features and inside the experts; ours: validated", least=0, below=1)
    auxiliary: str = option("model", "the second task: the synthesis model (III.C), or none", choices=("model", "none"))
    augmentation: str = option("yes", "train on clips without MOS too (III.D)", choices=("yes", "no"))
    batch_size: int = option(32, "ours: the usual", least=1)
    weight_decay: float = option(0.01, "of AdamW; ours: its default", least=0)
    lambda_1: float = option(0.02, "weight of diversity (III.B); ours: validated, 0.15 was slightly worse", least=0)
    lambda_2: float = option(0.02, "weight of sparsity (III.B); ours: validated, 0.15 was slightly worse", least=0)
    smooth_l1_beta: float = option(1.0, "where smooth L1 turns linear, in quarters of the scale; ours: its default", least=0)
    epochs: int = option(0, "of each stage, for quick trials; 0: those of STAGES", least=0)


def flag(name):
    return "--" + name.replace("_", "-")


def check(config):
    """Raises InputError for a setting that cannot work."""
    if not -math.inf < config.scale[0] < config.scale[1] < math.inf:
        raise InputError(f"--scale {config.scale[0]} {config.scale[1]}: must be two numbers, the lower first")
    for setting in fields(Config):
        value, (_, choices, least, below) = getattr(config, setting.name), setting.metadata.values()
        if (least is not None and not least <= value < below) or (choices and value not in choices):
            wanted = f"one of {', '.join(choices)}" if choices else f"at least {least}" + f" and below {below}" * (below < math.inf)
            raise InputError(f"{flag(setting.name)} {value}: must be {wanted}")
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
    features: torch.Tensor  # (clips, L, 2D)
    mos: torch.Tensor       # (clips,), NaN without MOS
    model: torch.Tensor     # (clips,) index of its class


SCREEN = {  # column of log.csv: heading, width and format on the screen
    "epoch": ("epoch", 5, "d"), "lr": ("lr", 7, ".1e"), "alpha": ("alpha", 5, ".2f"), "total": ("total", 5, ".2f"),
    "mos": ("mos", 5, ".3f"), "classification": ("class", 5, ".2f"), "diversity": ("div", 4, ".2f"), "sparsity": ("spar", 4, ".2f"),
    "grad_norm": ("norm", 4, ".1f"), "gate_entropy": ("H(g)", 4, ".2f"), "mean_gate_entropy": ("H(p)", 4, ".2f"),
    "val_mse": ("vMSE", 5, ".3f"), "val_lcc": ("vLCC", 5, ".3f"), "val_srcc": ("vSRCC", 5, ".3f"), "val_accuracy": ("vacc", 4, ".2f"),
}


def run_stage(model, stage, config, clips, validation, log):
    """Trains model on clips for one stage, and hands log() a dict after each epoch: terms are means over its batches.

    Raises FloatingPointError, saying where, for a loss that is not finite.
    """
    model.mos_head.requires_grad_(stage.alpha_end > 0)  # a gradient of 0 would not keep weight decay off it
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=config.weight_decay)
    batches = math.ceil(len(clips.mos) / config.batch_size)
    for epoch in range(stage.epochs):
        model.train()
        sums, gates = {}, []
        for i, rows in enumerate(torch.randperm(len(clips.mos)).to(clips.mos.device).split(config.batch_size)):
            step, steps = epoch * batches + i, stage.epochs * batches
            lr = learning_rate(step, steps, stage.lr)
            a = alpha(step, steps, stage.alpha_start, stage.alpha_end)
            b = 1 - a if config.auxiliary == "model" else 0.0
            optimiser.param_groups[0]["lr"] = lr

            output = model(clips.features[rows])
            terms = moemos.losses(output, clips.mos[rows], clips.model[rows], alpha=a, beta=b, lambda_1=config.lambda_1,
                                  lambda_2=config.lambda_2, smooth_l1_beta=config.smooth_l1_beta, unit=model.unit)
            model.zero_grad()
            terms["total"].backward()
            terms["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)  # the one before clipping
            if not (terms["total"] + terms["grad_norm"]).isfinite():
                raise FloatingPointError(f"the loss or its gradient is not finite in stage {stage.name}, epoch {epoch + 1}, step {i + 1}: "
                                         + ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items()))
            optimiser.step()

            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item()
            gates.append(output.gates.detach())
        gates = torch.cat(gates)
        entropy, mean_entropy = moemos.gate_entropies(gates)
        log({"stage": stage.name, "epoch": epoch + 1, "lr": lr, "alpha": a, **{name: total / batches for name, total in sums.items()},
             "gate_entropy": entropy.item(), "mean_gate_entropy": mean_entropy.item(),
             **{f"gate_{e + 1}": use for e, use in enumerate(gates.mean(0).tolist())}, **validate(model, validation)})


@torch.no_grad()
def validate(model, clips):
    model.eval()
    outputs = [model(part) for part in clips.features.split(256)]
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


def train(config, stages=STAGES):
    """Trains as config says and writes model.pt, config.json and log.csv into config.out; returns the model.

    Under torchrun each process extracts its share of the features, and rank 0 alone goes on; the others return None.
    Raises InputError for whatever cannot be used, before any work that it would spoil.
    """
    check(config)
    device = moemos.pick_device(config.device)
    data.check_writable(config.out, config.cache)
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
    held_out = max(len(clips) // 10, 1)
    if sum(bool(clip.ratings) for clip in clips[held_out:]) < 2:
        raise InputError(f"{config.data}: fewer than two training clips with ratings, a tenth being held out")
    backbone = (moemos.load_backbone(config.backbone, device, config.precision) if config.backbone
                else default_backbone(device, config.precision))
    config = replace(config, backbone=backbone.name)
    features = extract_in_shares(clips, backbone, config.cache)
    if features is None:
        return None

    classes = sorted({clip.model for clip in clips})
    everything = Clips(features.to(device), torch.tensor([clip.mos for clip in clips], device=device),
                       torch.tensor([classes.index(clip.model) for clip in clips], device=device))
    validation, training = Clips(*(tensor[:held_out] for tensor in everything)), Clips(*(tensor[held_out:] for tensor in everything))
    torch.manual_seed(config.seed)
    model = moemos.MoEMOS(backbone.layers, backbone.width, len(classes), config.experts, config.hidden, config.dropout, config.scale)
    model.fusion.set_statistics(features[held_out:])
    model.to(device)
    model.class_head.requires_grad_(config.auxiliary == "model")

    print(f"{len(training.mos)} clips to train on, {int((~training.mos.isnan()).sum())} with MOS; {held_out} held out; "
          f"{len(classes)} classes; backbone {backbone.name} on {device}")
    rows = []

    def log(row):
        if row["epoch"] == 1:
            print(f"stage {row['stage']}\n" + " ".join(f"{name:>{width}}" for name, width, _ in SCREEN.values()) + "  gates %")
        rows.append(row)
        print(" ".join(f"{row[column]:{width}{form}}" for column, (_, width, form) in SCREEN.items()),
              "", *(f"{100 * row[f'gate_{e + 1}']:2.0f}" for e in range(config.experts)))

    stages = [stage._replace(epochs=config.epochs or stage.epochs) for stage in stages
              if stage.alpha_end > 0 or config.auxiliary == "model"]  # stage 1 has nothing to learn without the second task
    for stage in stages:
        run_stage(model, stage, config, training, validation, log)
    write_run(config, stages, model, classes, backbone, rows)
    return model


def write_run(config, stages, model, classes, backbone, rows):
    """Writes log.csv, config.json and, last, model.pt: the head as plain tensors and values, without the run's and the cache's place."""
    out = Path(config.out)
    data.write_csv(out / "log.csv", [rows[0].keys(), *(row.values() for row in rows)])
    data.write_atomically(out / "config.json", (json.dumps(asdict(config), indent=2) + "\n").encode())
    checkpoint = io.BytesIO()  # saved by name, the file would hold that name
    torch.save({"weights": {name: tensor.cpu() for name, tensor in model.state_dict().items()},
                "config": {name: value for name, value in asdict(config).items() if name not in ("out", "cache")},
                "stages": [stage._asdict() for stage in stages], "classes": classes,
                "backbone": {"name": backbone.name, "identity": backbone.identity, "layers": backbone.layers, "width": backbone.width}},
               checkpoint)
    data.write_atomically(out / "model.pt", checkpoint.getvalue())
    for name in ("metrics.json", "predictions.csv", "answer.txt"):  # of the model that was there
        (out / name).unlink(missing_ok=True)
    print(f"wrote {out}/model.pt, config.json, log.csv")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Trains the speech quality predictor of arXiv 2507.06116.")
    for setting in fields(Config):
        kind = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")} if setting.type is tuple else {"type": setting.type}
        parser.add_argument(flag(setting.name), **kind, default=setting.default, choices=setting.metadata["choices"],
                            help=f"{setting.metadata['help']} (default: {setting.default!r})")
    try:
        train(Config(**vars(parser.parse_args())))
    except FloatingPointError as error:
        parser.exit(1, f"train.py: {error}\n")
    except InputError as error:
        parser.exit(2, f"train.py: {error}\n")


if __name__ == "__main__":
    main()
