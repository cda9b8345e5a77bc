"""Runs the blocks of Markdown files that begin with `$ `, in the root of the checkout, after the
README's first command, and compares what they print with what is pasted below them. The words must
be the same, and the numbers may differ by one in the third decimal, as processors round
differently."""

import math
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^    \$ (.*)\n((?:    (?!\$ ).*\n|\n(?=    (?!\$ )))*)", re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.\d{3}\b")


def stripped(text):
    return [line.rstrip() for line in text.rstrip().splitlines()]


def agree(printed, pasted):
    """Whether two lists of lines have the same words, and numbers that differ by .001 at most."""
    one, other = "\n".join(printed), "\n".join(pasted)
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other))
    return (NUMBER.sub("#", one).split() == NUMBER.sub("#", other).split()
            and all(math.isclose(float(a), float(b), abs_tol=0.0011) for a, b in pairs))


failed = False
for name in sys.argv[1:]:
    blocks = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    if not blocks:
        sys.exit(f"{name} has no block that begins with $")
    for command, pasted in blocks:
        done = subprocess.run(command, shell=True, cwd=ROOT, check=False, capture_output=True,
                              text=True)
        expected = [line.removeprefix("    ") for line in stripped(pasted)]
        if agree(stripped(done.stdout), expected) and done.returncode == 0:
            print(f"as pasted: {command}")
        else:
            failed = True
            print(f"DIFFERS: {command}\n{done.stdout}\n{done.stderr}")
sys.exit(failed)
