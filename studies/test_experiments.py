"""Tests of the experiments: their variants, and that none of their runs is lost or mixed up."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import data
import train
from corpora import simulated
from studies import alternatives, experiments, fusion, prosody, raters
from studies.test_choose import talkers  # noqa: F401 - a fixture
from test_moemos import HERE, call, no_network, quick, small  # noqa: F401 - fixtures


def start(folder, *words):
    """studies.experiments in processes of its own, in that folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    program = [sys.executable, "-m", "studies.experiments", *map(str, words)]
    return subprocess.Popen(program, cwd=folder, env=environment, start_new_session=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_experiments_are_eleven_and_change_settings_that_exist():
    assert list(experiments.EXPERIMENTS) == [
        "baseline", "experts", "collapse", "raters", "adaptation", "augmentation", "auxiliary",
        "stages", "prosody", "fusion", "frontend"]
    known = {}
    for experiment in experiments.EXPERIMENTS.values():
        names = [variant.name for variant in experiment.variants]
        assert len(set(names)) == len(names)
        for variant in experiment.variants:
            assert variant.panel in ("", *simulated.PANELS)
            assert variant.against in ("", *names)
            train.check(replace(train.Config(), **variant.settings))
            same = known.setdefault(variant.name, variant)  # a name is a folder: of one kind of run
            assert replace(variant, against="") == replace(same, against="")


def test_variants_run_what_their_names_say():
    found = {}
    for name, experiment in experiments.EXPERIMENTS.items():
        for variant in experiment.variants:
            found[name, variant.name] = (variant.run, variant.options)
    assert found["prosody", "prosody"] == (prosody.run, {})
    assert found["adaptation", "raters=yes,strict"] == (raters.run, {"kind": "yes"})
    assert found["auxiliary", "task: rate"] == (alternatives.run, {"task": "rate"})
    assert found["stages", "stages reversed"] == (alternatives.run, {"schedule": "reversed"})
    assert found["fusion", "layer norm"] == (fusion.run, {"part": "layer norm"})
    assert found["fusion", "summed"] == (fusion.run, {"part": "summed"})
    assert found["experts", "one wide expert"] == (fusion.run, {"part": "wide"})


def test_seeds_have_corpora_of_their_own_and_panels_their_tables():
    planned = experiments.plan_runs("raters", 2, train.Config(backbone="logmel", seed=3))
    root = "runs/experiments/simulated"
    tables = {"training panel": "/ratings_training.csv", "default": "",
              "unbiased panel": "/ratings_unbiased.csv"}
    assert [(config.seed, config.data, config.out) for _, config in planned] == [
        (seed, f"runs/corpora/{30 + seed}{table}", f"{root}/{name}/{seed}")
        for name, table in tables.items() for seed in (3, 4)]


def test_only_backbones_at_hand_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "wavlm_base.pth").touch()
    planned = experiments.plan_runs("frontend", 1, train.Config(backbone="logmel"))
    assert [config.backbone for _, config in planned] == ["logmel", "logmel48", "WAVLM_BASE"]


def test_by_talker_each_is_tested_once_and_never_learned_from(talkers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = train.Config(data=str(talkers), backbone="logmel", seed=4)
    names = experiments.write_folds(base)
    assert names == ["t0", "t1", "t2", "t3"]
    planned = experiments.plan_runs("prosody", 1, base, names)
    assert [config.out for _, config in planned] == [
        f"runs/experiments/talkers_by_talker/{variant}/4/{name}"
        for variant in ("default", "prosody") for name in names]
    known = {c.path.resolve(): c for c in data.read_manifest(talkers)}
    tested = []
    for _, config in planned[:4]:
        own = Path(config.out).name
        clips = data.read_manifest(config.data)
        assert {c.path.resolve() for c in clips} == {
            path for path, c in known.items() if c.ratings or not path.stem.endswith(own)}
        for c in clips:
            assert (c.split == "test") == c.path.stem.endswith(own)
            same = known[c.path.resolve()]
            assert (c.system, c.model, c.ratings) == (same.system, same.model, same.ratings)
        tested += [c.path for c in clips if c.split == "test"]
    assert len(set(tested)) == sum(bool(c.ratings) for c in known.values())


def test_each_experiment_has_its_own_number_of_seeds_and_shared_runs_are_one(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pool = types.SimpleNamespace(map=lambda call, *jobs: [])
    monkeypatch.setattr(experiments, "worker_pool", lambda jobs: contextlib.nullcontext(pool))
    for words, runs in ((("raters",), 3 * 5), (("baseline",), 2 * 20),
                        (("raters", "prosody"), 4 * 5), (("baseline", "--seeds", 3), 2 * 3)):
        assert call(monkeypatch, experiments, *words, "--backbone", "logmel") == 0
        assert f": {runs} runs, 0 there already" in capsys.readouterr().out


def test_without_a_name_all_run_that_can(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = []
    monkeypatch.setattr(experiments, "run_experiments", lambda names, *others: done.append(names))
    assert call(monkeypatch, experiments) == 0
    assert call(monkeypatch, experiments, "--data", small) == 0
    assert done[0] == [*experiments.EXPERIMENTS]
    assert set(done[0]) - set(done[1]) == {"raters", "adaptation"}


def test_an_experiment_loses_no_finished_run_and_gives_the_same_numbers_again(
        small, tmp_path, monkeypatch):
    """Killed after its first run, started again, and beside it one undisturbed, in one process."""
    words = ("augmentation", "--seeds", 2, "--data", small, "--backbone", "logmel", "--steps", 1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    process = start(killed, *words)
    pattern = "runs/experiments/small/*/*/metrics.json"
    while not list(killed.glob(pattern)) and process.poll() is None:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob(pattern)}
    assert 1 <= len(finished) < 4
    process = start(killed, *words)
    pool = types.SimpleNamespace(map=map)
    monkeypatch.setattr(experiments, "worker_pool", lambda jobs: contextlib.nullcontext(pool))
    monkeypatch.chdir(whole)
    threads = torch.get_num_threads()
    assert call(monkeypatch, experiments, *words) == 0
    torch.set_num_threads(threads)
    assert process.wait() == 0
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    folder = killed / "runs" / "experiments" / "small"
    runs = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/model.pt"))
    assert runs == [
        "augmentation=no/0", "augmentation=no/1", "default/0", "default/1"]
    for path in folder.glob("*/*/*"):
        again = whole / path.relative_to(killed)
        if path.name == "model.pt":  # pickled in another process, of other objects
            one, other = (torch.load(file)["weights"] for file in (path, again))
            assert all(torch.equal(one[name], other[name]) for name in other)
        else:
            assert path.read_bytes() == again.read_bytes()


def test_an_experiment_that_is_interrupted_twice_ends_at_once(small, tmp_path):
    process = start(tmp_path, "fusion", "--seeds", 1, "--data", small, "--backbone", "logmel")
    while not list(tmp_path.glob("runs/experiments/*/*/*")) and process.poll() is None:
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    assert process.wait(timeout=10) != 0
    assert len(list(tmp_path.glob("runs/experiments/*/*/*/model.pt"))) < 6


def test_a_finished_run_with_other_settings_is_not_overwritten(small, tmp_path, monkeypatch):
    default = experiments.Variant("default")
    config = quick(small, tmp_path, steps=1)
    threads = torch.get_num_threads()
    assert not experiments.is_finished(default, config)
    assert experiments.finish_run((default, config)) == config.out
    torch.set_num_threads(threads)
    assert experiments.is_finished(default, config)
    before = (tmp_path / "run" / "model.pt").read_bytes()
    with pytest.raises(data.InputError, match=r"run with other settings \(stages, steps\)"):
        experiments.is_finished(default, replace(config, steps=2))
    with monkeypatch.context() as patch:
        changed = tuple(stage._replace(lr=1.0) for stage in train.STAGES)
        patch.setitem(alternatives.SCHEDULES, "three", changed)
        with pytest.raises(data.InputError, match=r"other settings \(stages\)"):
            experiments.is_finished(default, config)
    assert (tmp_path / "run" / "model.pt").read_bytes() == before
    (tmp_path / "run" / "model.pt").write_bytes(b"half")
    assert not experiments.is_finished(default, config)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["clips"] == 16


@pytest.mark.parametrize(("words", "why"), [
    (["raters", "--data", "SMALL"], "needs the simulated corpora"),
    (["none"], "none: there is no such experiment"),
    (["stages", "--by-talker"], "--by-talker is of a corpus of one's own"),
    (["stages", "--seeds", "-1"], "--seeds -1"), (["stages", "--steps", "-1"], "--steps -1"),
    (["experts", "--experts", "2"], "--experts: experiment experts sets it itself"),
    (["stages", "--out", "x"], "--out: experiment stages sets it itself")])
def test_what_cannot_be_run_gets_one_sentence(small, tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("SMALL", str(small)) for word in words]
    assert call(monkeypatch, experiments, *words) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_are_counted_on_a_terminal_alone(monkeypatch, capsys):
    assert list(experiments.followed(iter("ab"), 2)) == ["a", "b"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(experiments.followed(iter("ab"), 2)) == ["a", "b"]
    assert capsys.readouterr().err == "\r1/2 \r2/2 \n"
