"""Measures speed and memory in some minutes: `python -m studies.benchmark`.

It works in an empty temporary folder, and mostly with logmel, so that no weights are needed. If
WAV2VEC2_BASE is named, it has random weights, as time does not depend on them.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchaudio

import data
import moemos
import train
from data import InputError

ROOT = Path(__file__).resolve().parent.parent
LOGMEL = ("--backbone", "logmel")
LAYERS, WIDTH = 12, 768  # of WAV2VEC2_BASE


def show(label, number, unit="", digits=1):
    print(f"{label:44}{number:8.{digits}f} {unit}", flush=True)


def start(*words, **environment):
    """Starts Python in another process, in the current folder, without its output."""
    return subprocess.Popen([sys.executable, *words], env=os.environ | environment,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(*processes):
    """Waits for all processes to end. Raises InputError if one fails."""
    for process in processes:
        if process.wait() != 0:
            command = " ".join(map(str, process.args))
            raise InputError(f"{command} ended with status {process.returncode}")


def seconds(*words):
    """The wall time, in seconds, of a script as a user starts it."""
    begun = time.perf_counter()
    finish(start(*words))
    return time.perf_counter() - begun


def scripts():
    """Times whole scripts in an empty folder. They leave a corpus and its logmel features in it."""
    cores = [ROOT / name for name in ("train.py", "evaluate.py")]
    seconds(cores[0], "--help")  # the first start of a day waits for the disk
    slowest = max(seconds(script, "--help") for script in cores)
    show("--help, slower of the two scripts", slowest, "s")
    simulation = seconds("-m", "corpora.simulated", "other", "--seed", "1")
    show("corpora.simulated", simulation, "s")
    first = seconds(cores[0], *LOGMEL) + seconds(cores[1])
    show("train.py, evaluate.py from an empty folder", first, "s")
    again = seconds(cores[0], *LOGMEL) + seconds(cores[1])
    show("again, with corpus and features made", again, "s")
    kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    show("peak memory of the largest process", kibibytes * 1024 / 1e9, "GB", digits=2)


def evaluation():
    """The wall time of evaluate.py on 5,000 test clips. They are links to those of the corpus, so
    that their features have been extracted already."""
    clips = data.read_ratings("corpus")
    test = [clip for clip in clips if clip.split == "test"]
    many = [clip for clip in clips if clip.split == "train" and clip.ratings]
    Path("large").mkdir()
    for i in range(5000):
        clip = test[i % len(test)]
        path = Path("large", f"{i}.wav").absolute()
        os.link(clip.path, path)
        many.append(replace(clip, path=path))
    make_corpus("large", many)
    return seconds(ROOT / "evaluate.py", "--data", "large")


def training_itself(training, fold):
    """The wall time of the start in closed form, and that of the three stages. training:
    train.Tensors. fold: as in moemos.start()."""
    config, classes = train.Config(), int(training.label.max()) + 1
    torch.manual_seed(config.seed)
    begun = time.perf_counter()
    model = train.build_model(config, moemos.start(*training, classes, fold))
    started = time.perf_counter()
    with contextlib.redirect_stdout(None):
        train.run_stages(model, train.STAGES, config, training)
    return started - begun, time.perf_counter() - started


def training_on_corpus():
    """Times training_itself() on the simulated corpus."""
    backbone = data.open_backbone("logmel", "cpu")
    with contextlib.redirect_stdout(None):
        clips, _ = train.read_clips(train.Config())
    training, _ = train.as_tensors(clips, backbone, "cache")
    fold = data.folds_of([clip for clip in clips if clip.ratings], train.FOLDS)
    return training_itself(training, fold)


def training_at_full_width():
    """Times training_itself() with two threads on 800 random clips that have as many features as
    WAV2VEC2_BASE gives. Returns (seconds of the start, seconds of the stages, GB of memory
    at the peak). The peak is that of the process, so call this in a new one."""
    torch.set_num_threads(2)
    features = torch.randn(800, LAYERS, 2 * WIDTH)
    mos = torch.linspace(1, 5, 800)
    mos[400:] = torch.nan
    training = train.Tensors(features, mos, torch.arange(800) % 12)
    durations = training_itself(training, np.arange(400) % train.FOLDS)
    return *durations, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def make_weights(hub):
    """Writes random weights for WAV2VEC2_BASE into a hub folder, where torch.hub finds them."""
    bundle = torchaudio.pipelines.WAV2VEC2_BASE
    checkpoints = Path(hub, "checkpoints")
    checkpoints.mkdir(parents=True)
    torch.manual_seed(0)
    network = torchaudio.models.wav2vec2_model(**bundle._params)
    torch.save(network.state_dict(), checkpoints / bundle._path)


def make_corpus(folder, clips):
    """Writes into a folder the ratings.csv of some clips of another corpus."""
    rows = [data.HEADER]
    for clip in clips:
        for rater, score in (clip.ratings or {"": ""}).items():
            path = clip.path.absolute()
            rows.append((path, clip.split, clip.system, clip.model, clip.group, rater, score))
    data.write_files({Path(folder, "ratings.csv"): rows})


def extraction(clips, backbone):
    """The time that data.extract_features() takes, divided by that of the bare network. They take
    turns, clip by clip."""
    times = {"ours": 0.0, "bare": 0.0}
    for i, clip in enumerate(clips):
        waveform = data.read_wav(clip.path, backbone.sample_rate)[None]
        order = ("ours", "bare") if i % 2 else ("bare", "ours")
        for what in order:
            begun = time.perf_counter()
            if what == "ours":
                data.extract_features([clip], backbone, "cache_extraction")
            else:
                with torch.no_grad():
                    backbone.network.extract_features(waveform)
            times[what] += time.perf_counter() - begun
    return times["ours"] / times["bare"]


def processes():
    """The time that corpora.features takes for 80 clips in one process with two threads, divided by
    that of two processes with one thread each."""
    make_corpus("share", data.read_ratings("corpus")[::15])

    def extract(rank, number, threads):
        return start("-m", "corpora.features", "share", "--backbone", "WAV2VEC2_BASE",
                     "--cache", f"cache_{number}", RANK=str(rank), WORLD_SIZE=str(number),
                     OMP_NUM_THREADS=str(threads))

    begun = time.perf_counter()
    finish(extract(0, 1, threads=2))
    one = time.perf_counter() - begun
    begun = time.perf_counter()
    finish(extract(0, 2, threads=1), extract(1, 2, threads=1))
    return one / (time.perf_counter() - begun)


def benchmark():
    scripts()
    show("evaluate.py on 5,000 clips with features", evaluation(), "s")
    begun, stages = training_on_corpus()
    show("the start in closed form", begun, "s")
    show("the three stages themselves", stages, "s")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        begun, stages, memory = pool.submit(training_at_full_width).result()
    show(f"the start at {LAYERS * 2 * WIDTH:,} features", begun, "s")
    show("the three stages at as many features", stages, "s (aim, with the start: 90)")
    steps = sum(stage.steps for stage in train.STAGES)
    show("one step of these stages", 1000 * stages / steps, "ms")
    show("peak memory of this training", memory, "GB (aim: 1.5)", digits=2)
    make_weights(torch.hub.get_dir())
    backbone = moemos.load_backbone("WAV2VEC2_BASE")
    over = extraction(data.read_ratings("corpus")[::20], backbone)
    show("data.extract_features / WAV2VEC2_BASE bare", over, digits=3)
    show("two processes of one thread", processes(),
         "times as fast as one process of two threads, starts included", digits=2)


def main():
    argparse.ArgumentParser(
        allow_abbrev=False, description="Prints speed and memory of this project.").parse_args()
    with data.errors_in_one_sentence("studies.benchmark"), tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPATH"] = str(ROOT)
        os.environ["TORCH_HOME"] = folder  # whose weights are random
        os.chdir(folder)
        benchmark()
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
