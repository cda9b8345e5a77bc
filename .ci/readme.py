"""Runs the README's blocks that begin with `$ ` in the root of the checkout, after its first command, and compares their output."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
failed = False
blocks = re.findall(r"^    \$ (.*)\n((?:    (?!\$ ).*\n|\n(?=    (?!\$ )))*)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
if not blocks:
    sys.exit("README.md has no block that begins with $")
for command, pasted in blocks:
    done = subprocess.run(command, shell=True, cwd=ROOT, check=False, capture_output=True, text=True)
    expected = "\n".join(line.removeprefix("    ").rstrip() for line in pasted.rstrip().splitlines())
    printed = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
    same = printed == expected and done.returncode == 0
    failed |= not same
    print(f"{'as pasted' if same else 'DIFFERS'}: {command}" + ("" if same else f"\n{printed}\n{done.stderr}"))
sys.exit(failed)
