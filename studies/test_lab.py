"""Tests of the engine: splits, variants, what is kept; of the tables; and of the questions."""

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
from studies import distilled, lab, questions, raters, tables, variants
from studies.lab import HEAD, MEAN, RIDGE, ZERO_SHOT, Cell, Job
from test_moemos import HERE, nan, no_network  # noqa: F401 - a fixture


def make_corpus(clips=24, seed=0):
    """Clips of three systems and four groups, the features of which tell the MOS; the last three
    have no MOS, and are of a model of their own."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(clips, 2, 6)).astype(np.float32))
    made = []
    for i in range(clips):
        rated = i < clips - 3
        mos = {"": 3 + float(features[i, 0, 0]) + i % 3 / 4} if rated else {}
        system = f"s{i % 3}" if rated else "x"
        split = "test" if rated and i % 4 == 0 else "train"
        made.append(data.Clip(f"{i}.wav", None, split, system, system, f"g{i % 4}", mos))
    backbone = type("Small", (), {"layers": 2, "width": 3})()
    return lab.Corpus(made, features, backbone)


@pytest.fixture
def lone(monkeypatch, tmp_path):
    """The engine on a corpus of the test's own, without other processes."""
    corpus = make_corpus()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "load", lambda name, backbone: corpus)
    monkeypatch.setattr(lab, "run", lambda jobs: [lab.do(job) for job in jobs])
    return corpus


# -- Splits ----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("how", "of"), [("groups", "group"), ("system", "system"),
                                         ("method", "model")])
def test_every_rated_clip_is_predicted_once_and_never_with_its_own_kind(how, of):
    corpus = make_corpus()
    names = np.array([getattr(clip, of) for clip in corpus.clips])
    times = np.zeros(len(names), int)
    for learned, predicted in lab.split(corpus, how):
        times += predicted
        assert not set(names[learned & corpus.rated]) & set(names[predicted])
        assert learned[~corpus.rated].all()
    assert (times == corpus.rated).all()


def test_the_tables_own_split_and_few_clips_a_system():
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


def test_a_method_with_super_resolution_is_that_method():
    clip = make_corpus().clips[0]
    clip.model = "ttsSR"
    assert lab.method(clip) == "tts"


# -- Variants --------------------------------------------------------------------------------------

def test_the_head_of_the_engine_is_the_one_that_train_has():
    corpus = make_corpus()
    rows = np.array([clip.split == "train" for clip in corpus.clips])
    found = lab.predict(Job(HEAD, Cell("a", "b", "test"), 3), corpus)
    config = train.Config(seed=3)
    classes = sorted({clip.model for clip, row in zip(corpus.clips, rows) if row})
    model = torch.tensor([classes.index(clip.model) for clip in corpus.clips])
    clips = train.Clips(corpus.features, torch.tensor(corpus.mos).float(), model)
    torch.manual_seed(3)
    network = train.build_model(config, corpus.backbone, classes)
    train.run_stages(network, train.STAGES, config, clips.take(torch.from_numpy(rows)))
    test = torch.tensor([clip.split == "test" for clip in corpus.clips])
    expected = evaluate.predict(network.eval(), corpus.features[test]).mos
    assert torch.equal(torch.from_numpy(found["mos"])[test].float(), expected)
    assert np.isnan(found["mos"][~test.numpy()]).all()


def test_ridge_and_the_conditions_mean_by_hand():
    corpus = make_corpus()
    learned, predicted = next(lab.split(corpus, "groups"))
    mean, _ = lab.by_mean(MEAN, corpus, learned, predicted, 0, "groups")
    first = np.flatnonzero(predicted)[0]
    same = [corpus.mos[i] for i in np.flatnonzero(learned & corpus.rated)
            if corpus.clips[i].system == corpus.clips[first].system]
    assert mean[0] == pytest.approx(np.mean(same))
    ridge, _ = lab.by_ridge(RIDGE, corpus, learned, predicted, 0, "groups")
    assert moemos.lcc(ridge, corpus.mos[predicted]) > 0.5


def output_of(build, features):
    backbone = make_corpus().backbone
    torch.manual_seed(0)
    model = build(train.Config(), backbone, ["a", "b"])
    model.set_statistics(features, torch.linspace(1, 5, len(features)))
    return model.eval(), model(features)


def test_each_part_that_is_exchanged_is_exchanged():
    features = torch.randn(20, 2, 6)
    model, plain = output_of(train.build_model, features)
    without, output = output_of(variants.without_path, features)
    path = model.moe.path(model.fusion(features))
    torch.testing.assert_close(output.experts, plain.experts - path[:, None])
    assert not without.moe.path.weight.requires_grad
    with_classes, output = output_of(variants.with_classes, features)
    more = with_classes.by_class(output.logits.softmax(1)).squeeze(1)
    alone = with_classes.mean + with_classes.deviation * with_classes.mos_head(output.y).squeeze(1)
    torch.testing.assert_close(output.mos, alone + with_classes.deviation * more)
    dropped, _ = output_of(variants.with_dropout, features)
    hidden = dropped.train().moe.experts[0][1](torch.full((1000, 4), 9.0))
    assert (hidden == 0).float().mean().item() == pytest.approx(0.7, abs=0.03)
    weighted, output = output_of(variants.with_layer_weights, features)
    torch.testing.assert_close(output.mos, plain.mos)  # the weights start as 1
    weighted.fusion.logits.data = torch.tensor([100.0, 0.0])
    fused = weighted.fusion(features).view(20, 2, 6)
    torch.testing.assert_close(fused[:, 0], 2 * model.fusion(features).view(20, 2, 6)[:, 0])
    assert fused[:, 1].abs().max() < 1e-6
    static, _ = output_of(variants.means_only, features)
    fused = static.fusion(features).view(20, 2, 6)
    assert (fused[:, :, 3:] == 0).all()
    assert (fused[:, :, :3] != 0).any()


# -- What is kept ----------------------------------------------------------------------------------

def test_what_was_predicted_is_kept_and_made_again_where_something_changes(lone):
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
    (evaluate, "ALPHAS", RIDGE), (evaluate, "FOLDS", RIDGE), (lab, "FOLDS", MEAN),
    (train, "CLIP_NORM", HEAD), (raters, "REACH", raters.MODEL), (data, "SILENCE", ZERO_SHOT)])
def test_a_prediction_depends_on_the_values_that_its_code_names(
        lone, monkeypatch, module, name, variant):
    job = Job(variant, Cell("a", "b", "groups"), 0)
    before = lab.digest(job, lone)
    monkeypatch.setattr(module, name, 2 * getattr(module, name))
    assert lab.digest(job, lone) != before


@pytest.mark.parametrize(("module", "name", "variant"), [
    (lab, "some_of_each_system", MEAN), (lab, "kind", MEAN), (evaluate, "ridge_by_alpha", RIDGE),
    (data, "folds_of", RIDGE), (evaluate, "predict", HEAD), (moemos, "sparsity_loss", HEAD),
    (moemos, "FeatureFusion", HEAD), (train, "alpha", HEAD), (raters, "halves", raters.MEANS),
    (raters, "RaterMOS", raters.SINGLE), (variants, "LayerWeights", variants.LAYERS),
    (distilled, "zero_shot", ZERO_SHOT)])
def test_a_prediction_depends_on_all_code_on_its_way(lone, monkeypatch, module, name, variant):
    job = Job(variant, Cell("a", "b", "groups"), 0)
    before = lab.digest(job, lone)
    monkeypatch.setattr(module, name, something_else)
    assert lab.digest(job, lone) != before


@pytest.mark.parametrize(("owner", "name", "other"), [
    (data.Clip, "mos", property(lambda clip: max(clip.ratings.values(), default=nan))),
    (lab.Corpus, "rated", property(lambda corpus: corpus.mos > 3))])
def test_a_prediction_depends_on_which_clips_have_which_mos(
        lone, monkeypatch, owner, name, other):
    lone.clips[0].ratings["another rater"] = 1.0
    job = Job(HEAD, Cell("a", "b", "groups"), 0)
    before = lab.digest(job, lone)
    monkeypatch.setattr(owner, name, other)
    assert lab.digest(job, lone) != before


def test_a_prediction_depends_on_whole_groups_though_they_end_alike(lone):
    job = Job(HEAD, Cell("a", "b", "groups"), 0)
    found = set()
    for group in ("one/talker", "other/talker"):
        lone.clips[0].group = group
        found.add(lab.digest(job, lone))
    assert len(found) == 2


def test_a_prediction_does_not_depend_on_what_is_made_of_it(lone, monkeypatch):
    jobs = [Job(variant, Cell("a", "b", "groups"), 0) for variant in (HEAD, RIDGE, ZERO_SHOT)]
    before = [lab.digest(job, lone) for job in jobs]
    for module, name in ((evaluate, "PARTS"), (evaluate, "FEWEST"), (evaluate, "leave_one_out"),
                         (tables, "WITHIN"), (tables, "claim"), (raters, "SHOTS")):
        monkeypatch.setattr(module, name, something_else)
    assert [lab.digest(job, lone) for job in jobs] == before


def test_what_a_prediction_depends_on_is_the_same_in_every_process():
    for name in questions.ASKS:
        for job in questions.jobs_asked(name):
            variant = job.variant
            found = lab.depends_on(lab.predict, variant.predict, variant.label, variant.target,
                                   variant.build)
            assert " at 0x" not in repr(found)


def test_code_counts_and_comments_do_not(tmp_path, monkeypatch):
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


def test_a_missing_listening_test_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("LISTENING_TESTS", str(tmp_path / "none"))
    with pytest.raises(data.InputError, match="is not there; studies/README.md"):
        lab.load("codecs", "logmel")


# -- Tables ----------------------------------------------------------------------------------------

def test_lcc_within_systems_is_the_mean_over_those_that_have_one():
    predicted, mos = [1, 2, 3, 1, 2, 3, 5, 6], [1, 2, 3, 3, 2, 1, 4, 4]
    assert tables.lcc_within_systems(predicted, mos, list("aaabbbcc")) == pytest.approx(0)
    assert np.isnan(tables.lcc_within_systems([1], [1], ["a"]))


def test_a_difference_in_mse_has_students_interval_and_that_of_seeds():
    rng = np.random.default_rng(0)
    true, one, other = rng.normal(size=(3, 40))
    system = [f"s{i % 8}" for i in range(40)]
    pair = [tables.Predicted(np.array([said]), true, system) for said in (one, other)]
    value, error, freedom = tables.difference(*pair, "utterance MSE")
    change = (one - true) ** 2 - (other - true) ** 2
    assert value == pytest.approx(change.mean())
    assert error == pytest.approx(change.std(ddof=1) / np.sqrt(40))
    assert freedom == 39
    _, error, freedom = tables.difference(*pair, "utterance MSE", "systems")
    means = change.reshape(5, 8).mean(0)
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(8), rel=0.02)
    assert freedom == 7
    seeds = tables.Predicted(np.array([one, one + 1]), true, system)
    _, error, _ = tables.difference(seeds, pair[1], "utterance MSE")
    assert error > abs(np.diff(seeds.value("utterance MSE"))[0]) / 2 - 1e-9


def test_of_many_clips_parts_are_left_out_and_of_few_each():
    for clips, parts in ((evaluate.PARTS, 1), (3 * evaluate.PARTS, 3)):
        one = tables.Predicted(np.zeros((1, clips)), np.zeros(clips), ["s"] * clips)
        _, counts = np.unique(one.parts("clips"), return_counts=True)
        assert counts.tolist() == [parts] * evaluate.PARTS
    assert one.parts("systems").tolist() == ["s"] * clips


def test_pooled_claims_and_holm_by_hand():
    value, error, freedom = tables.pooled([(0.02, 0.03, 10), (0.04, 0.04, 10)])
    assert (value, error) == pytest.approx((0.03, 0.025))
    assert freedom == pytest.approx(25 ** 2 / (9 ** 2 / 10 + 16 ** 2 / 10))
    claim = tables.claim((0.03, 0.01, 10))
    assert claim["low"] == pytest.approx(0.03 - 0.02228, abs=1e-4)
    assert claim["high"] == pytest.approx(0.03 + 0.02228, abs=1e-4)
    assert claim["p"] == pytest.approx(0.0133, abs=2e-4)
    assert tables.claim((0.0, 0.0, 5))["p"] == 1
    assert tables.holm([0.03, 0.01, 0.5]) == pytest.approx([0.06, 0.03, 0.5])


def test_what_gates_follow_by_hand():
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


def test_a_share_that_is_chance_is_0_on_average():
    rng = np.random.default_rng(0)
    labels = [list(range(10)) * 3] * 3
    several = [tables.gate_use(rng.dirichlet([1] * 4, 30), rng.normal(size=30), labels)
               for _ in range(300)]
    assert np.abs(np.mean(several, 0)[2:]).max() < 0.02


def test_numbers_and_tables_are_written_plainly():
    assert [tables.number(value) for value in (0.1234, -0.5, 12.04, nan, None, [0.5, 0.1])] == [
        ".123", "-.500", "12.0", "-", "-", ".500 -+ .100"]
    claim = {"value": -0.0123, "low": -0.02, "high": 0.001}
    assert tables.with_interval(claim, 0.04) == "-.012 [-.020, +.001]*"
    assert tables.with_interval(claim) == "-.012 [-.020, +.001]"
    assert tables.table([["a", "b"], ["ccc", "d"]]) == (
        "| a   | b |\n|-----|---|\n| ccc | d |")


# -- Questions -------------------------------------------------------------------------------------

def test_a_question_is_answered_stored_and_checked(lone, monkeypatch, tmp_path, capsys):
    short = tuple(stage._replace(steps=20) for stage in train.STAGES)
    head = lab.Variant("the head", stages=short)
    question = questions.Question(
        "Is it good?", (head, RIDGE, MEAN), {"one": (Cell("a", "b", "groups"),),
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
    rows = questions.as_rows("good")
    assert [row[0] for row in rows] == [
        "utterance LCC", "the head", "ridge", "condition's mean", "the head, utterance MSE",
        "ridge, utterance MSE", "condition's mean, utterance MSE"]
    ridge = lab.do(Job(RIDGE, Cell("a", "b", "groups"), 0))["mos"]
    rated = lone.rated
    assert rows[2][1] == tables.number(moemos.lcc(ridge[rated], lone.mos[rated]))
    assert rows[5][1] == tables.number(moemos.mse(ridge[rated], lone.mos[rated]))
    claims = stored["compared"]["ridge"]
    assert claims["all"]["value"] == pytest.approx(
        (claims["one"]["value"] + claims["two"]["value"]) / 2)
    (row,) = [row for row in stored["numbers"]
              if row["variant"] == "ridge" and row["cell"][2] == "groups"]
    low, high = row["interval_95"]
    assert low < row["utterance LCC"] < high
    assert list(stored["gates"]) == ["the head"]
    reach = np.median([claims["all"]["high"] - claims["all"]["value"]
                       for claims in stored["compared"].values()])
    assert questions.listed("good") == (
        f"good: Is it good? (8 predictions; a difference of {tables.number(reach)} shows)")
    assert "Is it good?" in capsys.readouterr().out
    text = "a\n<!-- good utterance LCC -->\nold\n<!-- end -->\nb\n"
    assert questions.written(text).splitlines()[2:-2] == tables.table(rows[:4]).splitlines()
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
    """The stored answer to "line", with two rows of each kind and the gates of another."""
    def read(name):
        return json.loads((HERE / "studies" / "results" / f"{name}.json").read_bytes())
    stored = read("line")
    ridge = stored["compared"]["ridge"]
    claims = {name: ridge[name] for name in ("all", "other systems")}
    gates = {"the head": read("experts")["gates"]["the head"]}
    return stored | {"rows": stored["rows"][1:3], "numbers": stored["numbers"][:2],
                     "gates": gates, "compared": {"ridge": claims}, "versions": {}, "settings": {}}


def damages(value):
    """Yields a value out of JSON with each part of it, in turn, left out or made something else."""
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


def test_a_damaged_answer_gets_one_sentence_wherever_it_is_damaged(monkeypatch, tmp_path):
    def stop(name, backbone):
        raise data.InputError("enough")
    monkeypatch.setattr(lab, "load", stop)
    monkeypatch.setattr(questions, "HERE", tmp_path)
    path = tmp_path / "results" / "line.json"
    whole = json.dumps(a_stored_answer()).encode()
    texts = [json.dumps(damaged).encode() for damaged in damages(a_stored_answer())]
    texts += [b"", b"x", b"\xff\xfe", b"[" * 100_000, whole[:-1], whole[:len(whole) // 2]]
    refused = 0
    for text in [whole, *texts]:
        data.write_files({path: text})
        for use in (questions.listed, questions.as_text, questions.check):
            try:
                said = use("line")
                assert all(c.isprintable() or c == "\n" for c in said)
            except data.InputError as error:
                refused += "line.json: " in str(error)
                assert str(error).endswith(("run python -m studies.questions line", "enough",
                                            "run it again"))
    assert refused > 2 * len(texts)
    path.unlink()
    with pytest.raises(data.InputError, match="line.json: is not there; run python -m studies"):
        questions.read("line")


def test_an_answer_to_another_question_or_with_other_columns_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(questions, "HERE", tmp_path)
    path = tmp_path / "results" / "line.json"
    for key, value in (("variant", "who left"), ("cell", ["who", "left", "too"])):
        stored = a_stored_answer()
        stored["numbers"] = [row | {key: value} for row in stored["numbers"]]
        data.write_files({path: json.dumps(stored).encode()})
        with pytest.raises(data.InputError, match="line: the stored answer is to another question"):
            questions.check("line")
    stored["rows"][0]["numbers"].pop()
    data.write_files({path: json.dumps(stored).encode()})
    with pytest.raises(data.InputError, match="rows of another length than its heading"):
        questions.read("line")


def test_holm_is_over_all_that_is_claimed_in_all_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(questions, "HERE", tmp_path)
    for question, claimed in (("one", {"x": 0.01, "y": 0.5}), ("two", {"x": 0.02})):
        stored = a_stored_answer()
        (claims,) = stored["compared"].values()
        stored["compared"] = {name: {**claims, "all": {**claims["all"], "p": p}}
                              for name, p in claimed.items()}
        content = json.dumps(stored).encode()
        data.write_files({tmp_path / "results" / f"{question}.json": content})
    assert questions.corrected() == pytest.approx(
        {("one", "x"): 0.03, ("one", "y"): 0.5, ("two", "x"): 0.04})


def test_full_width_holds_the_same_and_more_numbers():
    corpus = make_corpus()
    wide = variants.at_full_width(corpus)
    assert wide.features.shape == (24, 12, 1536)
    flat = corpus.features.flatten(1)
    standard = (flat - flat.mean(0)) / flat.std(0, correction=0)
    wide_flat = wide.features.flatten(1)
    torch.testing.assert_close(wide_flat @ wide_flat.T, standard @ standard.T, rtol=1e-4, atol=1e-4)


def test_every_question_has_a_first_variant_and_names_of_its_own():
    for question in questions.QUESTIONS.values():
        names = [variant.name for variant in question.variants]
        assert names[0] == HEAD.name
        assert len(set(names)) == len(names)
        for variant in question.variants:
            train.check(train.Config(**variant.settings))
    assert (HERE / "studies" / "results").is_dir()
