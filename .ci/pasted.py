"""Runs the blocks of Markdown files that begin with `$ `, in the root of the checkout, after the
README's first command, and compares what they print with what is pasted below them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^    \$ (.*)\n((?:    (?!\$ ).*\n|\n(?=    (?!\$ )))*)", re.MULTILINE)


def stripped(text):
    return [line.rstrip() for line in text.rstrip().splitlines()]


failed = False
for name in sys.argv[1:]:
    blocks = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    if not blocks:
        sys.exit(f"{name} has no block that begins with $")
    for command, pasted in blocks:
        done = subprocess.run(command, shell=True, cwd=ROOT, check=False, capture_output=True,
                              text=True)
        expected = [line.removeprefix("    ") for line in stripped(pasted)]
        if stripped(done.stdout) == expected and done.returncode == 0:
            print(f"as pasted: {command}")
        else:
            failed = True
            print(f"DIFFERS: {command}\n{done.stdout}\n{done.stderr}")
sys.exit(failed)
