"""Other second tasks than the paper's (III.C), and other schedules than its three stages (III.E).

    python -m studies.alternatives --task condition [train.py's options]
    python -m studies.alternatives --schedule reversed [train.py's options]

trains and evaluates with them, into runs/alternative; they are ours. Without second task: `python
train.py --auxiliary none`. All schedules have as many steps as the paper's.
"""

import argparse
from dataclasses import replace

import data
import evaluate
import train
from train import STAGES, Stage


def condition(clip):
    """The system: synthesis model and sampling rate."""
    return clip.system


def rate(clip):
    """The sampling rate of the file."""
    return f"{clip.rate} Hz"


def reverse(stage):
    return stage._replace(alpha_start=stage.alpha_end, alpha_end=stage.alpha_start)


STEPS = sum(stage.steps for stage in STAGES)
LR = STAGES[1].lr
TASKS = {"model": train.synthesis_model, "condition": condition, "rate": rate}
SCHEDULES = {
    "three": STAGES,
    "joint_only": (Stage("joint", STEPS, LR, 0.3, 0.7),),
    "mos_only": (Stage("mos", STEPS, LR, 1.0, 1.0),),  # and so without second task
    "reversed": tuple(reverse(stage) for stage in reversed(STAGES)),
}


def run(config, task="model", schedule="three"):
    """Trains and evaluates."""
    if schedule == "mos_only":
        config = replace(config, auxiliary="none")
    train.train(config, SCHEDULES[schedule], TASKS[task])
    evaluate.evaluate(config.out, config.device, label=TASKS[task])


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Trains with another second task or schedule.")
    parser.add_argument("--task", choices=tuple(TASKS), default="model")
    parser.add_argument("--schedule", choices=tuple(SCHEDULES), default="three")
    config, options = train.parse(parser, out="runs/alternative")
    with data.one_sentence("studies.alternatives"):
        run(config, **options)


if __name__ == "__main__":
    main()
