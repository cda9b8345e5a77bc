"""Tests of the engine (splits, variants, kept predictions), of the tables and of the questions."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from scipy.io import wavfile

import data
import evaluate
import moemos
import train
from studies import lab, questions, raters, tables, variants
from studies.lab import LABELS, MEAN, METHOD, RIDGE, Cell, Job
from test_moemos import HERE, draw_systems, nan, no_network, plain_ridge  # noqa: F401 - a fixture


def make_corpus(clips=24, seed=0):
    """Clips of three systems and four groups, whose MOS depends on their features. The last three
    clips have no MOS, and are of another system and synthesis model."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(clips, 2, 8)).astype(np.float32))
    made = []
    for i in range(clips):
        rated = i < clips - 3
        score = 3 + float(features[i, 0, 0]) + i % 3 / 4 + rng.normal() / 2
        mos = {"": score} if rated else {}
        system = f"s{i % 3}" if rated else "x"
        split = "test" if rated and i % 4 == 0 else "train"
        made.append(data.Clip(f"{i}.wav", None, split, system, system, f"g{i % 4}", mos))
    return lab.Corpus(made, features, None)


@pytest.fixture
def lone(monkeypatch, tmp_path):
    """The engine works on this corpus alone, in the process of the test."""
    corpus = make_corpus()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "load", lambda name, backbone: corpus)
    monkeypatch.setattr(lab, "run", lambda jobs: [lab.do(job) for job in jobs])
    return corpus


# -- Splits ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("how", "kind"), [
    ("groups", lambda clip: clip.group), ("system", lambda clip: clip.system),
    ("model", lambda clip: clip.model), ("family", lambda clip: clip.system[:2])])
def test_every_rated_clip_is_predicted_once_without_learning_from_what_is_left_out(how, kind):
    corpus = make_corpus()
    for clip in corpus.clips[::2]:
        clip.system += " at a higher rate"
    names = np.array([kind(clip) for clip in corpus.clips])
    times = np.zeros(len(names), int)
    for learned, predicted in lab.split(corpus, how):
        times += predicted
        assert not set(names[learned & corpus.rated]) & set(names[predicted])
        assert learned[~corpus.rated].all()
    assert (times == corpus.rated).all()


def test_a_clip_can_be_predicted_from_other_systems_and_other_groups_only():
    corpus = make_corpus()
    systems = np.array([clip.system for clip in corpus.clips])
    groups = np.array([clip.group for clip in corpus.clips])
    times = np.zeros(len(systems), int)
    for learned, predicted in lab.split(corpus, "system and groups"):
        assert not set(systems[learned]) & set(systems[predicted])
        assert not set(groups[learned & corpus.rated]) & set(groups[predicted])
        assert (learned & corpus.rated).any()
        times += predicted
    assert (times == corpus.rated).all()


def test_the_split_of_the_table_can_be_used_and_few_clips_of_each_system_can_be_learned_from():
    corpus = make_corpus()
    parts = np.array([clip.split for clip in corpus.clips])
    [(learned, predicted)] = lab.split(corpus, "test")
    assert (learned == (parts == "train")).all()
    assert (predicted == (parts == "test")).all()
    systems = np.array([clip.system for clip in corpus.clips])
    for learned, predicted in lab.split(corpus, "groups, 2 a system"):
        counts = [np.sum(learned & (systems == name)) for name in ("s0", "s1", "s2")]
        assert counts == [2, 2, 2]
        assert not (learned & predicted).any()


def test_each_seed_draws_the_few_clips_of_each_system_anew_and_the_same_for_every_variant():
    corpus = make_corpus()
    drawn = [np.concatenate([learned for learned, _ in lab.split(corpus, "groups, 2 a system", s)])
             for s in (0, 0, 1)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    jobs = questions.jobs_of(questions.QUESTIONS["few_clips"])
    seeds = {}
    for job in jobs:
        seeds.setdefault((job.variant.name, job.cell), []).append(job.seed)
    assert len(seeds) == 6 * 8
    assert all(own == [0, 1, 2, 3, 4] for own in seeds.values())


def test_a_family_is_all_systems_of_one_synthesiser_codec_or_experiment():
    clip = make_corpus().clips[0]
    for system, family in (("mozilla_kjv", "mozilla"), ("opus 6 kbit/s", "opus"), ("opus", "opus"),
                           ("Exp.1/model", "Exp.1"), ("lyra-v2 3", "lyra-v2")):
        clip.system = system
        assert lab.family(clip) == family


def test_folds_for_the_penalty_are_of_what_is_left_out_or_else_of_whole_groups():
    corpus = make_corpus()
    rows = corpus.rated & (np.arange(24) > 3)
    kinds = {"system": lambda clip: clip.system, "model": lambda clip: clip.model,
             "family": lambda clip: clip.system, "groups": lambda clip: clip.group,
             "groups, 2 a system": lambda clip: clip.group, "test": lambda clip: clip.group}
    for how, kind in kinds.items():
        own = [kind(clip) for clip, row in zip(corpus.clips, rows) if row]
        names = sorted(set(own))
        expected = [names.index(name) % 5 for name in own]
        assert lab.folds_for(corpus, rows, how).tolist() == expected
    assert [clip.group for clip in corpus.clips] == [f"g{i % 4}" for i in range(24)]


def test_training_uses_the_features_mos_and_classes_of_the_clips_to_learn_from():
    corpus = make_corpus()
    learned = np.arange(24) % 2 == 1
    clips = lab.training_clips(METHOD, corpus, learned, 0)
    assert torch.equal(clips.features, corpus.features[1::2])
    np.testing.assert_array_equal(clips.mos, corpus.mos[1::2])
    names = sorted({clip.model for clip in corpus.clips[1::2]})
    assert [names[i] for i in clips.label] == [clip.model for clip in corpus.clips[1::2]]
    rated = lab.training_clips(variants.RATED, corpus, learned, 0)
    assert len(rated.mos) == (learned & corpus.rated).sum() < len(clips.mos)
    assert not rated.mos.isnan().any()


def test_a_synthesis_model_with_super_resolution_counts_as_the_one_without():
    clip = make_corpus().clips[0]
    clip.model = "ttsSR"
    assert lab.base_model(clip) == "tts"


# -- Variants --------------------------------------------------------------------------------------

def test_the_method_in_the_studies_is_that_of_train_py():
    corpus = make_corpus()
    rows = np.array([clip.split == "train" for clip in corpus.clips])
    found = lab.predict(Job(METHOD, Cell("a", "b", "test"), 3), corpus)
    config = train.Config(seed=3)
    learned = [clip for clip, row in zip(corpus.clips, rows) if row]
    classes = sorted({clip.model for clip in learned})
    clips = train.Tensors(corpus.features[torch.from_numpy(rows)],
                        torch.tensor([clip.mos for clip in learned]),
                        torch.tensor([classes.index(clip.model) for clip in learned]))
    fold = data.folds_of([clip for clip in learned if clip.ratings], train.FOLDS)
    weights = moemos.start(clips.features, torch.from_numpy(corpus.mos[rows]), clips.label,
                           len(classes), fold)
    torch.manual_seed(3)
    network = train.build_model(config, weights)
    train.run_stages(network, train.STAGES, config, clips)
    test = torch.tensor([clip.split == "test" for clip in corpus.clips])
    expected = evaluate.predict(network.eval(), corpus.features[test]).mos
    assert torch.equal(torch.from_numpy(found["mos"])[test].float(), expected)
    assert np.isnan(found["mos"][~test.numpy()]).all()


def test_ridge_and_the_systems_mean_agree_with_plain_computations():
    corpus = make_corpus()
    learned, predicted = next(lab.split(corpus, "groups"))
    mean, _ = lab.by_mean(MEAN, corpus, learned, predicted, 0, "groups")
    first = np.flatnonzero(predicted)[0]
    same = [corpus.mos[i] for i in np.flatnonzero(learned & corpus.rated)
            if corpus.clips[i].system == corpus.clips[first].system]
    assert mean[0] == pytest.approx(np.mean(same))
    ridge, _ = lab.by_ridge(RIDGE, corpus, learned, predicted, 0, "groups")
    rows = learned & corpus.rated
    x = corpus.features.flatten(1).double().numpy()
    penalty = lab.start(METHOD, corpus, learned, 0, "groups")["penalty"].item()
    said = plain_ridge(x[rows], corpus.mos[rows], x[predicted], penalty * 16)
    np.testing.assert_allclose(ridge, said, atol=1e-5)


def test_ridge_and_system_classifier_averages_ridge_and_the_mos_expected_from_the_classes():
    corpus = make_corpus()
    learned, predicted = next(lab.split(corpus, "groups"))
    found, gates = lab.by_labels(LABELS, corpus, learned, predicted, 0, "groups")
    assert gates is None
    rows = learned & corpus.rated
    x = corpus.features.flatten(1).double().numpy()
    penalty = lab.start(METHOD, corpus, learned, 0, "groups")["penalty"].item()
    labels = np.array([clip.model for clip in corpus.clips])
    classes = np.unique(labels[learned])
    one_hot = (labels[learned][:, None] == classes).astype(float)
    share = one_hot.mean(0)
    of_classes = plain_ridge(x[learned], one_hot, x[predicted],
                             penalty * 16 * learned.sum() / rows.sum())
    logits = np.log(share) + (of_classes - share) / share
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    known = np.where(rows, corpus.mos, plain_ridge(x[rows], corpus.mos[rows], x, penalty * 16))
    class_mos = np.array([known[learned & (labels == name)].mean() for name in classes])
    line, _ = lab.by_ridge(RIDGE, corpus, learned, predicted, 0, "groups")
    np.testing.assert_allclose(found, (line + chances @ class_mos) / 2, atol=1e-5)


ASKED = {variant.name: variant for question in questions.QUESTIONS.values()
         for variant in question.variants} | {one.name: one for one in raters.VARIANTS}


@pytest.mark.parametrize("name", sorted(ASKED.keys() - {variants.DISTILLED.name}))  # it reads files
def test_no_variant_uses_the_ratings_of_clips_that_it_does_not_learn_from(
        name, monkeypatch):
    variant = ASKED[name]
    if name == "with prosody":  # it hears files, and changes features alone
        variant = dataclasses.replace(variant, features=None)
    short = tuple(stage._replace(steps=2) for stage in variant.stages)
    variant = dataclasses.replace(variant, stages=short)
    found = []
    for blind in (False, True):
        corpus = make_corpus()
        for i, clip in enumerate(corpus.clips):
            clip.ratings = {f"r{r}": mos + r / 4 for mos in clip.ratings.values() for r in range(4)}
            if blind and i % 4 == 0:
                clip.ratings = {rater: 5.0 for rater in clip.ratings}
        corpus = lab.features_for(Job(variant, None, 0), corpus)
        predicted = corpus.rated & (np.arange(24) % 4 == 0)
        learned = ~(np.arange(24) % 4 == 0)
        mos, _ = variant.predict(variant, corpus, learned, predicted, 0, "system")
        found.append(mos)
        assert mos.shape == (predicted.sum(),)
        assert np.isfinite(mos).all()
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


def starts(*builds, **settings):
    """The weights that the method starts with, its train.Tensors, and a network by each build."""
    corpus = make_corpus()
    learned = np.ones(24, bool)
    weights = lab.start(METHOD, corpus, learned, 0, "groups")
    clips = lab.training_clips(METHOD, corpus, learned, 0)
    models = []
    for build in builds:
        torch.manual_seed(0)
        models.append(build(train.Config(**settings), weights, clips).eval())
    return weights, clips, models


@pytest.mark.parametrize("build", [variants.unshrunk, variants.with_layer_weights])
def test_unshrunk_axes_and_layer_weights_do_not_change_the_predictions_before_training(build):
    _, clips, (usual, other) = starts(lab.build, build)
    expected, output = usual(clips.features), other(clips.features)
    torch.testing.assert_close(output.mos, expected.mos, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-3, rtol=0)


def test_unshrunk_axes_have_variance_1():
    _, clips, (usual, unshrunk) = starts(lab.build, variants.unshrunk)
    fused = unshrunk.fusion(clips.features)
    torch.testing.assert_close(fused.T @ fused / 24, torch.eye(fused.shape[1]), atol=1e-4, rtol=0)
    assert usual.fusion(clips.features).std(0, correction=0).max() < 0.99


def test_if_the_mos_head_starts_as_ridge_it_predicts_what_ridge_does():
    _, clips, (usual, ridge) = starts(lab.build, variants.line_alone)
    line = ridge(clips.features).mos.detach()
    rated = ~clips.mos.isnan()
    x = clips.features.flatten(1).double().numpy()
    said = plain_ridge(x[rated], clips.mos[rated].numpy(), x, usual.penalty.item() * 16)
    np.testing.assert_allclose(line - line.mean(), said - said.mean(), atol=1e-4)


def test_a_random_start_is_drawn_in_torchs_usual_way_and_without_the_linear_path_it_stays_0():
    weights, clips, (usual, random, without) = starts(
        lab.build, variants.at_random, variants.without_v)
    for model in (random, without):
        for name in ("fusion.axes", "fusion.mean", "mean", "deviation"):
            assert torch.equal(model.state_dict()[name], usual.state_dict()[name])
        for layer in (model.class_head, model.mos_head, *(one[2] for one in model.moe.mlps)):
            bound = layer.in_features ** -0.5
            assert 0 < layer.weight.abs().max() <= bound
            assert layer.weight.unique().numel() == layer.weight.numel()
            assert layer.bias.abs().max() <= bound
    assert not torch.equal(random.class_head.weight, weights["class_head.weight"])
    assert random.moe.linear.weight.all()
    assert random.moe.linear.weight.requires_grad
    train.run_stages(without, [train.STAGES[1]._replace(steps=3, lr=0.1)], train.Config(),
                     clips._replace(mos=clips.mos.float()))
    assert not without.moe.linear.weight.any()
    assert random.moe.mlps[0][2].weight.any()


def test_without_perceptrons_their_output_stays_0_while_the_linear_path_is_trained():
    weights, clips, (without,) = starts(variants.without_mlps)
    train.run_stages(without, [train.STAGES[1]._replace(steps=3, lr=0.1)], train.Config(),
                     clips._replace(mos=clips.mos.float()))
    x = without.fusion(clips.features)
    torch.testing.assert_close(without(clips.features).y, without.moe.linear(x))
    assert not torch.equal(without.moe.linear.weight, weights["moe.linear.weight"])


def test_the_softmax_weights_of_layers_scale_each_layer_about_its_mean_and_are_trained():
    _, clips, (usual, weighted) = starts(lab.build, variants.with_layer_weights)
    x, center = clips.features, usual.fusion.mean
    weighted.fusion.logits.data = torch.tensor([3.0, 1.0]).log()
    scaled = center + torch.tensor([1.5, 0.5])[:, None] * (x - center)
    torch.testing.assert_close(weighted.fusion(x), usual.fusion(scaled), atol=1e-5, rtol=0)
    train.run_stages(weighted, [train.STAGES[1]._replace(steps=3)], train.Config(),
                     clips._replace(mos=clips.mos.float()))
    assert not torch.equal(weighted.fusion.logits, torch.tensor([3.0, 1.0]).log())


def test_means_only_leaves_out_the_deviations_over_time():
    corpus = make_corpus()
    assert torch.equal(variants.means_only(corpus).features, corpus.features[:, :, :4])


def test_the_method_before_training_has_no_stages_and_other_variants_use_those_of_train_py():
    corpus = make_corpus()
    learned, predicted = next(lab.split(corpus, "groups"))
    weights = lab.start(METHOD, corpus, learned, 0, "groups")
    expected = train.build_model(train.Config(), weights)(corpus.features[predicted]).mos
    found, _ = lab.by_head(variants.START, corpus, learned, predicted, 0, "groups")
    np.testing.assert_allclose(found, expected.detach(), atol=1e-5)
    assert variants.AFTER_1.stages + train.STAGES[1:] == train.STAGES
    assert variants.AFTER_2.stages + train.STAGES[2:] == train.STAGES
    assert variants.REVERSED.stages == train.STAGES[::-1]
    for variant in (variants.ONE_STAGE, variants.MOS_ALONE):
        assert sum(stage.steps for stage in variant.stages) == 600


# -- What is kept ----------------------------------------------------------------------------------

def test_predictions_are_kept_and_made_again_if_clips_features_or_settings_change(lone):
    made = []

    def counted(variant, corpus, learned, predicted, seed, how):
        made.append(seed)
        return corpus.mos[predicted] + seed, None
    job = Job(lab.Variant("counted", predict=counted), Cell("a", "b", "test"), 7)
    first = lab.do(job)
    assert np.array_equal(lab.do(job)["mos"], first["mos"], equal_nan=True)
    assert made == [7]
    lone.clips[0].ratings[""] += 0.5
    lab.do(job)
    lone.features[0, 0, 0] += 1
    lab.do(job)
    lab.do(job._replace(variant=dataclasses.replace(job.variant, settings={"experts": 2})))
    assert made == [7] * 4
    whole = job.path().read_bytes()
    for damaged in (b"", b"damaged", whole[:-1], whole[:100], whole[:200] + b"x" + whole[201:]):
        job.path().write_bytes(damaged)
        lab.do(job)
        assert job.path().read_bytes()[-32:] != damaged[-32:]
    assert made == [7] * 9


def something_else():
    """Takes the place of what a prediction depends on."""


@pytest.mark.parametrize(("module", "name", "variant"), [
    (moemos, "PENALTIES", RIDGE), (train, "FOLDS", RIDGE), (lab, "FOLDS", MEAN),
    (moemos, "PENALTIES", METHOD), (train, "FOLDS", METHOD), (moemos, "LEAST_KEPT", LABELS),
    (train, "CLIP_NORM", METHOD), (raters, "REACH", raters.MODEL)])
def test_a_prediction_is_made_again_if_a_constant_that_its_code_names_changes(
        lone, monkeypatch, module, name, variant):
    job = Job(variant, Cell("a", "b", "groups"), 0)
    before = lab.digest(job, lone)
    monkeypatch.setattr(module, name, 2 * getattr(module, name))
    assert lab.digest(job, lone) != before


@pytest.mark.parametrize(("module", "name", "variant"), [
    (lab, "some_of_each_system", MEAN), (moemos, "ridge", RIDGE), (moemos, "start", METHOD),
    (moemos, "best_penalty", RIDGE), (moemos, "best_penalty", METHOD), (moemos, "start", LABELS),
    (lab, "kind", MEAN), (lab, "base_model", RIDGE), (lab, "family", METHOD),
    (lab, "folds_for", LABELS), (lab, "training_clips", METHOD), (train, "build_model", METHOD),
    (data, "folds_of", RIDGE), (evaluate, "predict", METHOD), (moemos, "sparsity_loss", METHOD),
    (moemos, "FeatureFusion", METHOD), (train, "alpha_at", METHOD),
    (raters, "halves", raters.MEANS),
    (raters, "RaterMOS", raters.SINGLE), (variants, "LayerWeights", variants.LAYER_WEIGHTS),
    (variants, "at_random", variants.PAPER)])
def test_a_prediction_is_made_again_if_any_code_that_it_depends_on_changes(
        lone, monkeypatch, module, name, variant):
    job = Job(variant, Cell("a", "b", "groups"), 0)
    before = lab.digest(job, lone)
    monkeypatch.setattr(module, name, something_else)
    assert lab.digest(job, lone) != before


@pytest.mark.parametrize(("owner", "name", "other"), [
    (data.Clip, "mos", property(lambda clip: max(clip.ratings.values(), default=nan))),
    (lab.Corpus, "rated", property(lambda corpus: corpus.mos > 3))])
def test_a_prediction_is_made_again_if_the_mos_or_the_choice_of_rated_clips_changes(
        lone, monkeypatch, owner, name, other):
    lone.clips[0].ratings["another rater"] = 1.0
    job = Job(METHOD, Cell("a", "b", "groups"), 0)
    before = lab.digest(job, lone)
    monkeypatch.setattr(owner, name, other)
    assert lab.digest(job, lone) != before


def test_a_prediction_is_made_again_if_only_the_beginning_of_a_groups_name_changes(lone):
    job = Job(METHOD, Cell("a", "b", "groups"), 0)
    found = set()
    for group in ("one/talker", "other/talker"):
        lone.clips[0].group = group
        found.add(lab.digest(job, lone))
    assert len(found) == 2


def test_a_prediction_is_kept_if_code_changes_that_only_evaluates_it(lone, monkeypatch):
    jobs = [Job(variant, Cell("a", "b", "groups"), 0) for variant in (METHOD, RIDGE, LABELS)]
    before = [lab.digest(job, lone) for job in jobs]
    for module, name in ((evaluate, "PARTS"), (evaluate, "FEWEST"), (evaluate, "leave_one_out"),
                         (tables, "WITHIN"), (tables, "claim"), (raters, "SHOTS")):
        monkeypatch.setattr(module, name, something_else)
    assert [lab.digest(job, lone) for job in jobs] == before


def test_the_hash_of_what_a_prediction_depends_on_is_the_same_in_every_process():
    for name in questions.ASKS:
        for job in questions.jobs_asked(name):
            variant = job.variant
            found = lab.depends_on(lab.predict, variant.predict, variant.label, variant.target,
                                   variant.build)
            assert " at 0x" not in repr(found)


def test_a_change_of_code_counts_but_not_one_of_comments_docstrings_or_layout(
        tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    texts = ["def f():\n    return 1\n",
             "def f():\n    '''Says 1.'''\n    # one\n    return (1)\n", "def f():\n    return 2\n"]
    codes = []
    for i, text in enumerate(texts):
        (tmp_path / f"code_{i}.py").write_text(text)
        codes.append(lab.code_of(__import__(f"code_{i}").f))
    assert "Return(value=Constant(value=1))" in codes[1]
    assert codes[2] != codes[0]
    for i in range(3):
        del sys.modules[f"code_{i}"]


def test_a_missing_listening_test_is_reported_with_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setenv("LISTENING_TESTS", str(tmp_path / "none"))
    with pytest.raises(data.InputError, match="is not there; studies/README.md"):
        lab.load("codecs", "logmel")


def test_a_listening_test_can_be_loaded_without_the_systems_that_are_recordings(
        monkeypatch, tmp_path):
    clips = make_corpus(6).clips
    clips[1].system, clips[2].system = "Reference", "c0"  # c0 is a recording in P.835 only
    monkeypatch.setenv("LISTENING_TESTS", str(tmp_path))
    (tmp_path / lab.TESTS["codecs"]).mkdir()
    monkeypatch.setattr(lab.published, "read", lambda folder: (None, None, clips))
    monkeypatch.setattr(lab.data, "extract_features", lambda clips, network: len(clips))
    lab.load.cache_clear()
    assert lab.load("codecs", "logmel").clips == clips
    kept = lab.load("codecs" + lab.NO_RECORDINGS, "logmel")
    assert kept.clips == clips[:1] + clips[2:]
    assert kept.features == 5
    lab.load.cache_clear()


# -- Tables ----------------------------------------------------------------------------------------

def test_lcc_within_systems_is_the_mean_over_the_systems_in_which_it_is_defined():
    predicted, mos = [1, 2, 3, 1, 2, 3, 5, 6], [1, 2, 3, 3, 2, 1, 4, 4]
    assert tables.lcc_within_systems(predicted, mos, list("aaabbbcc")) == pytest.approx(0)
    assert np.isnan(tables.lcc_within_systems([1], [1], ["a"]))


def test_a_difference_in_mse_has_the_standard_error_over_systems_or_over_clips_if_systems_are_few():
    rng = np.random.default_rng(0)
    true, one, other = rng.normal(size=(3, 40))
    change = (one - true) ** 2 - (other - true) ** 2
    for systems, parts in ((4, change), (8, change.reshape(5, 8).mean(0))):
        system = [f"s{i % systems}" for i in range(40)]
        pair = [tables.Predicted(np.array([said]), true, system) for said in (one, other)]
        value, error, freedom = tables.difference([(1, *pair)], "utterance MSE")
        assert value == pytest.approx(change.mean())
        assert error == pytest.approx(parts.std(ddof=1) / np.sqrt(len(parts)))
        assert freedom == pytest.approx(len(parts) - 1)


def test_the_variances_over_systems_and_over_seeds_add_up_each_with_its_degrees_of_freedom():
    rng = np.random.default_rng(0)
    true, errors = rng.normal(size=(2, 40))
    said = np.array([true + part * errors for part in (1.0, 1.1, 1.3)])
    system = [f"s{i % 8}" for i in range(40)]
    many, few = (tables.Predicted(some, true, system) for some in (said, said[1:] + 0.1))
    value, error, freedom = tables.difference([(1, many, few)], "utterance MSE")
    of_one, of_other = np.square(said - true).mean(1), np.square(said[1:] + 0.1 - true).mean(1)
    assert value == pytest.approx(of_one.mean() - of_other.mean())
    change = np.square(said - true).mean(0) - np.square(said[1:] + 0.1 - true).mean(0)
    of_parts = change.reshape(5, 8).mean(0).var(ddof=1) / 8
    v, w = of_one.var(ddof=1) / 3, of_other.var(ddof=1) / 2
    assert error == pytest.approx(np.sqrt(of_parts + v + w))
    each = of_parts ** 2 / 7 + v ** 2 / 2 + w ** 2
    assert freedom == pytest.approx((of_parts + v + w) ** 2 / each)
    pair = [tables.Predicted(one, true, system) for one in (said[:1], said[1:2])]
    # A single seed has no variance.
    _, error, freedom = tables.difference([(1, *pair)], "utterance MSE")
    change = np.square(said[0] - true) - np.square(said[1] - true)
    assert error == pytest.approx(change.reshape(5, 8).mean(0).std(ddof=1) / np.sqrt(8))
    assert freedom == pytest.approx(7)


def test_if_a_seed_draws_the_clips_for_both_its_variance_is_that_of_their_difference():
    rng = np.random.default_rng(0)
    true = rng.normal(size=40)
    draws = rng.normal(size=(3, 40))  # an error that both have in common
    one, other = true + draws, true + 1.1 * draws + 0.1 * rng.normal(size=(3, 40))
    system = [f"s{i % 8}" for i in range(40)]
    pair = [tables.Predicted(predicted, true, system) for predicted in (one, other)]
    _, error, freedom = tables.difference([(1, *pair)], "utterance MSE", same_draws=True)
    change = np.square(one - true) - np.square(other - true)  # (3, 40)
    of_seeds = change.mean(1).var(ddof=1) / 3
    of_parts = change.mean(0).reshape(5, 8).mean(0).var(ddof=1) / 8
    assert error == pytest.approx(np.sqrt(of_parts + of_seeds))
    each = of_parts ** 2 / 7 + of_seeds ** 2 / 2
    assert freedom == pytest.approx((of_parts + of_seeds) ** 2 / each)


def test_the_interval_of_one_seed_is_that_of_evaluate_for_every_metric():
    true, (said,), system = draw_systems(np.random.default_rng(0), 6, 4, 0.8)
    one = tables.Predicted(np.array([said]), true, system)
    left_out = evaluate.leave_one_out(said, true, system)
    for metric, value in moemos.metrics(said, true, system).items():
        assert one.interval(metric) == evaluate.interval(value, left_out[metric], metric)


@pytest.mark.parametrize("seeds", [2, 5])
def test_two_variants_that_are_equally_good_are_rarely_claimed_to_differ(
        monkeypatch, seeds):
    """Two variants with equally distributed errors of systems, clips and seeds are compared 120
    times on four listening tests. At .05 a difference is claimed in at most 5 percent of cases, on
    all tests together and on a single one, and at .05 / 42 in at most .2 percent."""
    monkeypatch.setattr(moemos, "METRICS", {"LCC": moemos.lcc})
    monkeypatch.setattr(tables, "lcc_within_systems", lambda *_: nan)
    rng, p, of_one = np.random.default_rng(seeds), [], []
    for _ in range(120):
        found = []
        for systems in (9, 8, 13, 10):
            true, said, system = draw_systems(rng, systems, 6, 0.8, 2)
            noise = 0.1 * rng.normal(size=(2, seeds, len(true)))
            noise += 0.1 * rng.normal(size=(2, seeds, systems))[:, :, system]
            pair = [tables.Predicted(own + some, true, system) for own, some in zip(said, noise)]
            found.append(tables.difference([(1 / 4, *pair)], "utterance LCC"))
        p.append(tables.claim(tables.added(found))["p"])
        of_one.append(tables.claim(found[0])["p"])
    assert 0 < np.mean(np.array(p) < 0.05) <= 0.05
    assert np.mean(np.array(p) < 0.05 / 42) <= 0.002
    assert np.mean(np.array(of_one) < 0.05) <= 0.05


@pytest.mark.parametrize("seeds", [2, 5])
def test_differences_are_rarely_claimed_by_chance_even_if_seeds_vary_as_much_as_systems(seeds):
    """As above, but with 100,000 differences, whose variances are drawn directly, as those of
    normally distributed values. With the degrees of freedom of the systems alone, .33 percent would
    be claimed at .05 / 42 with two seeds."""
    rng = np.random.default_rng(seeds)
    number, of_seeds, claimed = 100_000, 3.0, []
    values = np.sqrt(4 * (1 + 2 * of_seeds)) / 4 * rng.normal(size=number)
    drawn = [(freedom, size * rng.chisquare(freedom, number) / freedom)
             for parts in (9, 8, 13, 10)
             for freedom, size in ((parts - 1, 1), (seeds - 1, of_seeds), (seeds - 1, of_seeds))]
    freedom = np.array([degrees for degrees, _ in drawn])
    variances = np.array([variance for _, variance in drawn]).T / 16
    for value, own in zip(values, variances):
        joined = tables.joined_freedom(own, freedom)
        claimed.append(tables.claim((value, np.sqrt(own.sum()), joined))["p"])
    assert np.mean(np.array(claimed) < 0.05) <= 0.05
    assert 0 < np.mean(np.array(claimed) < 0.05 / 42) <= 0.002


def test_errors_of_one_corpus_are_taken_together_and_those_of_different_corpora_are_independent():
    rng = np.random.default_rng(0)
    true, system = rng.normal(size=40), [f"s{i % 8}" for i in range(40)]
    said = [true + rng.normal(size=(2, 40)) for _ in range(3)]
    one, other, third = (tables.Predicted(some, true, system) for some in said)
    terms = [(0.25, third, one), (0.75, third, other)]
    value, error, freedom = tables.difference(terms, "utterance MSE")
    squares = [np.square(some - true) for some in said]
    change = squares[2].mean(0) - 0.25 * squares[0].mean(0) - 0.75 * squares[1].mean(0)
    assert value == pytest.approx(change.mean())
    variances = [change.reshape(5, 8).mean(0).var(ddof=1) / 8]
    for weight, some in ((0.25, 0), (0.25, 2), (0.75, 1), (0.75, 2)):
        variances.append(weight ** 2 * squares[some].mean(1).var(ddof=1) / 2)
    assert error ** 2 == pytest.approx(sum(variances))
    assert freedom == pytest.approx(tables.joined_freedom(variances, [7, 1, 1, 1, 1]))

    names = (("a", 0.25), ("b", 0.75))
    cells = {Cell("test", name, "groups"): weight for name, weight in names}
    predicted = {("x", cell): some for cell, some in zip(cells, (one, other))}
    predicted |= {(METHOD.name, cell): third for cell in cells}
    together = questions.claim_of(METHOD, lab.Variant("x"), cells, predicted)
    assert together == tables.claim(tables.difference(terms, questions.UTTERANCE))
    apart = {cell._replace(corpus=cell.backbone): weight for cell, weight in cells.items()}
    predicted = {(name, cell._replace(corpus=cell.backbone)): some
                 for (name, cell), some in predicted.items()}
    found = questions.claim_of(METHOD, lab.Variant("x"), apart, predicted)
    each = [tables.difference([term], questions.UTTERANCE) for term in terms]
    assert found == tables.claim(tables.added(each))
    assert found["value"] == pytest.approx(together["value"])
    assert found["low"] != pytest.approx(together["low"])


def some_answers(errors):
    """{(variant, cell): tables.Predicted}. errors: {(variant, cell): a number}; where it is larger,
    the LCC is lower."""
    rng, predicted = np.random.default_rng(0), {}
    true, noise = rng.normal(size=40), rng.normal(size=(2, 40))
    for (name, cell), error in errors.items():
        said = true + error * noise
        predicted[name, cell] = tables.Predicted(said, true, [f"s{i % 8}" for i in range(40)])
    return predicted


def test_settings_for_a_listening_test_are_chosen_by_the_other_listening_tests():
    cells = [Cell(test, backbone, "groups")
             for test in ("one", "two", "three") for backbone in "de"]
    own = {"one": (0.1, 0.5), "two": (0.1, 0.6), "three": (1.5, 0.4)}  # errors of x and y
    errors = {(name, cell): own[cell.corpus][i] for cell in cells for i, name in enumerate("xy")}
    predicted = some_answers(errors)
    question = questions.Question("?", (lab.Variant("x"), lab.Variant("y")),
                                  {str(i): (cell,) for i, cell in enumerate(cells)})
    numbers, best = questions.chosen(question, predicted)
    assert best == {"one": "y", "two": "y", "three": "x"}
    assert numbers == [predicted[best[cell.corpus], cell].value(questions.UTTERANCE).mean()
                       for cell in cells]


def test_how_far_a_stage_moves_the_predictions_is_counted_in_standard_deviations_of_the_mos():
    cell = Cell("one", "d", "groups")
    predicted = some_answers({("before", cell): 0.0, ("after", cell): 0.2, ("last", cell): 0.2})
    still = predicted["before", cell]
    still.predictions = still.predictions[:1]  # it does not depend on the seed, and so has one
    stages = tuple(lab.Variant(name) for name in ("before", "after", "last"))
    question = questions.Question("?", stages, {"a": (cell,)}, stages=stages)
    first, second = questions.moves(question, predicted)
    noise = (predicted["after", cell].predictions - still.true) / still.true.std()
    assert (first["variant"], second["variant"]) == ("stage 1", "stage 2")
    assert first["numbers"] == [pytest.approx(np.sqrt(np.mean(noise ** 2)))]
    assert second["numbers"] == [0]


def test_added_differences_their_claim_and_holms_correction_agree_with_values_computed_by_hand():
    value, error, freedom = tables.added([(0.02, 0.03, 10), (0.04, 0.04, 10)])
    assert (value, error) == pytest.approx((0.06, 0.05))
    assert freedom == pytest.approx(25 ** 2 / (9 ** 2 / 10 + 16 ** 2 / 10))
    claim = tables.claim((0.03, 0.01, 10))
    assert claim["low"] == pytest.approx(0.03 - 0.02228, abs=1e-4)
    assert claim["high"] == pytest.approx(0.03 + 0.02228, abs=1e-4)
    assert claim["p"] == pytest.approx(0.0133, abs=2e-4)
    assert tables.claim((0.0, 0.0, 5))["p"] == 1
    assert tables.holm([0.03, 0.01, 0.5]) == pytest.approx([0.06, 0.03, 0.5])


def test_what_the_gates_follow_agrees_with_values_computed_by_hand():
    gates = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    labels = [list("aabb"), ["all"] * 4, list("wxyz")]
    use = tables.gate_use(gates, np.array([1.0, 3, 1, 3]), labels)
    assert use == pytest.approx([0, np.log(2), -0.5, 1, nan, nan], nan_ok=True)
    use = tables.gate_use(gates, np.array([1.0, 1, 3, 3]), labels)
    assert use[2] == pytest.approx(1)
    values = np.array([[1.0], [-1], [3], [-3]])
    means = np.array([[0.0], [0], [0], [0]]) + np.array([[1.0], [1], [-1], [-1]])
    assert tables.share(values, means, 2) == pytest.approx(1 - (1 - 4 / 20) * 3 / 2)
    assert tables.mean_use([[1.0, nan], [2.0, nan]]) == [1.5, None]


def test_the_share_that_random_gates_explain_is_0_on_average():
    rng = np.random.default_rng(0)
    labels = [list(range(10)) * 3] * 3
    several = [tables.gate_use(rng.dirichlet([1] * 4, 30), rng.normal(size=30), labels)
               for _ in range(300)]
    assert np.abs(np.mean(several, 0)[2:]).max() < 0.02


def test_numbers_claims_and_tables_are_written_as_in_the_readme():
    assert [tables.number(value) for value in (0.1234, -0.5, 12.04, nan, None, [0.5, 0.1])] == [
        ".123", "-.500", "12.0", "-", "-", ".500 ± .100"]
    claim = {"value": -0.0123, "low": -0.02, "high": 0.001}
    assert tables.with_interval(claim, 0.04) == "-.012 [-.020, +.001]*"
    assert tables.with_interval(claim) == "-.012 [-.020, +.001]"
    assert tables.table([["a", "b"], ["ccc", "d"]]) == (
        "| a   | b |\n|-----|---|\n| ccc | d |")


# -- Questions -------------------------------------------------------------------------------------

def test_a_question_is_answered_stored_shown_and_checked(lone, monkeypatch, tmp_path, capsys):
    short = tuple(stage._replace(steps=20) for stage in train.STAGES)
    method = lab.Variant("the method", stages=short)
    question = questions.Question(
        "Is it good?", (method, RIDGE, MEAN), {"one": (Cell("a", "b", "groups"),),
                                               "two": (Cell("a", "b", "system"),)},
        metrics=("utterance LCC", "utterance MSE"), gates=True)
    for clip in lone.clips:
        clip.path = tmp_path / clip.wav
        wavfile.write(clip.path, 16000, np.ones(1600))
    monkeypatch.setattr(questions, "HERE", tmp_path)
    monkeypatch.setattr(questions, "QUESTIONS", {"good": question, "other": question})
    monkeypatch.setattr(questions, "ASKS", {"good": question.asks, "other": question.asks})
    questions.store("good")
    path = tmp_path / "results" / "good.json"
    stored = json.loads(path.read_text())
    rows = questions.as_rows("good", "utterance LCC")
    assert [row[0] for row in rows] == ["utterance LCC", "the method", "ridge", "system's mean"]
    errors = questions.as_rows("good", "utterance MSE")
    assert [row[0] for row in errors] == ["utterance MSE", "the method", "ridge", "system's mean"]
    ridge = lab.do(Job(RIDGE, Cell("a", "b", "groups"), 0))["mos"]
    rated = lone.rated
    assert rows[0] == ["utterance LCC", "mean", "lead of the method", "one", "two"]
    assert rows[2][3] == tables.number(moemos.lcc(ridge[rated], lone.mos[rated]))
    assert errors[2][1] == tables.number(moemos.mse(ridge[rated], lone.mos[rated]))
    assert errors[0] == ["utterance MSE", "one", "two"]
    claims = stored["compared"]["ridge"]
    assert claims["all"]["value"] == pytest.approx(
        (claims["one"]["value"] + claims["two"]["value"]) / 2)
    reached, by_ridge = (row["numbers"] for row in stored["rows"][:2])
    assert claims["two"]["value"] == pytest.approx(reached[1] - by_ridge[1])
    assert rows[2][1] == tables.number(np.mean(by_ridge))
    assert rows[1][2] == ""
    assert rows[2][2] == tables.with_interval(claims["all"])
    (row,) = [row for row in stored["numbers"]
              if row["variant"] == "ridge" and row["cell"][2] == "groups"]
    low, high = row["interval_95"]
    assert low < row["utterance LCC"] < high
    assert list(stored["gates"]) == ["the method"]
    reach = np.median([claims["all"]["high"] - claims["all"]["value"]
                       for claims in stored["compared"].values()])
    assert questions.listed("good") == (
        f"good: Is it good? (8 predictions; a difference of {tables.number(reach)} shows)")
    assert "Is it good?" in capsys.readouterr().out
    text = "a\n<!-- good utterance LCC -->\nold\n<!-- end -->\nb\n"
    assert questions.written(text).splitlines()[2:-2] == tables.table(rows).splitlines()
    whole = "<!-- good -->\n<!-- end -->\n"
    assert questions.written(whole).count("| utterance MSE") == 1
    apart = questions.written(whole + "between\n<!-- good utterance MSE -->\n<!-- end -->\n")
    assert "| utterance MSE" not in apart.partition("between")[0]
    assert tables.table(errors) in apart.partition("between")[2]
    monkeypatch.setattr(questions, "WIDEST", 1)
    heading, reached, *_ = questions.as_rows("good", "utterance LCC")
    assert heading == ["utterance LCC", "mean of 2 columns", "lead of the method"]
    assert reached[1] == tables.number(np.mean(stored["rows"][0]["numbers"]))
    assert questions.written(questions.written(text)) == questions.written(text)

    monkeypatch.setattr(lab, "do", lambda job: pytest.fail("--check predicts anew"))
    questions.check("good")
    assert capsys.readouterr().out.count("good: ") == 2
    stored["numbers"][-1]["seeds"][0] += 0.01
    stored["numbers"][0]["seeds"][0] += 0.01
    path.write_text(json.dumps(stored))
    with pytest.raises(data.InputError, match="differs; run the question again"):
        questions.check("good")


def a_stored_answer():
    """The stored answer to "plainer", cut to two rows of each kind, with the gates of "experts"."""
    def read(name):
        return json.loads((HERE / "studies" / "results" / f"{name}.json").read_bytes())
    stored = read("plainer")
    ridge = stored["compared"]["ridge"]
    claims = {"all": ridge["all"]}
    gates = {"the method": read("experts")["gates"]["the method"]}
    return stored | {"rows": stored["rows"][1:3], "numbers": stored["numbers"][:2],
                     "gates": gates, "compared": {"ridge": claims}, "versions": {}, "settings": {}}


def damages(value):
    """Yields copies of a value out of JSON, in each of which one part is left out or replaced."""
    yield from (None, True, -1, 10 ** 400, nan, "\x1b[31m|\n", [], {}, [[]], {"x": {}})
    if isinstance(value, (dict, list)):
        for key in (value if isinstance(value, dict) else range(len(value))):
            part = value.copy()
            del part[key]
            yield part
            for other in damages(value[key]):
                part = value.copy()
                part[key] = other
                yield part


def test_a_stored_answer_that_is_damaged_anywhere_is_shown_or_refused_with_one_sentence(
        monkeypatch, tmp_path):
    def stop(name, backbone):
        raise data.InputError("enough")
    monkeypatch.setattr(lab, "load", stop)
    monkeypatch.setattr(questions, "HERE", tmp_path)
    path = tmp_path / "results" / "plainer.json"
    whole = json.dumps(a_stored_answer()).encode()
    texts = [json.dumps(damaged).encode() for damaged in damages(a_stored_answer())]
    texts += [b"", b"x", b"\xff\xfe", b"[" * 100_000, whole[:-1], whole[:len(whole) // 2]]
    refused = 0
    for text in [whole, *texts]:
        data.write_files({path: text})
        for use in (questions.listed, questions.as_text, questions.check):
            try:
                said = use("plainer")
                assert all(c.isprintable() or c == "\n" for c in said)
            except data.InputError as error:
                refused += "plainer.json: " in str(error)
                assert str(error).endswith(("run python -m studies.questions plainer", "enough",
                                            "run it again"))
    assert refused > 2 * len(texts)
    path.unlink()
    with pytest.raises(data.InputError, match="plainer.json: is not there; run python -m stud"):
        questions.read("plainer")


def test_a_stored_answer_to_another_question_or_with_a_missing_column_is_refused(
        monkeypatch, tmp_path):
    monkeypatch.setattr(questions, "HERE", tmp_path)
    path = tmp_path / "results" / "plainer.json"
    for key, value in (("variant", "who left"), ("cell", ["who", "left", "too"])):
        stored = a_stored_answer()
        stored["numbers"] = [row | {key: value} for row in stored["numbers"]]
        data.write_files({path: json.dumps(stored).encode()})
        with pytest.raises(data.InputError, match="plainer: the stored answer is to another quest"):
            questions.check("plainer")
    stored["rows"][0]["numbers"].pop()
    data.write_files({path: json.dumps(stored).encode()})
    with pytest.raises(data.InputError, match="rows of another length than its heading"):
        questions.read("plainer")


def test_holms_correction_is_for_all_claims_of_all_answers_with_five_seeds(monkeypatch, tmp_path):
    monkeypatch.setattr(questions, "HERE", tmp_path)
    for question, claimed, seeds in (("one", {"x": 0.01, "y": 0.5}, 5), ("two", {"x": 0.02}, 5),
                                     ("plainer", {"ridge": 1e-9}, 2)):
        stored = a_stored_answer()
        for row in stored["numbers"]:
            row["seeds"] = row["seeds"][:seeds]
        (claims,) = stored["compared"].values()
        stored["compared"] = {name: {**claims, "all": {**claims["all"], "p": p}}
                              for name, p in claimed.items()}
        content = json.dumps(stored).encode()
        data.write_files({tmp_path / "results" / f"{question}.json": content})
    assert questions.corrected() == pytest.approx(
        {("one", "x"): 0.03, ("one", "y"): 0.5, ("two", "x"): 0.04})
    assert "*" not in str(questions.as_rows("plainer", "utterance LCC"))


def test_with_18432_features_the_method_before_training_predicts_nearly_the_same():
    """Not exactly, because fusion brings each of the wide features to variance 1 again."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(60, 8))
    heard = causes @ rng.normal(size=(8, 320)) + rng.normal(size=(60, 320))
    corpus = make_corpus(60)._replace(features=torch.from_numpy(heard).float().view(60, 2, 160))
    for clip, own in zip(corpus.clips, causes):
        clip.ratings = {"": 3 + own[:2].sum() / 3} if clip.ratings else {}
    wide = variants.at_full_width(corpus)
    learned, predicted = next(lab.split(corpus, "groups"))
    one, other = (lab.by_head(variants.START, some, learned, predicted, 0, "groups")[0]
                  for some in (corpus, wide))
    assert moemos.lcc(one, corpus.mos[predicted]) > 0.9
    assert np.abs(one - other).max() < 0.1 * np.std(one)


def test_spreading_over_18432_features_keeps_all_lengths_and_angles():
    corpus = make_corpus()
    wide = variants.at_full_width(corpus)
    assert wide.features.shape == (24, 12, 1536)
    flat = corpus.features.flatten(1)
    standard = (flat - flat.mean(0)) / flat.std(0, correction=0)
    wide_flat = wide.features.flatten(1)
    torch.testing.assert_close(wide_flat @ wide_flat.T, standard @ standard.T, rtol=1e-4, atol=1e-4)


def test_every_question_begins_with_the_method_or_the_papers_form_and_names_are_unique():
    for name, question in questions.QUESTIONS.items():
        names = [variant.name for variant in question.variants]
        assert names[0] == ("the form nearest to the paper" if name == "paper" else METHOD.name)
        assert len(set(names)) == len(names)
        for variant in question.variants:
            train.check(train.Config(**variant.settings))
    assert (HERE / "studies" / "results").is_dir()
