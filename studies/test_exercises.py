"""Tests that say whether an exercise of exercises.md came out right, and that its names exist."""

import pkgutil
import re

import pytest
import torch
import torchaudio

import moemos
import train
from test_moemos import (  # noqa: F401 - fixture
    HERE,
    nan,
    no_network,
    quick,
    simulated_corpus,
    some_output,
    table,
)


def test_every_name_in_the_exercises_exists():
    text = (HERE / "studies" / "exercises.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:moemos|train|evaluate|data|studies)(?:\.[A-Za-z_]\w*)+)`", text)
    modules = re.findall(r"python -m (studies\.\w+)", text)
    assert len(names) > 10 and modules
    for name in [*names, *modules]:
        pkgutil.resolve_name(name)  # raises for one that is not there
    named = set(re.findall(r"`(test_\w+)`", text))
    files = [*HERE.glob("test_*.py"), *HERE.glob("*/test_*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert len(named) > 10 and named <= set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))


def test_every_exercise_with_a_test_of_its_own_names_it():
    text = (HERE / "studies" / "exercises.md").read_text(encoding="utf-8")
    exercises = re.split(r"^(\d+)\. ", text, flags=re.MULTILINE)[1:]
    numbers, bodies = exercises[::2], exercises[1::2]
    assert numbers == [str(i) for i in range(1, 13)]
    for number, body in zip(numbers, bodies):
        own = [name for name in globals() if name.startswith(f"test_exercise_{number}_")]
        assert all(f"`{name}`" in body for name in own)


def test_exercise_2_a_hard_gate_does_not_learn_and_a_soft_one_does():
    model, _ = some_output()
    x = torch.randn(6, 30)
    scores = model.moe.gate(x)
    hard = torch.nn.functional.one_hot(scores.argmax(1), 4).float()
    for gates, learns in ((scores.softmax(1), True), (hard, False)):
        _, _, experts = model.moe(x)
        loss = torch.einsum("be,beh->bh", gates, experts.detach()).square().sum()
        assert loss.requires_grad is learns
        if learns:
            (gradient,) = torch.autograd.grad(loss, model.moe.gate.weight)
            assert gradient.abs().sum() > 0


def test_exercise_3_l1_of_a_softmax_teaches_nothing():
    scores = torch.randn(6, 4, requires_grad=True)
    l1 = scores.softmax(1).norm(p=1, dim=1).mean()
    (gradient,) = torch.autograd.grad(l1, scores)
    assert l1.item() == pytest.approx(1)
    assert gradient.abs().max() < 1e-7
    (gradient,) = torch.autograd.grad(moemos.sparsity_loss(scores.softmax(1)), scores)
    assert gradient.abs().max() > 1e-3


def small_wav2vec2():
    """A wav2vec2 with group norm, as WAV2VEC2_BASE is built, of 32 channels and 2 layers."""
    convolutions = [(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2]
    return torchaudio.models.wav2vec2_model(
        extractor_mode="group_norm", extractor_conv_layer_config=convolutions,
        extractor_conv_bias=False, encoder_embed_dim=32, encoder_projection_dropout=0,
        encoder_pos_conv_kernel=16, encoder_pos_conv_groups=4, encoder_num_layers=2,
        encoder_num_heads=2, encoder_attention_dropout=0, encoder_ff_interm_features=64,
        encoder_ff_interm_dropout=0, encoder_dropout=0, encoder_layer_norm_first=False,
        encoder_layer_drop=0, aux_num_out=None)


def test_exercise_4_a_padded_batch_changes_a_clips_features():
    torch.manual_seed(0)
    backbone = moemos.Backbone("small", small_wav2vec2(), 16000)
    short, long = torch.randn(8000), torch.randn(16000)
    alone = backbone.extract(short)
    padded = torch.nn.functional.pad(short, (0, 8000))
    with torch.no_grad():
        layers, _ = backbone.network.extract_features(
            torch.stack([padded, long]), torch.tensor([8000, 16000]))
    in_batch = torch.stack([layer[0, :alone.shape[1]] for layer in layers])
    assert 0.1 < (alone - in_batch).norm() / alone.norm() < 1
    assert torch.equal(backbone.extract(short), alone)


def test_exercise_5_sparsity_alone_collapses_and_diversity_cures(tmp_path):
    use, entropy = {}, {}
    for weight in (0.0, 10.0):
        train.train(quick(simulated_corpus(), tmp_path, lambda_1=weight, lambda_2=10.0, steps=400,
                          augmentation="no"))
        last = table(tmp_path / "run" / "log.csv")[-1]
        use[weight] = [float(last[f"gate_{i}"]) for i in range(1, 5)]
        entropy[weight] = float(last["mean_gate_entropy"])
    assert min(use[0.0]) < 0.05 and entropy[0.0] < 1.2
    assert min(use[10.0]) > 0.15 and entropy[10.0] > 1.3


def test_exercise_6_a_second_cosine_on_a_used_optimiser_stays_at_zero():
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.ones(1)
    optimiser = torch.optim.AdamW([weight], lr=0.1)
    moved = []
    for _stage in range(2):
        before = weight.item()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=5)
        for _ in range(5):
            optimiser.step()
            schedule.step()
        moved.append(abs(weight.item() - before))
    assert moved[0] > 0.1 and moved[1] < 1e-6
    assert train.learning_rate(0, 5, 0.1) == 0.1  # ours knows of no earlier stage


def test_exercise_7_a_column_of_ratings_would_be_compared_with_every_clip():
    predicted = torch.tensor([1.0, 2.0, 4.0])
    ratings = torch.tensor([1.0, 2.0, 4.0])
    with pytest.warns(UserWarning, match="will likely lead to incorrect results"):
        broadcast = torch.nn.functional.smooth_l1_loss(predicted, ratings[:, None])
    assert moemos.mos_loss(predicted, ratings) == 0
    assert broadcast.item() == pytest.approx(2 * (0.5 + 2.5 + 1.5) / 9)


def test_exercise_8_a_class_label_moves_the_experts_that_the_mos_head_reads():
    model, _ = some_output()
    features = torch.randn(6, 3, 10)
    without_mos, labels = torch.full((6,), nan), torch.zeros(6, dtype=torch.long)
    learned = (model.moe.w1, model.moe.w2, model.moe.gate.weight, model.fusion.layer_logits)
    output = model(features)
    terms = moemos.losses(output, without_mos, labels, 0.5, 0.5, lambda_1=0, lambda_2=0)
    gradients = torch.autograd.grad(terms["total"], learned)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)

    output = model(features)
    cut = output._replace(logits=model.class_head(output.y.detach()))
    terms = moemos.losses(cut, without_mos, labels, 0.5, 0.5, lambda_1=0, lambda_2=0)
    of_head, *gradients = torch.autograd.grad(
        terms["total"], (model.class_head.weight, *learned), allow_unused=True)
    assert of_head.abs().sum() > 0
    assert all(gradient is None or gradient.abs().sum() == 0 for gradient in gradients)
