"""Tests of the parts that studies/fusion.py replaces, each against a plain computation."""

import json

import numpy as np
import pytest
import torch

import data
import evaluate
import moemos
import train
from studies import fusion
from test_moemos import call, no_network, quick, small, table  # noqa: F401 - fixtures

CONFIG = train.Config(hidden=7, experts=3)


@pytest.fixture(scope="module")
def backbone():
    return moemos.load_backbone("logmel")


def built(part, backbone):
    """An untrained model with the part, of three classes, in eval mode."""
    torch.manual_seed(0)
    return fusion.PARTS[part](CONFIG, backbone, ["a", "b", "c"]).eval()


def some_features(layers=3, width=5):
    torch.manual_seed(1)
    return 3 * torch.randn(20, layers, 2 * width) + torch.arange(layers)[:, None]


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


# -- The parts -------------------------------------------------------------------------------------

def test_summed_is_the_sum_of_the_weighted_layers_in_a_plain_loop():
    summed, features = fusion.SummedFusion(3, 5), some_features()
    summed.set_statistics(features)
    summed.layer_logits.data = torch.tensor([0.0, 1.0, 2.0])
    weights = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    normal = standardised(features.numpy())
    expected = sum(weights[layer] * normal[:, layer] for layer in range(3))
    np.testing.assert_allclose(summed(features).detach(), expected, atol=1e-5)


def test_layer_norm_standardises_each_layer_of_a_clip_first():
    normed, features = fusion.LayerNormFusion(3, 5), some_features()
    normed.set_statistics(features)
    x = features.numpy()
    own = (x - x.mean(2, keepdims=True)) / np.sqrt(x.var(2, keepdims=True) + 1e-5)
    expected = standardised(own).reshape(20, 30) / 3
    np.testing.assert_allclose(normed(features).detach(), expected, atol=1e-4)
    louder = features * torch.tensor([1.0, 1000.0, 0.5])[:, None] + 10
    torch.testing.assert_close(normed(louder), normed(features), atol=1e-3, rtol=1e-3)


def test_equal_weights_are_a_third_each_of_three_layers():
    equal, features = fusion.EqualFusion(3, 5), some_features()
    equal.set_statistics(features)
    expected = standardised(features.numpy()).reshape(20, 30) / 3
    np.testing.assert_allclose(equal(features).detach(), expected, atol=1e-5)


def test_without_linear_path_an_expert_is_its_own_two_layers_in_a_plain_loop():
    torch.manual_seed(0)
    moe = fusion.ExpertsAlone(10, experts=3, hidden=7, dropout=0.5).eval()
    x = torch.randn(4, 10)
    y, gates, experts = moe(x)
    for b in range(4):
        total = torch.zeros(7)
        for e in range(3):
            hidden = torch.nn.functional.gelu(x[b] @ moe.w1[e] + moe.b1[e])
            expert = hidden @ moe.w2[e] + moe.b2[e]
            torch.testing.assert_close(experts[b, e], expert)
            total = total + gates[b, e] * expert
        torch.testing.assert_close(y[b], total)


def test_a_wide_expert_is_two_layers_and_has_as_many_weights_as_four_together():
    torch.manual_seed(0)
    wide = fusion.WideExpert(10, experts=4, hidden=7, dropout=0.5).eval()
    four = moemos.MixtureOfExperts(10, experts=4, hidden=7, dropout=0.5)
    for name in ("v", "w1", "w2"):
        assert getattr(wide, name).numel() == getattr(four, name).numel()
    wide.b1.data.normal_()
    wide.b2.data.normal_()
    x = torch.randn(4, 10)
    y, gates, experts = wide(x)
    for b in range(4):
        inner = torch.nn.functional.gelu(x[b] @ wide.w1 + wide.b1)
        torch.testing.assert_close(y[b], x[b] @ wide.v + inner @ wide.w2 + wide.b2)
    assert torch.equal(gates, torch.ones(4, 1))
    assert torch.equal(experts, y[:, None])


def test_a_mos_head_that_reads_y_alone_hears_of_no_class(backbone):
    model = built("MOS head reads y alone", backbone)
    features = torch.randn(6, 3, 160)
    output = model(features)
    by_hand = 3 + output.y @ model.mos_head.weight[0] + model.mos_head.bias  # 3: middle of 1 to 5
    torch.testing.assert_close(output.mos, by_hand)
    torch.testing.assert_close(output.logits, model.class_head(output.y))
    model.class_head.weight.data += 1.0
    assert torch.equal(model(features).mos, output.mos)
    whole = train.build_model(CONFIG, backbone, ["a", "b", "c"]).eval()
    before = whole(features).mos
    whole.class_head.weight.data[0] += 1.0
    assert not torch.equal(whole(features).mos, before)


# -- The models ------------------------------------------------------------------------------------

def test_each_model_has_its_part_and_the_rest_as_it_was(backbone):
    usual = train.build_model(CONFIG, backbone, ["a", "b", "c"])
    replaced = {
        "summed": {"fusion": fusion.SummedFusion, "moe": moemos.MixtureOfExperts},
        "layer norm": {"fusion": fusion.LayerNormFusion},
        "no linear path": {"moe": fusion.ExpertsAlone},
        "MOS head reads y alone": {"": fusion.SeparateHeads},
        "equal weights": {"fusion": fusion.EqualFusion},
        "wide": {"moe": fusion.WideExpert}}
    assert list(fusion.PARTS) == list(replaced)
    for part, own in replaced.items():
        model = built(part, backbone)
        for name, module in usual.named_modules():
            if part == "wide" and name == "moe.gate":
                continue  # which it has not
            assert type(model.get_submodule(name)) is own.get(name, type(module))
        inputs = 160 if part == "summed" else 3 * 160
        wide = (inputs, 4 * 7)  # as wide as the default's experts together
        assert tuple(model.moe.w1.shape) == (wide if part == "wide" else (3, inputs, 7))
        assert model(torch.randn(2, 3, 160)).mos.isfinite().all()


@pytest.mark.parametrize(("part", "fixed"), [
    ("no linear path", "moe.v"), ("equal weights", "fusion.layer_logits")])
def test_what_is_zero_stays_zero_through_training(small, tmp_path, part, fixed):
    fusion.run(quick(small, tmp_path), part)
    weights = torch.load(tmp_path / "run" / "model.pt")["weights"]
    assert (weights[fixed] == 0).all()
    train.train(quick(small, tmp_path))
    weights = torch.load(tmp_path / "run" / "model.pt")["weights"]
    assert weights[fixed].abs().min() > 0  # the usual one does not


@pytest.mark.parametrize("part", fusion.PARTS)
def test_a_run_is_loaded_with_its_part_and_scores_as_it_did(small, tmp_path, part):
    fusion.run(quick(small, tmp_path), part)
    rows = {row["wav"]: row for row in table(tmp_path / "run" / "predictions.csv")}
    trained = evaluate.load_run(tmp_path / "run", "cpu", build=fusion.PARTS[part])
    _, features = evaluate.read_clip(small / "40.wav", trained)
    mos = evaluate.predict(trained.model, features).mos.item()
    assert mos == float(rows["40.wav"]["predicted"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["clips"] == 16


@pytest.mark.parametrize("part", ["summed", "layer norm", "MOS head reads y alone"])
def test_what_the_core_would_score_otherwise_is_refused_by_it(small, tmp_path, part):
    train.train(quick(small, tmp_path), build=fusion.PARTS[part])
    with pytest.raises(data.InputError, match="of another version"):
        evaluate.load_run(tmp_path / "run", "cpu")


def test_the_command_line_trains_and_evaluates(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--data", small, "--backbone", "logmel", "--steps", 1)
    assert call(monkeypatch, fusion, *words, "--part", "no linear path") == 0
    assert (tmp_path / "runs" / "fusion_part" / "metrics.json").exists()
    assert call(monkeypatch, fusion, "--part", "none") == 2
    assert call(monkeypatch, fusion, "--data", "nowhere", "--backbone", "logmel") == 2


def test_the_command_line_scores_clips_by_a_run_with_its_part(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    part = ("--part", "MOS head reads y alone")
    fusion.run(quick(small, tmp_path), part[1])
    rows = {row["wav"]: row for row in table(tmp_path / "run" / "predictions.csv")}
    capsys.readouterr()
    words = (*part, "--out", tmp_path / "run", "--wav", small / "40.wav")
    assert call(monkeypatch, fusion, *words) == 0
    mos = float(rows["40.wav"]["predicted"])
    assert capsys.readouterr().out == f"wav,mos\n{small / '40.wav'},{mos:.4f}\n"
    assert call(monkeypatch, fusion, *words, small / "ratings.csv") == 1  # one is skipped
    assert call(monkeypatch, fusion, *part, "--wav", small / "40.wav") == 2
    assert "runs/fusion_part/model.pt" in capsys.readouterr().err
