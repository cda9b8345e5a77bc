"""Speed and memory, as the README pastes them: `python .ci/benchmark.py` from the root of the checkout.

Works in an empty temporary folder, without weights, so with logmel. The bundle's own cost is taken from a
WAV2VEC2_BASE with random weights: time does not depend on them.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def seconds(script, *arguments):
    """Wall time of a script in a process of its own, as a user starts it."""
    start = time.perf_counter()
    subprocess.run([sys.executable, ROOT / script, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def stages():
    """Wall time of the three stages themselves, features cached."""
    import contextlib

    import train
    run_stage, times = train.run_stage, []

    def timed(*arguments):
        start = time.perf_counter()
        run_stage(*arguments)
        times.append(time.perf_counter() - start)

    train.run_stage = timed
    with contextlib.redirect_stdout(None):
        train.train(train.Config(backbone="logmel", out="runs/again"))
    return sum(times)


def extraction():
    """Cost of data.features over that of the bare network, clip by clip in turns."""
    import torch
    import torchaudio

    import data
    import moemos
    bundle = torchaudio.pipelines.WAV2VEC2_BASE
    checkpoints = Path("weights/checkpoints")
    checkpoints.mkdir(parents=True)
    torch.hub.set_dir("weights")
    torch.save(torchaudio.models.wav2vec2_model(**bundle._params).state_dict(), checkpoints / bundle._path)
    backbone = moemos.load_backbone("WAV2VEC2_BASE")
    bare, ours = 0.0, 0.0
    for i, clip in enumerate(data.read_manifest("corpus")[::20]):
        waveform = data.read_wav(clip.path)[None]
        for turn in ((i + 0) % 2, (i + 1) % 2):
            start = time.perf_counter()
            if turn:
                with torch.no_grad():
                    backbone.network.extract_features(waveform)
                bare += time.perf_counter() - start
            else:
                data.features([clip], backbone, "cache")
                ours += time.perf_counter() - start
    return ours / bare


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TORCH_HOME"] = folder  # no weights there
        print(f"--help, slowest of three scripts         {max(seconds(s, '--help') for s in ('train.py', 'evaluate.py', 'data.py')):6.1f} s")
        print(f"data.py, a corpus                         {seconds('data.py', '--out', 'other', '--seed', '1'):6.1f} s")
        print(f"train.py, evaluate.py from an empty folder {seconds('train.py') + seconds('evaluate.py'):5.1f} s")
        print(f"again, corpus and features there          {seconds('train.py') + seconds('evaluate.py'):6.1f} s")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        print(f"peak memory of the largest process        {peak:6.2f} GB")
        print(f"the three stages themselves               {stages():6.1f} s")
        print(f"data.features / bare WAV2VEC2_BASE        {extraction():6.3f}")


if __name__ == "__main__":
    main()
