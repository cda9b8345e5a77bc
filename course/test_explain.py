"""Tests of course/explain.py."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

import data
import evaluate
import moemos
from course import explain
from test_moemos import call, no_network, small_corpus, small_run  # noqa: F401 - fixture


def a_test_clip():
    return next(clip for clip in data.read_ratings(small_corpus()) if clip.split == "test")


def first_values(out, what):
    """The numbers that a line of the printed table holds."""
    line = re.search(rf"^{re.escape(what)} .*\)  +(.*)$", out, re.MULTILINE)
    return [float(word) for word in line.group(1).split() if word != "..."]


def test_explain_prints_the_shapes_and_numbers_that_the_model_computes_for_the_clip(
        monkeypatch, capsys):
    clip = a_test_clip()
    trained = evaluate.load_run(small_run(), "cpu")
    waveform, features = evaluate.read_clip(clip.path, trained)
    output = evaluate.predict(trained.model, features)
    capsys.readouterr()

    assert call(monkeypatch, explain, clip.path, small_run(), "--device", "cpu",
                "--backbone", "logmel") == 0
    out = capsys.readouterr().out
    frames = len(waveform) // 160 + 1  # 100 a second, and one more as the ends are padded
    classes, axes = len(trained.classes), trained.model.fusion.axes.shape[1]
    assert len({classes, axes, 320}) == 3
    for what, shape in (("waveform", (len(waveform),)), ("layers of the backbone", (2, frames, 80)),
                        ("mean, deviation over F", (2, 160)), ("fused features", (1, axes)),
                        ("gates g", (1, 4)), ("experts E_1 ... E_N", (1, 4, 1 + classes)),
                        ("y = sum g_i E_i", (1, 1 + classes)),
                        ("logits of the classes", (1, classes))):
        assert re.search(rf"^{re.escape(what)} .*{re.escape(str(shape))} ", out, re.MULTILINE)
    for what, tensor in (("mean, deviation over F", features), ("gates g", output.gates),
                         ("fused features", trained.model.fusion(features)),
                         ("y = sum g_i E_i", output.y), ("MOS", output.mos)):
        expected = tensor.flatten()[:4].tolist()
        assert first_values(out, what) == pytest.approx(expected, abs=1e-4)
    assert f"most probable class: {trained.classes[output.logits.argmax()]}\n" in out
    assert max(len(line) for line in out.splitlines()[1:]) < 100


def some_trained(classes, experts):
    """A model whose experts give different outputs, unlike those of a short run, and an Output."""
    torch.manual_seed(classes)
    model = moemos.MoEMOS(2, 5, 20, classes, experts, hidden=7).eval()
    model.fusion.axes.copy_(torch.eye(20))
    model.mean.fill_(3.25)
    model.deviation.fill_(0.75)
    for expert in model.moe.mlps:
        expert[2].reset_parameters()
    with torch.no_grad():
        output = model(torch.randn(1, 2, 10))
    return SimpleNamespace(model=model, classes=[f"class {c}" for c in range(classes)]), output


@pytest.mark.parametrize(("classes", "experts"), [(1, 1), (3, 4), (40, 4), (12, 7)])
def test_y_and_the_mos_can_be_computed_by_hand_from_what_is_printed(capsys, classes, experts):
    trained, output = some_trained(classes, experts)
    explain.show_sum(trained, output)
    out = capsys.readouterr().out
    rows = re.findall(r"^(gates g|MOS|class \d+) +((?: *-?\d+\.\d{4})+)$", out, re.MULTILINE)
    assert [name for name, _ in rows] == ["gates g", "MOS", *trained.classes]
    gates, *rows = [[float(number) for number in numbers.split()] for _, numbers in rows]
    assert len(gates) == experts

    total = 0
    for row, y in zip(rows, output.y[0].tolist(), strict=True):
        *outputs, printed, weight = row
        by_hand = sum(gate * number for gate, number in zip(gates, outputs, strict=True))
        assert by_hand == pytest.approx(printed, abs=2e-4)
        assert by_hand == pytest.approx(y, abs=2e-4)
        total += weight * by_hand
    bias, mean, deviation = (float(re.search(rf"{name} = (-?\d+\.\d{{4}})", out).group(1))
                             for name in ("b", "mean", "deviation"))
    assert (mean, deviation) == (3.25, 0.75)
    by_hand = mean + deviation * (total + bias)
    printed = float(re.search(r"^MOS = .* = (.*)$", out, re.MULTILINE).group(1))
    assert by_hand == pytest.approx(printed, abs=1e-3)
    assert by_hand == pytest.approx(output.mos.item(), abs=1e-3)
    assert max(map(len, out.splitlines())) <= 100


def test_the_mos_that_explain_prints_is_the_score_of_the_clip(capsys):
    clip = a_test_clip()
    explain.explain(small_run(), clip.path, "cpu")
    printed = re.search(r"^MOS = .* = (.*)$", capsys.readouterr().out, re.MULTILINE).group(1)
    ((_, mos),) = evaluate.score(small_run(), [clip.path], "cpu")
    assert float(printed) == pytest.approx(mos, abs=1e-4)


def test_the_loss_of_a_rated_clip_is_computed_as_for_a_batch_of_this_clip_alone(capsys):
    clip = a_test_clip()
    (_, mos), = evaluate.score(small_run(), [clip.path], "cpu")
    explain.explain(small_run(), clip.path, "cpu")
    *_, rated, last = capsys.readouterr().out.splitlines()
    assert rated == (f"rated MOS {clip.mos:.2f}, class {clip.model}; a batch of it alone has at "
                     "the end of stage mos:")
    terms = {name: float(value) for name, value in re.findall(r"(\w+) (\d+\.\d{4})", last)}
    trained = evaluate.load_run(small_run(), "cpu")
    by_hand = moemos.mos_loss(*torch.tensor([[mos], [clip.mos]]) / trained.model.deviation).item()
    assert terms["mos"] == pytest.approx(by_hand, abs=1e-4)
    total = (0.9 * terms["mos"] + 0.1 * terms["classification"]
             + trained.config.lambda_1 * terms["diversity"]
             + trained.config.lambda_2 * terms["sparsity"])
    assert terms["total"] == pytest.approx(total, abs=2e-4)


def test_no_loss_is_printed_if_training_has_not_seen_the_class_of_the_clip(capsys):
    clip = a_test_clip()
    trained = evaluate.load_run(small_run(), "cpu")
    trained = trained._replace(classes=[f"not {name}" for name in trained.classes])
    _, features = evaluate.read_clip(clip.path, trained)
    explain.show_loss(small_run(), clip.path, trained, evaluate.predict(trained.model, features))
    assert not capsys.readouterr().out


def test_no_loss_is_printed_if_the_clip_has_no_rating_or_the_corpus_is_gone(monkeypatch, capsys):
    clips = data.read_ratings(small_corpus())
    unrated = next(clip for clip in clips if math.isnan(clip.mos))
    explain.explain(small_run(), unrated.path, "cpu")
    out = capsys.readouterr().out
    assert "most probable class: " in out and "loss" not in out and "rated MOS" not in out

    def gone(path, scale):
        raise data.InputError(f"{path} is gone")
    monkeypatch.setattr(data, "read_ratings", gone)
    explain.explain(small_run(), unrated.path, "cpu")
    assert f"no loss: {small_corpus()} is gone\n" in capsys.readouterr().out


def test_names_reach_the_terminal_without_control_characters(monkeypatch, capsys):
    clip = a_test_clip()
    trained = evaluate.load_run(small_run(), "cpu")
    trained = trained._replace(classes=[f"{name}\x1b[2J" for name in trained.classes])
    clip.model = trained.classes[0]
    monkeypatch.setattr(data, "read_ratings", lambda path, scale: [clip])
    monkeypatch.setattr(evaluate, "load_run", lambda run, device, backbone: trained)
    explain.explain(small_run(), clip.path, "cpu")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert rf"class {data.printable(clip.model)}; a batch" in out


@pytest.mark.parametrize(("words", "why"), [
    (["a.wav", "no_run"], "no_run/model.pt cannot be read"),
    (["a.wav", "run", "--other"], "unrecognized arguments: --other"),
    ([], "required: WAV")])
def test_a_missing_run_or_a_bad_option_gets_a_sentence_and_status_2(
        tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, explain, *words) == 2
    assert why in capsys.readouterr().err
