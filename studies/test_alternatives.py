"""Tests of other second tasks and schedules."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import data
import moemos
import train
from studies import alternatives
from test_moemos import call, no_network, quick, small, table  # noqa: F401 - fixtures


@pytest.mark.parametrize(("task", "classes", "true"), [
    ("model", ["m0", "m1", "x"], lambda clip: clip.model),
    ("condition", ["s0", "s1", "s2", "s3", "x"], lambda clip: clip.system),
    ("rate", ["16000 Hz"], lambda clip: "16000 Hz")])
def test_the_second_task_classifies_what_it_is_told_to(small, tmp_path, task, classes, true):
    config = quick(small, tmp_path, steps=5)
    alternatives.run(config, task=task)
    checkpoint = torch.load(tmp_path / "run" / "model.pt")
    assert checkpoint["classes"] == classes
    model = moemos.MoEMOS(3, 80, len(classes), hidden=config.hidden).eval()
    model.load_state_dict(checkpoint["weights"])
    test = [clip for clip in data.read_corpus(small) if clip.split == "test"]
    features = data.extract_features(test, moemos.load_backbone("logmel"), config.cache)
    said = model(features).logits.argmax(1)
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    hits = [classes[i] == true(clip) for i, clip in zip(said, test)]
    assert result["accuracy"] == np.mean(hits)


def test_schedules_have_as_many_steps_and_are_what_they_are_called():
    schedules = alternatives.SCHEDULES
    assert schedules["three"] == train.STAGES
    for stages in schedules.values():
        assert sum(stage.steps for stage in stages) == sum(stage.steps for stage in train.STAGES)
    turned = [(stage.name, stage.alpha_start, stage.alpha_end) for stage in schedules["reversed"]]
    assert turned == [("mos", 0.9, 0.9), ("joint", 0.7, 0.3), ("classification", 0, 0)]
    assert [stage.alpha_start for stage in schedules["mos_only"]] == [1.0]
    assert [stage.name for stage in schedules["joint_only"]] == ["joint"]
    for name in ("joint_only", "mos_only"):
        assert [stage.lr for stage in schedules[name]] == [train.STAGES[1].lr]


def test_with_the_mos_alone_no_label_counts_and_there_is_no_accuracy(
        small, tmp_path, monkeypatch):
    config = quick(small, tmp_path)
    other = {"m0": "x", "m1": "m0", "x": "m1"}  # the same classes, of other clips
    monkeypatch.setitem(alternatives.TASKS, "other", lambda clip: other[clip.model])
    weights = []
    for task in ("other", "model"):
        alternatives.run(replace(config, out=str(tmp_path / task)), task, "mos_only")
        weights.append(torch.load(tmp_path / task / "model.pt")["weights"])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    torch.manual_seed(0)
    untrained = train.build_model(config, moemos.load_backbone("logmel"), "abc").state_dict()
    for head in ("class_head.weight", "mos_head.weight"):  # both by the loss of the MOS
        assert not torch.equal(weights[0][head], untrained[head])
    (tmp_path / "model").rename(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["accuracy"] is None
    assert {row["alpha"] for row in table(tmp_path / "run" / "log.csv")} == {"1.0"}


def test_the_command_line_trains_and_evaluates(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data", small, "--backbone", "logmel", "--steps", 1, "--out", "runs/reversed")
    assert call(monkeypatch, alternatives, *words, "--schedule", "reversed") == 0
    log = table(tmp_path / "runs" / "reversed" / "log.csv")
    assert [row["stage"] for row in log] == ["mos", "joint", "classification"]
    assert call(monkeypatch, alternatives, "--schedule", "none") == 2
    assert call(monkeypatch, alternatives, "--data", "nowhere") == 2
