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
        yield from run_stage(*arguments)
        times.append(time.perf_counter() - start)

    train.run_stage = timed
    with contextlib.redirect_stdout(None):
        train.train(train.Config(backbone="logmel", out="runs/again"))
    return sum(times)


def base_weights():
    """WAV2VEC2_BASE with random weights in a hub folder of its own."""
    import torch
    import torchaudio
    bundle = torchaudio.pipelines.WAV2VEC2_BASE
    Path("weights/checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchaudio.models.wav2vec2_model(**bundle._params).state_dict(), Path("weights/checkpoints") / bundle._path)


def load(precision="float32"):
    import torch

    import moemos
    torch.hub.set_dir("weights")
    return moemos.load_backbone("WAV2VEC2_BASE", precision=precision)


def extraction():
    """Cost of data.extract_features over that of the bare network, clip by clip in turns."""
    import torch

    import data
    backbone = load()
    bare, ours = 0.0, 0.0
    for i, clip in enumerate(data.read_manifest("corpus")[::20]):
        waveform = data.read_wav(clip.path)[None]
        for turn in (i % 2, (i + 1) % 2):
            start = time.perf_counter()
            if turn:
                with torch.no_grad():
                    backbone.network.extract_features(waveform)
                bare += time.perf_counter() - start
            else:
                data.extract_features([clip], backbone, "cache")
                ours += time.perf_counter() - start
    return ours / bare


def precision():
    """(speed-up by bfloat16, largest change of a prediction in MOS, their spread): 40 test clips, head trained on float32 features."""
    import contextlib

    import data
    import evaluate
    import train
    clips = data.read_manifest("corpus")
    few = [clip for clip in clips if clip.split == "train"][::20] + [clip for clip in clips if clip.split == "test"][::10]
    rows = [",".join(data.HEADER)] + [f"{clip.path.absolute()},{clip.split},{clip.system},{clip.model},{rater},{score}"
                                      for clip in few for rater, score in (clip.ratings or {"": ""}).items()]
    Path("few").mkdir()
    Path("few/ratings.csv").write_text("\n".join(rows))
    times, predicted = [], []
    load()
    with contextlib.redirect_stdout(None):
        model = train.train(train.Config(data="few", backbone="WAV2VEC2_BASE", cache="cache_float32", out="runs/few"))
    for name in ("float32", "bfloat16"):
        backbone = load(name)
        start = time.perf_counter()
        features = data.extract_features([clip for clip in few if clip.split == "test"], backbone, f"cache_again_{name}")
        times.append(time.perf_counter() - start)
        predicted.append(evaluate.predict(model.eval(), features).mos)
    return times[0] / times[1], (predicted[0] - predicted[1]).abs().max().item(), predicted[0].std().item()


def share(rank, ranks):
    """Seconds for this share of 80 clips; run in a process of its own."""
    import data
    backbone, clips = load(), data.read_manifest("corpus")[:1200:15]
    start = time.perf_counter()
    data.extract_features(clips[rank::ranks], backbone, f"cache_share_{ranks}")
    print(time.perf_counter() - start)


def processes():
    """Time of one process with two threads over that of two processes with one thread each."""
    def run(rank, ranks, threads):
        return subprocess.Popen([sys.executable, __file__, str(rank), str(ranks)], stdout=subprocess.PIPE, text=True,
                                env=os.environ | {"OMP_NUM_THREADS": str(threads)})

    one = float(run(0, 1, 2).communicate()[0])
    return one / max(float(process.communicate()[0]) for process in [run(0, 2, 1), run(1, 2, 1)])


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TORCH_HOME"] = folder  # no weights there
        seconds("train.py", "--help")  # the first start of a day waits for the disk
        slowest = max(seconds(script, "--help") for script in ("train.py", "evaluate.py", "data.py"))
        print(f"--help, slowest of three scripts         {slowest:6.1f} s")
        print(f"data.py, a corpus                         {seconds('data.py', '--out', 'other', '--seed', '1'):6.1f} s")
        print(f"train.py, evaluate.py from an empty folder {seconds('train.py') + seconds('evaluate.py'):5.1f} s")
        print(f"again, corpus and features there          {seconds('train.py') + seconds('evaluate.py'):6.1f} s")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        print(f"peak memory of the largest process        {peak:6.2f} GB")
        print(f"the three stages themselves               {stages():6.1f} s")
        base_weights()
        print(f"data.extract_features / WAV2VEC2_BASE bare{extraction():6.3f}")
        faster, change, spread = precision()
        print(f"WAV2VEC2_BASE in bfloat16, times as fast   {faster:5.2f}  (largest change of a prediction {change:.4f}, their sd {spread:.2f})")
        print(f"two processes of one thread, times as fast {processes():5.2f}  (than one process of two)")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        share(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
