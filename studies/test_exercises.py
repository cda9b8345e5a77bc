"""Tests that say whether an exercise of exercises.md came out right, and that its names exist."""

import pkgutil
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchaudio
from scipy.io import wavfile

import data
import evaluate
import moemos
import train
from test_moemos import HERE, nan, no_network, quick, small_corpus, table  # noqa: F401 - fixture

TEXT = (HERE / "studies" / "exercises.md").read_text(encoding="utf-8")


def test_every_name_in_the_exercises_exists():
    names = re.findall(r"`((?:moemos|train|evaluate|data)(?:\.[A-Za-z_]\w*)+)`", TEXT)
    assert len(names) > 15
    for name in names:
        pkgutil.resolve_name(name)  # raises for one that is not there


def test_every_exercise_names_its_test():
    exercises = re.split(r"^(\d+)\. ", TEXT, flags=re.MULTILINE)[1:]
    assert exercises[::2] == [str(i) for i in range(1, 13)]
    for number, body in zip(exercises[::2], exercises[1::2]):
        own = [name for name in globals() if name.startswith(f"test_exercise_{number}_")]
        assert re.findall(r"`(test_\w+)`", body) == own
        assert len(own) == 1


def build(clips, **settings):
    """-> (the untrained model of Clips, the default settings and these)."""
    config = train.Config(**settings)
    weights = start_of(clips)
    torch.manual_seed(0)
    return train.build_model(config, weights), config


def start_of(clips):
    rated = int((~clips.mos.isnan()).sum())
    classes = int(clips.model.max()) + 1
    return moemos.start(*clips, classes, np.arange(rated) % 5)


def alike_in_all_but_one_way(clips=200, inputs=320):
    """Clips of which all features, MOS and class follow one and the same number."""
    torch.manual_seed(0)
    number = torch.randn(clips, 1)
    features = number @ torch.randn(1, inputs) + 0.5 * torch.randn(clips, inputs)
    mos = 3 + number[:, 0]
    return train.Clips(features.view(clips, 2, inputs // 2), mos, (mos > 3).long())


def test_exercise_1_of_one_expert_the_regularisers_are_1_and_the_entropies_0(tmp_path):
    train.train(quick(small_corpus(), tmp_path, experts=1))
    for row in table(tmp_path / "run" / "log.csv"):
        assert [float(row[name]) for name in ("diversity", "sparsity", "gate_1")] == [1, 1, 1]
        assert [float(row[name]) for name in ("gate_entropy", "mean_gate_entropy")] == [0, 0]
        assert "gate_2" not in row


class HardGate(torch.nn.Linear):
    """Scores whose softmax is one-hot."""

    def forward(self, x):
        best = super().forward(x).argmax(1)
        return 1e4 * torch.nn.functional.one_hot(best, self.out_features).float()


@pytest.mark.parametrize(("gate", "learns"), [(torch.nn.Linear, True), (HardGate, False)])
def test_exercise_2_a_hard_gate_does_not_learn_and_a_soft_one_does(gate, learns):
    clips = alike_in_all_but_one_way()
    model, config = build(clips)
    model.moe.gate = gate(model.moe.gate.in_features, 4)
    before = model.moe.gate.weight.detach().clone()
    list(train.run_stage(model, train.STAGES[1]._replace(steps=20), config, clips))
    assert torch.equal(before, model.moe.gate.weight) is not learns


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


def test_exercise_5_sparsity_alone_collapses_and_diversity_cures():
    torch.manual_seed(0)
    features = torch.randn(200, 2, 2)
    mos = 3 + features[:, 0, 0] + torch.randn(200)
    clips = train.Clips(features, mos, (mos > 3).long())
    use, of_all, of_a_clip = {}, {}, {}
    for lr, weight in ((1e-4, 0.0), (1e-2, 0.0), (1e-2, 10.0)):
        model, config = build(clips, lambda_1=weight, lambda_2=10.0)
        stage = train.STAGES[1]._replace(steps=300, lr=lr)
        *_, last = train.run_stage(model, stage, config, clips)
        use[lr, weight] = [last[f"gate_{i}"] for i in range(1, 5)]
        of_all[lr, weight] = last["mean_gate_entropy"]
        of_a_clip[lr, weight] = last["gate_entropy"]
    assert min(use[1e-2, 0.0]) < 0.1 and of_all[1e-2, 0.0] < 1.1
    assert min(use[1e-2, 10.0]) > 0.15 and of_all[1e-2, 10.0] > 1.3
    assert max(of_a_clip[1e-2, 0.0], of_a_clip[1e-2, 10.0]) < 0.8
    assert of_a_clip[1e-4, 0.0] > 1.2  # the gate has hardly moved


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


def test_exercise_8_a_class_label_moves_the_weights_behind_y():
    clips = alike_in_all_but_one_way()
    model, config = build(clips, lambda_1=0.0, lambda_2=0.0)
    heads = {"class_head.weight", "class_head.bias"}
    behind = {name for name, _ in model.named_parameters() if name.startswith("moe.")}
    at_first = {"moe.path.weight", *(name for name in behind if name.split(".")[-2] == "2")}
    some = clips.take(slice(6))
    without_mos = some._replace(mos=torch.full((6,), nan))

    def moved(cut=False):
        output = model(some.features)
        if cut:
            output = output._replace(logits=model.class_head(output.y.detach()))
        terms = moemos.losses(output, without_mos.mos, some.model, 0.5, 0.5, 0, 0)
        names, parameters = zip(*model.named_parameters())
        gradients = torch.autograd.grad(terms["total"], parameters, materialize_grads=True,
                                        allow_unused=True)
        return {name for name, own in zip(names, gradients) if own.abs().max() > 1e-6}
    assert len(at_first) == 1 + 2 * 4
    assert moved() == heads | at_first
    list(train.run_stage(model, train.STAGES[0]._replace(steps=3), config, without_mos))
    assert moved() == heads | behind
    assert moved(cut=True) == heads


def test_exercise_9_silence_at_the_ends_changes_nothing_and_would_change_much(
        tmp_path, monkeypatch):
    backbone = moemos.load_backbone("logmel")
    rng = np.random.default_rng(0)
    clip, silence = 0.1 * rng.normal(size=48000), np.zeros(48000)
    for name, parts in (("clip", [clip]), ("longer", [silence, clip, silence])):
        wavfile.write(tmp_path / f"{name}.wav", 48000, np.concatenate(parts).astype(np.float32))

    def mean_features():
        waveforms = (data.read_wav(tmp_path / f"{name}.wav", 16000) for name in ("clip", "longer"))
        return [backbone.extract(waveform)[0].mean(0) for waveform in waveforms]
    assert torch.equal(*mean_features())
    monkeypatch.setattr(data, "cut_silence", lambda mono, rate: mono)
    own, longer = mean_features()
    assert (own - longer).min() > 3  # in nepers; the logs of a clip's frames differ by about 1


def test_exercise_10_folds_that_tear_groups_promise_too_much():
    rng = np.random.default_rng(0)

    def talkers(number):
        """Five clips each, alike in 40 features and in their MOS, of which features say nothing."""
        features = np.repeat(rng.normal(size=(number, 40)), 5, axis=0)
        mos = np.repeat(rng.normal(3, 1, number), 5)
        return (features + 0.1 * rng.normal(size=features.shape),
                mos + 0.1 * rng.normal(size=len(mos)))
    x, y = talkers(30)
    new, true = talkers(200)
    clips = [SimpleNamespace(group=str(i // 5)) for i in range(len(y))]
    promised, kept = [], []
    for fold in (data.folds_of(clips, 5), np.arange(len(y)) % 5):
        alpha = [moemos.strength(x, y, fold)]
        errors = sum(np.square(moemos.ridge(x[fold != k], y[fold != k], x[fold == k], alpha)
                               - y[fold == k]).sum() for k in range(5))
        promised.append(errors / len(y))
        kept.append(np.square(moemos.ridge(x, y, new, alpha) - true).mean())
    assert promised[0] == pytest.approx(kept[0], rel=0.3)
    assert promised[1] < 0.1 * kept[1]
    assert kept[1] > 1.5 * kept[0]  # for lack of a penalty


def test_exercise_11_ridge_keeps_a_share_of_each_axis_and_training_hears_as_much_of_it():
    rng = np.random.default_rng(0)
    x, alpha = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), 0.3
    z = (x - x.mean(0)) / x.std(0)
    y = rng.normal(size=60)
    least_squares, *_ = np.linalg.lstsq(z, y - y.mean(), rcond=None)
    ridge = moemos.ridge(x, y, np.vstack([np.diag(x.std(0)) + x.mean(0), x.mean(0)]), [alpha])[0]
    weights = ridge[:8] - ridge[8]  # how much each feature adds that is a deviation higher
    variance, axes = np.linalg.eigh(z.T @ z / 60)
    share = variance / (variance + alpha * 8 / 60)
    assert share.max() > 0.9 and share.min() < 0.5
    np.testing.assert_allclose(weights @ axes, share * (least_squares @ axes), atol=1e-9)

    clips = alike_in_all_but_one_way()
    clips = clips._replace(mos=clips.mos + torch.randn(200))
    start = start_of(clips)
    kept = build(clips)[0].fusion(clips.features).std(0, correction=0)
    assert kept[0] > 0.9 and kept[-1] < 0.2
    loud = start | {"fusion.axes": start["fusion.axes"] / kept,
                    "moe.path.weight": start["moe.path.weight"] * kept}
    before, after = [], []
    for weights in (start, loud):
        torch.manual_seed(0)
        model = train.build_model(train.Config(), weights)
        before.append(model(clips.features).mos.detach())
        list(train.run_stage(model, train.STAGES[1], train.Config(), clips))
        after.append(model(clips.features).mos.detach())
    torch.testing.assert_close(*before, atol=1e-4, rtol=0)
    near, far = ((one - other).std() for one, other in zip(before, after))
    assert far > 1.5 * near


def test_exercise_12_a_difference_of_pairs_is_shown_where_intervals_overlap():
    rng = np.random.default_rng(0)
    true = rng.normal(3, 1, 200)
    systems = [f"s{i % 10}" for i in range(200)]
    one = true + rng.normal(0, 0.5, 200)
    other = one + rng.normal(0, 0.25, 200)  # it has all of one's errors, and some of its own
    name = "utterance LCC"
    lcc, left_out = zip(*[(moemos.metrics(said, true, systems)[name],
                           evaluate.leave_one_out(said, true, systems)[name])
                          for said in (one, other)])
    own = [evaluate.interval(*pair, name) for pair in zip(lcc, left_out)]
    assert own[0][0] < own[1][1]  # they overlap
    difference = lcc[0] - lcc[1]
    bounds = evaluate.interval(difference, left_out[0] - left_out[1])
    assert evaluate.verdict(name, difference, *bounds) == "better"
    of_itself = evaluate.interval(0, left_out[0] - left_out[0])
    assert evaluate.verdict(name, 0, *of_itself) == "-"
