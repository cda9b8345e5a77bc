"""Tests of studies/crossvalidate.py: its numbers are those of a plain loop over folds."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.io import wavfile

import data
import evaluate
import moemos
import train
from studies import crossvalidate, lab, tables
from studies.lab import MEAN, METHOD, RIDGE, Cell, Job
from test_moemos import call, nan, no_network, plain_ridge  # noqa: F401 - a fixture

SHORT = tuple(stage._replace(steps=5) for stage in train.STAGES)
GROUPS = ("ann", "bob", "cyd", "dan", "eve", "fay", "gil")  # more than there are folds


def write_table(folder, systems=5, group=True, raters=3):
    """Writes WAV files and returns their table, which has clips of all splits and a column that is
    ignored. Each of GROUPS has one clip of each system; one more clip has no ratings. The clips are
    noise, and the lower one is rated, the duller it sounds."""
    rng = np.random.default_rng(0)
    rows = [("wav", "split", "system", "group", "rater", "score", "page")]
    for i in range(len(GROUPS) * systems):
        talker, system = i // systems, i % systems
        quality = 1.5 + 2.5 * system / systems + 0.5 * rng.random()
        kernel = np.ones(1 + int(3 * (4.5 - quality)))
        noise = np.convolve(rng.normal(size=4000), kernel / kernel.sum())
        wavfile.write(folder / f"{i}.wav", 16000, (0.3 * noise).astype(np.float32))
        labels = (f"{i}.wav", ("train", "dev", "test")[i % 3], f"s{system}",
                  GROUPS[talker] if group else "")
        scores = np.round(np.clip(quality + 0.4 * rng.normal(size=raters), 1, 5), 1)
        rows += [(*labels, f"r{rater}", score, "1") for rater, score in enumerate(scores)]
    wavfile.write(folder / "unrated.wav", 16000, (0.3 * noise).astype(np.float32))
    rows.append(("unrated.wav", "train", "other", "", "", "", "1"))
    data.write_files({folder / "ratings.csv": rows})
    return folder / "ratings.csv"


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """An empty folder, and trainings of 5 steps a stage in the process of the test."""
    monkeypatch.chdir(tmp_path)
    short = [dataclasses.replace(variant, stages=SHORT) for variant in crossvalidate.VARIANTS]
    monkeypatch.setattr(crossvalidate, "VARIANTS", tuple(short))
    monkeypatch.setattr(lab, "run", lambda jobs: [lab.do(job) for job in jobs])
    lab.load.cache_clear()
    return tmp_path


def by_hand(clips, features, seed, unheard=False):
    """{predictor: MOS (rated clips,)}, predicted in a plain loop over the groups of ratings.csv, or
    over its systems."""
    rated = [i for i, clip in enumerate(clips) if clip.ratings]
    key = [clip.system if unheard else clip.group for clip in clips]
    names = sorted({key[i] for i in rated})
    said = {"the method": {}, "ridge": {}} | ({} if unheard else {"system's mean": {}})
    for part in range(6):
        own = {name for place, name in enumerate(names) if place % 6 == part}
        test = [i for i in rated if key[i] in own]
        if not test:
            continue
        learned = [i for i in range(len(clips)) if i not in test]
        config = train.Config(seed=seed)
        classes = sorted({clips[i].model for i in learned})
        mos = torch.tensor([clips[i].mos for i in learned], dtype=torch.float64)
        labels = torch.tensor([classes.index(clips[i].model) for i in learned])
        rows = [i for i in learned if clips[i].ratings]
        left = sorted({key[i] for i in rows})
        folds = np.array([left.index(key[i]) % 5 for i in rows])
        weights = moemos.start(features[learned], mos, labels, len(classes), folds)
        torch.manual_seed(seed)
        model = moemos.MoEMOS(2, 80, weights["fusion.axes"].shape[1], len(classes),
                              config.experts, config.hidden)
        model.load_state_dict(weights, strict=False)
        training = train.Tensors(features[learned], mos.float(), labels)
        train.run_stages(model, SHORT, config, training)
        x = features.flatten(1).double().numpy()
        rated_mos = np.array([clips[i].mos for i in rows])
        penalty = weights["penalty"].item()
        line = plain_ridge(x[rows], rated_mos, x[test], penalty * 320)
        for place, i in enumerate(test):
            said["the method"][i] = model.eval()(features[i:i + 1]).mos.item()
            said["ridge"][i] = line[place]
            if not unheard:
                same = [clips[j].mos for j in rows if clips[j].system == clips[i].system]
                said["system's mean"][i] = sum(same) / len(same)
    return {name: np.array([own[i] for i in rated]) for name, own in said.items()}


def cells_of(out, heading):
    """{label: cells} of the printed table whose heading begins like that."""
    lines = out[out.index(f"| {heading} "):].split("\n\n")[0].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {label: cells for label, *cells in split[2:]} | {"columns": split[0][1:]}


def test_the_printed_numbers_are_those_of_a_plain_loop_over_the_groups(quick, monkeypatch, capsys):
    table = write_table(quick)
    assert call(monkeypatch, crossvalidate, table, "--backbone", "logmel") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{table}: 35 rated clips, 1 without ratings\n105 ratings or means by 3 "
                          "named raters, 5 systems, 7 groups, MOS ")
    clips = data.read_ratings(table)
    features = data.extract_features(clips, moemos.load_backbone("logmel"))
    seeds = [by_hand(clips, features, seed) for seed in (0, 1)]
    capsys.readouterr()
    true = np.array([clip.mos for clip in clips if clip.ratings])
    system = np.array([clip.system for clip in clips if clip.ratings])
    reached, compared = (cells_of(out, name) for name in ("95 % intervals", "the method minus"))
    assert reached["columns"] == ["utterance LCC", "utterance MSE", "system LCC"]
    for name in seeds[0]:
        each = [moemos.metrics(one[name], true, system) for one in seeds]
        for metric, cell in zip(reached["columns"], reached[name]):
            mean = np.mean([one[metric] for one in each])
            assert float(cell.split()[0]) == pytest.approx(mean, abs=6e-4)
    ridge = seeds[0]["ridge"]
    error = moemos.system_means(np.square(ridge - true), system)
    reach = 2.7764 * error.std(ddof=1) / np.sqrt(5)  # Student's t of 4
    factor = np.exp((1 + 2 / 5) * reach / error.mean())
    bounds = [float(text) for text in re.findall(r"[\d.]+", reached["ridge"][1])]
    assert bounds == pytest.approx([error.mean(), error.mean() / factor, error.mean() * factor],
                                   abs=6e-4)

    def system_lcc(predicted, rows):
        return moemos.lcc(*(moemos.system_means(values[rows], system[rows])
                            for values in (predicted, true)))
    without = np.array([system_lcc(ridge, system != name) for name in np.unique(system)])
    expected = evaluate.interval(system_lcc(ridge, system != ""), without, "system LCC")
    bounds = [float(text) for text in re.findall(r"-?[\d.]+", reached["ridge"][2])]
    assert bounds[1:] == pytest.approx(expected, abs=6e-4)

    method = [system_lcc(one["the method"], system != "") for one in seeds]
    change = np.array([np.mean([system_lcc(one["the method"], system != name) for one in seeds])
                       for name in np.unique(system)]) - without
    value = np.mean(method) - system_lcc(ridge, system != "")
    of_systems, of_seeds = 4 * change.var(), np.var(method, ddof=1) / 2
    freedom = (of_systems + of_seeds) ** 2 / (of_systems ** 2 / 4 + of_seeds ** 2)
    reach = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(of_systems + of_seeds)
    bounds = [float(text) for text in re.findall(r"[-+][\d.]+", compared["ridge"][2])]
    assert bounds == pytest.approx([value, value - reach, value + reach], abs=6e-4)


def test_with_unheard_each_system_is_predicted_from_the_other_systems_alone(
        quick, monkeypatch, capsys):
    table = write_table(quick)
    words = ("--backbone", "logmel", "--seeds", 1, "--unheard")
    assert call(monkeypatch, crossvalidate, table, *words) == 0
    out = capsys.readouterr().out
    clips = data.read_ratings(table)
    features = data.extract_features(clips, moemos.load_backbone("logmel"))
    expected = by_hand(clips, features, 0, unheard=True)
    true, system = zip(*[(clip.mos, clip.system) for clip in clips if clip.ratings])
    reached = cells_of(out, "95 % intervals")
    assert list(reached) == ["the method", "one expert", "ridge", "columns"]
    for name, predicted in expected.items():
        numbers = moemos.metrics(predicted, true, system)
        for metric, cell in zip(reached["columns"], reached[name]):
            assert float(cell.split()[0]) == pytest.approx(numbers[metric], abs=6e-4)
    assert "learned from other systems only" in " ".join(out.split())
    assert "predicted once, from clips of other systems.\n" in out
    assert "hears nothing" not in out


def test_with_new_groups_each_clip_is_predicted_from_other_systems_and_other_groups_alone(
        quick, monkeypatch, capsys):
    table = write_table(quick)
    words = ("--backbone", "logmel", "--seeds", 1, "--unheard", "--new-groups")
    assert call(monkeypatch, crossvalidate, table, *words) == 0
    out = capsys.readouterr().out
    clips = data.read_ratings(table)
    x = data.extract_features(clips, moemos.load_backbone("logmel")).flatten(1).double().numpy()
    rated = [i for i, clip in enumerate(clips) if clip.ratings]
    number = dict(zip(rated, data.folds_of([clips[i] for i in rated], 6)))
    mos = np.array([clips[i].mos for i in range(len(clips))])
    line = []
    for i in rated:
        rows = [j for j in rated if clips[j].system != clips[i].system and number[j] != number[i]]
        folds = data.folds_of([clips[j] for j in rows], 5)
        penalty = moemos.best_penalty(x[rows], mos[rows], folds)
        line.append(moemos.ridge(x[rows], mos[rows], x[[i]], [penalty])[0, 0])
    reached = cells_of(out, "95 % intervals")
    assert list(reached) == ["the method", "one expert", "ridge", "columns"]
    numbers = moemos.metrics(line, mos[rated], [clips[i].system for i in rated])
    for metric, cell in zip(reached["columns"], reached["ridge"]):
        assert float(cell.split()[0]) == pytest.approx(numbers[metric], abs=6e-4)
    assert "learned from other systems and groups only" in " ".join(out.split())
    assert "predicted once, from clips of other systems and groups.\n" in out


def test_kept_predictions_are_used_again_and_those_of_other_tables_are_kept_apart(
        quick, monkeypatch, capsys):
    tables_of = [quick / name for name in ("one", "other")]
    for folder in tables_of:
        folder.mkdir()
        write_table(folder, systems=3)
    words = ("--backbone", "logmel", "--seeds", 1)
    assert call(monkeypatch, crossvalidate, tables_of[0], *words) == 0
    first = capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in Path(lab.ROOT).glob("**/*.npz")}
    assert len(kept) == 5
    assert call(monkeypatch, crossvalidate, tables_of[0] / "ratings.csv", *words) == 0
    assert capsys.readouterr().out.partition(": ")[2] == first.partition(": ")[2]
    assert kept == {path: path.stat().st_mtime_ns for path in Path(lab.ROOT).glob("**/*.npz")}
    assert call(monkeypatch, crossvalidate, tables_of[1], *words) == 0
    assert len(list(Path(lab.ROOT).glob("**/*.npz"))) == 10
    assert "system LCC" not in first  # of three systems
    job = Job(METHOD, Cell("/etc/../ratings.csv", "logmel", "groups"), 0)
    assert len(job.path().parts) == len(Path(lab.ROOT).parts) + 4
    assert ".." not in job.path().parts


def test_predictions_made_in_other_processes_are_the_same(quick, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(quick)
    table = str(write_table(quick))
    jobs = [Job(variant, Cell(table, "logmel", "groups"), 0) for variant in (RIDGE, MEAN)]
    found = lab.run(jobs)
    for job, result in zip(jobs, found):
        job.path().unlink()
        assert np.array_equal(lab.do(job)["mos"], result["mos"], equal_nan=True)
    assert "ignored" not in capsys.readouterr().err


@pytest.mark.parametrize(("change", "words", "why"), [
    (lambda rows: rows[:10], (), "has 3 rated clips in 1 groups"),
    (lambda rows: [row.replace(",bob,", ",ann,") for row in rows[:31]], (), "clips in 1 groups"),
    (lambda rows: [row.replace(",bob,", ",ann,") for row in rows[:28]] + rows[28:31], (),
     "only 1 of 10 rated clips remain"),
    (lambda rows: [re.sub(",s[0-4],", ",s0,", row) for row in rows], ("--unheard",),
     "by 1 systems"),
    (lambda rows: rows[:1] + rows[1:31], ("--unheard", "--new-groups"), "only 4 of 10 rated clips"),
    (lambda rows: rows, ("--new-groups",), "--new-groups needs --unheard"),
    (lambda rows: [re.sub(r",[\d.]+,1$", ",3,1", row) for row in rows], (), "1 different MOS"),
    (lambda rows: rows, ("--scale", 1, 2), "is off the scale of 1 to 2"),
    (lambda rows: rows, ("--scale", 5, 1), "--scale 5 1: the lower first"),
    (lambda rows: rows, ("--max-seconds", 0.1), "above --max-seconds 0.1"),
    (lambda rows: rows, ("--seeds", 0), "--seeds 0: must be at least 1"),
    (lambda rows: rows, ("--backbone", "none"), "there is no backbone 'none'"),
    (lambda rows: rows, ("--device", "none"), "--device none cannot be used here")])
def test_ratings_that_cannot_be_cross_validated_are_refused_with_one_sentence(
        quick, monkeypatch, capsys, change, words, why):
    table = write_table(quick)
    rows = table.read_text().splitlines()
    table.write_text("\n".join(change(rows)) + "\n")
    backbone = () if "--backbone" in words else ("--backbone", "logmel")
    assert call(monkeypatch, crossvalidate, table, *backbone, *words) == 2
    said = capsys.readouterr()
    assert why in said.err
    assert "|" not in said.out
    assert not Path(lab.ROOT).exists()


def test_reliability_is_the_share_of_the_variance_of_the_mos_that_is_not_chance():
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(2000, 1))
    ratings = quality + rng.normal(size=(1, 8)) + 1.5 * rng.normal(size=(2000, 8))
    share = 1 / (1 + 1.5 ** 2 / 8)
    assert crossvalidate.reliability(ratings) == pytest.approx(share, abs=0.02)
    ratings[rng.random(ratings.shape) < 0.1] = nan
    assert crossvalidate.reliability(ratings) == pytest.approx(share, abs=0.05)
    assert np.isnan(crossvalidate.reliability(ratings[:, :1]))
    assert np.isnan(crossvalidate.reliability(ratings[:9]))
    against = np.concatenate([quality, -quality], axis=1)
    assert np.isnan(crossvalidate.reliability(against))


def say(lccs, ceiling=0.9, groups=4, systems=1, seeds=2, others="groups"):
    """The remarks on predictors that have about these LCC."""
    rng = np.random.default_rng(0)
    true = rng.normal(3, 1, 80)
    names = [f"s{i % systems}" for i in range(80)]
    clips = [data.Clip(f"{i}", None, "test", name, name, f"{i % groups}")
             for i, name in enumerate(names)]
    predicted = {}
    for name, lcc in lccs.items():
        said = lcc * true + np.sqrt(1 - lcc ** 2) * rng.normal(size=80)
        predicted[name] = tables.Predicted([said] * seeds, true, names)
    claims = crossvalidate.compare(predicted)
    return " ".join(crossvalidate.in_words(clips, predicted, claims, ceiling, (1.0, 5.0), others))


def test_the_remarks_say_what_the_intervals_show():
    worse = {"the method": 0.6, "ridge": 0.95, "system's mean": 0.2, crossvalidate.HALF: 0.1}
    said = say(worse)
    assert "the method is worse than a linear model" in said
    assert "it is better than a predictor that hears nothing" in said
    assert "more clips should help" in said
    assert "not even shown" not in said
    assert "intervals are estimated from single clips; probably too narrow." in said
    assert "a system that nobody has rated; --unheard shows how much." in said
    assert "Are there enough clips to compare predictors?" in said
    assert "trained once" not in said
    assert "The MOS of the two panels would have an LCC of about .900" in said
    assert "your panel would be higher: .949, the square root of .900." in said
    assert "No two clips are of one group" not in said
    same = dict.fromkeys(worse, 0.9)
    said = say(same, nan, groups=80)
    assert said.count("not shown to differ from") == 2
    assert "not shown that more clips help" in said
    assert "That is not known. To find out, each clip needs several" in said
    assert "No two clips are of one group." in said
    assert "a better guess" not in said
    said = say(worse, systems=5, seeds=1)
    assert "estimated by leaving out each system in turn." in said
    assert "Are there enough systems to compare predictors?" in said
    assert "Everything was trained once." in said
    assert "What does the score of a system mean" in said
    assert "What does the score of a system mean" not in say(worse)
    said = say(worse | {"the method": 0})
    assert "not even shown" in said
    assert "the mean MOS would be a better guess than these scores" in said


def test_a_remark_warns_if_the_groups_are_the_systems_so_that_no_model_has_heard_a_systems_clips():
    same = {"the method": 0.6, "ridge": 0.6, "system's mean": 0.2}
    said = say(same, systems=4, groups=4)  # clip i is by system i % 4 and in group i % 4
    assert "Of 4 systems, 4 have all their clips in one fold." in said
    assert "let the groups be sentences." in said
    assert "had learned from other clips of each system" not in said
    assert "in one fold" not in say(same, systems=4, groups=5)
    unheard = {"the method": 0.6, "ridge": 0.6}
    for others, warned in (("systems", False), ("systems and groups", True)):
        said = say(unheard, systems=4, groups=80, others=others)
        assert f"had learned from other {others} only." in said
        assert ("No two clips are of one group." in said) is warned


def test_a_score_is_explained_by_its_error_and_by_the_share_of_pairs_in_the_right_order():
    true = np.array([1.0, 2, 3, 4, 5] * 4) + np.arange(20) / 100
    clips = [data.Clip(f"{i}", None, "test", "s", "s", f"{i % 4}") for i in range(20)]
    one = tables.Predicted([true + 0.5 * (-1) ** np.arange(20)], true, ["s"] * 20)
    predicted = dict.fromkeys(("the method",), one) | {
        name: tables.Predicted([true], true, ["s"] * 20) for name in ("ridge", "system's mean")}
    said = " ".join(crossvalidate.in_words(clips, predicted, crossvalidate.compare(predicted), nan,
                                           (1.0, 5.0), "groups"))
    p = one.predictions[0]
    right = [(p[i] - p[j]) * (true[i] - true[j]) > 0 for i in range(20) for j in range(i)]
    assert "from 1 to 5 it is off by .500 (root mean square)" in said
    assert f"the mean MOS would be off by {tables.number(true.std())}" in said
    assert f"in about {100 * np.mean(right):.0f} % of cases" in said


def test_the_score_of_a_system_is_explained_by_its_error_and_by_the_share_of_pairs_of_systems():
    true = np.repeat([1.0, 2, 3, 4, 5], 4) + np.tile([-0.1, 0, 0, 0.1], 5)
    score = np.repeat([1.5, 1.4, 3, 4.2, 4.5], 4) + np.tile([0.3, -0.3, 0.1, -0.1], 5)
    names = [f"s{i // 4}" for i in range(20)]
    clips = [data.Clip(f"{i}", None, "test", name, name, f"{i % 4}")
             for i, name in enumerate(names)]
    predicted = {"the method": tables.Predicted([score], true, names)} | {
        name: tables.Predicted([true], true, names) for name in ("ridge", "system's mean")}
    said = " ".join(crossvalidate.in_words(clips, predicted, crossvalidate.compare(predicted), nan,
                                           (1.0, 5.0), "groups"))
    error = np.sqrt((0.5 ** 2 + 0.6 ** 2 + 0.2 ** 2 + 0.5 ** 2) / 5)  # the third is right
    assert f"It is off by {tables.number(error)}. Of two systems," in said
    assert "gets the higher score in about 90 % of cases." in said  # 9 of the 10 pairs
