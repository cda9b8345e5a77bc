"""Runs the blocks of Markdown files that begin with `$ `, in the root of the checkout, after the
README's first command, and compares what they print with what is pasted below them. All must be the
same, with one exception. Processors round differently, so that a number of metrics.json can differ
by some 1e-5; if it lies that near to an edge, such as .5085, it may be printed as .508 or .509."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^    \$ (.*)\n((?:    (?!\$ ).*\n|\n(?=    (?!\$ )))*)", re.MULTILINE)
PRINTED = re.compile(r" *-?\d+\.\d{3}\b")  # with the spaces that fill its column
STORED = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
NEAR = 5e-5  # .508484 was seen where another processor had .5085 or more


def stripped(text):
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def agree(printed, pasted):
    """Whether two texts are the same, apart from numbers that lie at an edge."""
    columns = [PRINTED.sub(lambda match: "#" * len(match[0]), text) for text in (printed, pasted)]
    stored = (ROOT / "runs" / "default" / "metrics.json").read_text(encoding="utf-8")
    values = [float(value) for value in STORED.findall(stored)]
    for one, other in zip(PRINTED.findall(printed), PRINTED.findall(pasted)):
        edge = (float(one) + float(other)) / 2
        at_edge = any(abs(value - edge) < NEAR for value in values)
        if one != other and not (at_edge and abs(float(one) - float(other)) < 0.0015):
            return False
    return columns[0] == columns[1]


failed = False
for name in sys.argv[1:]:
    blocks = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    if not blocks:
        sys.exit(f"{name} has no block that begins with $")
    for command, pasted in blocks:
        done = subprocess.run(command, shell=True, cwd=ROOT, check=False, capture_output=True,
                              text=True)
        expected = "\n".join(line.removeprefix("    ") for line in pasted.splitlines())
        if agree(stripped(done.stdout), stripped(expected)) and done.returncode == 0:
            print(f"as pasted: {command}")
        else:
            failed = True
            print(f"DIFFERS: {command}\n{done.stdout}\n{done.stderr}")
sys.exit(failed)
