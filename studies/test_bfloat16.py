"""Tests of studies/bfloat16.py."""

import pytest
import torch

import data
import evaluate
import moemos
from studies import bfloat16
from test_moemos import (  # noqa: F401 - fixture
    call,
    hub_with_base_weights,
    no_network,
    small_corpus,
    table,
)

SUPPORTED = torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bfloat16 = pytest.mark.skipif(not SUPPORTED, reason="this processor has no bfloat16")


def test_it_is_refused_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(data.InputError, match="bfloat16: this processor does not have it"):
        bfloat16.open_half("logmel", "cpu")


@needs_bfloat16
def test_it_is_another_backbone_that_says_nearly_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    hub_with_base_weights(tmp_path)
    full = moemos.load_backbone("WAV2VEC2_BASE")
    half = bfloat16.open_half("WAV2VEC2_BASE", "cpu")
    assert (half.name, half.layers, half.width) == (full.name, full.layers, full.width)
    assert full.identity != half.identity  # so neither's features are taken for the other's
    torch.manual_seed(0)
    waveform = torch.randn(8000)
    one, other = full.extract(waveform), half.extract(waveform)
    assert other.dtype == torch.float32
    assert 0 < (one - other).norm() / one.norm() < 0.05


@needs_bfloat16
def test_a_matrix_product_is_rounded_to_eight_bits():
    class Product(torch.nn.Module):
        def extract_features(self, waveforms):
            product = waveforms[:, :400] @ torch.eye(400)  # of float32 it would be exact
            return [product[:, :, None]], None

    half = bfloat16.HalfPrecision("product", Product(), 16000)
    waveform = torch.full((400,), 1 + 2 ** -9)  # bfloat16 has 8 bits: between 1 and 1 + 2^-7
    assert torch.equal(half.extract(waveform), torch.ones(1, 400, 1))


@needs_bfloat16
def test_a_run_is_trained_evaluated_and_not_taken_for_one_in_float32(tmp_path, monkeypatch):
    run = tmp_path / "half"
    words = ("--data", small_corpus(), "--backbone", "logmel", "--cache", tmp_path / "cache")
    assert call(monkeypatch, bfloat16, *words, "--steps", 1, "--device", "cpu", "--out", run) == 0
    rows = table(run / "predictions.csv")
    with pytest.raises(data.InputError, match="trained on a logmel with other weights"):
        evaluate.load_run(run, "cpu")
    trained = evaluate.load_run(run, backbone=bfloat16.open_half("logmel", "cpu"))
    _, features = evaluate.read_clip(small_corpus() / rows[0]["wav"], trained)
    mos = evaluate.predict(trained.model, features).mos.item()
    assert mos == float(rows[0]["predicted"])


def test_runs_lie_apart_from_those_in_float32_and_unknown_options_are_refused(
        monkeypatch, capsys):
    configs = []
    monkeypatch.setattr(bfloat16, "run", configs.append)
    assert call(monkeypatch, bfloat16, "--backbone", "logmel") == 0
    assert configs[0].out == "runs/bfloat16"
    assert call(monkeypatch, bfloat16, "--precision", "half") == 2
    assert "unrecognized arguments: --precision half" in capsys.readouterr().err
