"""Tests of the corpora. Each compares with a table written by hand, with published figures, or with
a property that must hold."""

import collections
import csv
import itertools
import json
import math
import os
import re
import string
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from scipy.io import wavfile

import data
import evaluate
import moemos
import train
from corpora import published, simulated
from test_moemos import (
    HERE,
    call,
    lay_out,
    no_network,  # noqa: F401 - for all tests
    quick,
    simulated_corpus,
    table,
)

LISTENING_TESTS = HERE.parent / "shared" / "data" / "listening_tests"
REAL = pytest.mark.skipif(not LISTENING_TESTS.is_dir(),
                          reason="listening_tests does not lie beside the checkout")
# The reference "system's mean" on the real Track 3: MSE, LCC, SRCC and KTAU of
# utterances, then of systems
CONDITION_MEAN = (0.222, 0.856, 0.702, 0.520, 0.101, 0.945, 0.748, 0.575)


# -- The simulated corpus --------------------------------------------------------------------------

def simulate_only(monkeypatch, conditions, augmentation):
    """Makes simulate() leave out other conditions and most clips for augmentation, to save time."""
    kept = {name: simulated.CONDITIONS[name] for name in conditions}
    monkeypatch.setattr(simulated, "CONDITIONS", kept)
    monkeypatch.setattr(simulated, "AUGMENTATION_CLIPS", augmentation)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_the_simulated_corpus_has_as_many_clips_systems_and_raters_as_track_3():
    clips = data.read_ratings(simulated_corpus())
    for split, raters in (("train", range(10)), ("test", range(10, 20))):
        rated = [clip for clip in clips if clip.split == split and clip.ratings]
        assert len(rated) == 400
        assert all(sorted(map(int, clip.ratings)) == list(raters) for clip in rated)
        assert {score for clip in rated for score in clip.ratings.values()} == {1, 2, 3, 4, 5}
        systems = [clip.system for clip in rated]
        assert {system: systems.count(system) for system in systems} == {
            system: 5 if system.startswith("48k") else 30 for system in simulated.CONDITIONS}
        assert all(clip.model == clip.system[4:] for clip in rated)
    unrated = [clip for clip in clips if not clip.ratings]
    assert len(unrated) == 400 and {clip.split for clip in unrated} == {"train"}
    assert {clip.model for clip in unrated} == {
        "CosyVoice-300M", "CosyVoice2-0.5B", "FireRedTTS", "F5-TTS"}
    assert len({clip.model for clip in clips if clip.split == "train"}) == 12


def test_training_and_test_share_no_sentence_and_augmentation_uses_those_of_training():
    plan = simulated.plan_corpus(101)
    for split, sentences in (("train", range(30)), ("test", range(30, 60))):
        planned = [clip for clip in plan if clip.split == split]
        assert {clip.sentence for clip in planned} == set(sentences)
        named = {int(clip.name[-2:]) - 1 for clip in planned if clip.scores}
        assert named == set(sentences)
        clips = [clip for clip in data.read_ratings(simulated_corpus()) if clip.split == split]
        assert {clip.group for clip in clips} == set(map(str, sentences))


def test_each_sentence_has_its_own_talker_but_all_48_khz_clips_are_by_two_studio_talkers():
    rated = [clip for clip in simulated.plan_corpus(101) if clip.scores]
    studio = {clip.talker for clip in rated if clip.rate == 48000}
    others = {(clip.sentence, clip.talker) for clip in rated if clip.rate != 48000}
    assert studio == {0, 1} and len(others) == 60
    assert len({talker for _, talker in others} - studio) == 60


def test_simulated_clips_have_the_right_rate_and_neither_length_nor_level_reveals_the_score():
    clips = data.read_ratings(simulated_corpus())
    audio = [wavfile.read(clip.path) for clip in clips]
    for clip, (rate, _) in zip(clips, audio):
        assert rate == (int(clip.system[:2]) * 1000 if clip.ratings else 24000)
    seconds = np.array([len(samples) / rate for rate, samples in audio])
    assert seconds.min() >= 1.3 and seconds.max() <= 4.0 and 2.3 < seconds.mean() < 2.7
    level = np.array([np.std(samples / 32768) for _, samples in audio])
    level = 20 * np.log10(level)                                       # dB re full scale
    mos = np.array([clip.mos for clip in clips])
    rated = ~np.isnan(mos)
    assert level[rated].min() > -30 and level[rated].max() < -22.9     # -29 to -23, clipped peaks
    for telltale in (level, seconds):
        assert abs(moemos.lcc(telltale[rated], mos[rated])) < 0.12


def test_simulated_super_resolution_mirrors_the_band_below_6_khz():
    phones = simulated.speak(np.random.default_rng(0))
    talker = simulated.talk(np.random.default_rng(1), studio=False) | {"noise": -120}
    likeness = []
    for traces in ({}, {"image": 1.0}):
        rng = np.random.default_rng(2)
        clip = simulated.synthesize(phones, talker, traces, 24000, rng).astype(float)
        spectrum = np.log(np.abs(np.fft.rfft(clip)))
        hz = np.linspace(0, 12000, len(spectrum))
        bands = [spectrum[(hz >= low) & (hz < low + 500)].mean() for low in range(0, 12000, 500)]
        likeness.append(moemos.lcc(bands[12:], bands[11::-1]))
    assert likeness[0] < 0.5 and likeness[1] > 0.95


def test_each_unit_of_severity_multiplies_the_strength_of_every_trace_by_e_to_the_0_6(
        tmp_path, monkeypatch):
    handed = []

    def record_traces(phones, talker, traces, rate, rng):
        handed.append(traces)
        return np.zeros(rate, np.int16)

    monkeypatch.setattr(simulated, "synthesize", record_traces)
    (tmp_path / "wav").mkdir()
    strengths = {"16k_world": {"room": 0.4, "buzz": 0.8, "smooth": 3.0},
                 "24k_ttsSR": {"room": 0.4, "phase": 0.3, "hiss": 0.1, "whine": 0.5, "flat": 0.8,
                               "smooth": 0.2, "image": 0.5},
                 "F5-TTS": {"room": 0.2, "phase": 0.7, "hiss": 0.1, "flat": 0.1}}
    for system, traces in strengths.items():
        clip = next(clip for clip in simulated.plan_corpus(5) if clip.system == system)
        for severity in (-1.0, 0.0, 2.0):
            simulated.render(tmp_path, [clip._replace(severity=severity)], 5)
            assert handed.pop() == pytest.approx(
                {name: math.exp(0.6 * severity) * strength for name, strength in traces.items()})


def test_a_tone_in_the_rendered_audio_grows_with_the_severity_of_its_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(simulated, "RECORDING", {})  # so that nothing but the tone changes
    (tmp_path / "wav").mkdir()
    clip = simulated.plan_corpus(5)[0]._replace(traces={"whine": 1.0})
    tones = []
    for severity in (-1.0, 0.0, 1.0):
        simulated.render(tmp_path, [clip._replace(severity=severity)], 5)
        rate, samples = wavfile.read(tmp_path / "wav" / f"{clip.name}.wav")
        tones.append(samples @ np.exp(-2j * np.pi * 6000 * np.arange(len(samples)) / rate))
    growth = abs(tones[2] - tones[1]) / abs(tones[1] - tones[0])  # the speech cancels out
    assert growth == pytest.approx(math.exp(0.6), rel=0.02)


def test_the_same_seed_gives_the_same_corpus_and_another_seed_changes_every_file(
        tmp_path, monkeypatch):
    simulate_only(monkeypatch, ("48k_original", "48k_nv", "48k_ttsSR"), 2)
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        simulated.simulate(tmp_path / name, seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two and len(one) == 2 * (5 + 5 + 5) + 4 * 2 + 1
    assert not any(one.get(name) == content for name, content in three.items())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_simulation_that_fails_or_is_interrupted_leaves_nothing_behind(
        tmp_path, monkeypatch, error):
    def fail(directory, plan, seed):
        (directory / "wav" / "half.wav").touch()
        raise error

    monkeypatch.setattr(simulated, "render", fail)
    with pytest.raises((data.InputError, KeyboardInterrupt)):
        simulated.simulate(tmp_path / "corpus", 0)
    assert not list(tmp_path.iterdir())


def test_a_killed_simulation_leaves_only_a_partial_folder(tmp_path):
    program = ("import os; from corpora import simulated; "
               "simulated.render = lambda *_: os._exit(9); simulated.simulate('corpus', 0)")
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(HERE)})
    (left,) = tmp_path.iterdir()
    assert done.returncode == 9 and left.name.startswith("corpus.") and left.suffix == ".partial"


# -- The simulated listeners -----------------------------------------------------------------------

def rate_twice(rng):
    """Lets the training panel and the test panel rate clips of the same severity -> for each panel
    {condition: ratings (clips, RATERS)}."""
    severity = {name: rng.normal(size=simulated.CLIPS[name[:2]]) for name in simulated.CONDITIONS}
    halves = []
    for half in (0, 1):
        raters = simulated.draw_panel(rng)
        halves.append({name: simulated.rate_clips(rng, mos[half], severity[name], *raters)
                       for name, mos in simulated.CONDITIONS.items()})
    return halves


def test_simulated_listeners_reproduce_the_published_figures_on_average():
    """The reliabilities, and how well the means of conditions predict, are those of Track 3. The
    effects of raters are those of VCC."""
    errors, rows, reliability, halves, effects = [], [], [], [], []
    for seed in range(200, 212):
        train_half, test_half = rate_twice(np.random.default_rng(seed))
        for name, mos in simulated.CONDITIONS.items():
            errors += [train_half[name].mean() - mos[0], test_half[name].mean() - mos[1]]
        names = np.repeat(list(test_half), [len(scores) for scores in test_half.values()])
        predicted = [train_half[name].mean() for name in names]
        scores = np.concatenate(list(test_half.values()))              # (400, 10)
        rows.append(list(moemos.metrics(predicted, scores.mean(1), names).values()))
        one, other = scores[:, ::2].mean(1), scores[:, 1::2].mean(1)
        r = moemos.lcc(one, other)
        reliability.append(2 * r / (1 + r))                            # Spearman-Brown
        halves.append(moemos.metrics(one, other, names)["system SRCC"])
        residual = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        slopes = [np.polyfit(scores.mean(1), of_rater, 1)[0] for of_rater in scores.T]
        effects.append([scores.mean(0).std(ddof=1), residual.std() * math.sqrt(10 / 9),
                        np.std(slopes, ddof=1)])
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.11
    np.testing.assert_allclose(np.mean(rows, 0), CONDITION_MEAN, atol=0.04)
    assert np.mean(reliability) == pytest.approx(0.900, abs=0.025)
    assert np.mean(halves) == pytest.approx(0.951, abs=0.025)
    bias, residual, gain = np.mean(effects, 0)
    assert 0.42 <= bias <= 0.70 and 0.68 <= residual <= 0.86 and 0.14 <= gain <= 0.24


def test_panels_rate_the_same_test_clips_and_do_not_change_the_training_ratings():
    plans = {panel: simulated.plan_corpus(5, panel) for panel in simulated.PANELS}
    assert plans["second"] == simulated.plan_corpus(5)
    for panel, plan in plans.items():
        for clip, second in zip(plan, plans["second"], strict=True):
            assert clip == second or clip.split == "test"
            assert clip._replace(scores=0) == second._replace(scores=0)
        raters = range(10) if panel == "training" else range(10, 20)
        assert all(list(clip.scores) == list(raters) for clip in plan if clip.split == "test")


def test_each_panel_has_its_stated_mean_and_raters_and_independent_errors():
    plans = {panel: simulated.plan_corpus(5, panel) for panel in simulated.PANELS}
    scores = {panel: np.array([list(clip.scores.values()) for clip in plan if clip.split == "test"])
              for panel, plan in plans.items()}                        # (400, 10) each
    training = np.array([list(clip.scores.values()) for clip in plans["second"][:400]])
    systems = np.array([clip.system for clip in plans["second"] if clip.split == "test"])
    for panel, half in (("training", 0), ("unbiased", 0), ("second", 1)):
        errors = [scores[panel][systems == system].mean() - mos[half]
                  for system, mos in simulated.CONDITIONS.items()]
        assert np.mean(errors) == pytest.approx(0, abs=0.05)
    assert scores["second"].mean() - scores["strict"].mean() == pytest.approx(0.5, abs=0.05)
    rater = {panel: ratings.mean(0) for panel, ratings in scores.items()}
    assert rater["unbiased"].std() < 0.1 and rater["second"].std() > 0.3
    assert moemos.lcc(rater["strict"], rater["second"]) > 0.95         # the same raters
    assert moemos.lcc(rater["training"], training.mean(0)) > 0.95      # the same raters
    residual = {panel: (ratings - ratings.mean(0) - ratings.mean(1, keepdims=True)).ravel()
                for panel, ratings in scores.items()}
    for one, other in itertools.combinations(residual.values(), 2):
        assert abs(moemos.lcc(one, other)) < 0.1


def test_the_option_panels_adds_one_table_of_ratings_for_each_panel(tmp_path, monkeypatch, capsys):
    simulate_only(monkeypatch, ("48k_worldSR",), 1)
    assert call(monkeypatch, simulated, tmp_path / "7", "--seed", 7, "--panels") == 0
    ratings = {panel: (tmp_path / "7" / f"ratings_{panel}.csv").read_bytes()
               for panel in simulated.PANELS}
    assert len(set(ratings.values())) == 4
    assert call(monkeypatch, simulated, tmp_path / "plain", "--seed", 7) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / '7'}: 14 clips", f"{tmp_path / 'plain'}: 14 clips"]
    for name, content in contents(tmp_path / "plain").items():
        assert (tmp_path / "7" / name).read_bytes() == content
    assert ratings["second"] == (tmp_path / "plain" / "ratings.csv").read_bytes()


def test_an_existing_corpus_is_kept_if_it_is_the_one_of_this_seed_and_else_refused(
        tmp_path, monkeypatch):
    simulate_only(monkeypatch, ("48k_worldSR",), 1)
    simulated.simulate(tmp_path / "7", 7)
    before = [path.stat().st_mtime_ns for path in (tmp_path / "7" / "wav").iterdir()]
    simulated.prepare(tmp_path / "7", 7)
    assert before == [path.stat().st_mtime_ns for path in (tmp_path / "7" / "wav").iterdir()]
    with pytest.raises(data.InputError, match="7 was not simulated with --seed 8"):
        simulated.prepare(tmp_path / "7", 8)
    (tmp_path / "x" / "y").mkdir(parents=True)
    with pytest.raises(data.InputError, match="no empty folder"):
        simulated.prepare(tmp_path / "x", 8)

    def made_meanwhile(corpus, seed):
        os.replace(tmp_path / "7", corpus)
        raise data.InputError("it is there")

    monkeypatch.setattr(simulated, "simulate", made_meanwhile)
    simulated.prepare(tmp_path / "9", 7)
    assert (tmp_path / "9" / "ratings_strict.csv").exists()


@pytest.mark.parametrize(("words", "why"), [
    (["HERE"], "is there and no empty folder"), (["HERE/file"], "is there and no empty folder"),
    (["HERE/file/x"], "cannot be written"), (["x", "--seed", "-1"], "--seed -1: must be at least"),
    (["x", "--seed", "-1", "--panels"], "--seed -1"), ([], "required: DIR"),
    (["x", "--pan"], "unrecognized")])
def test_an_impossible_simulation_is_refused_with_one_sentence_and_status_2(
        tmp_path, monkeypatch, capsys, words, why):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    words = [word.replace("HERE", str(tmp_path)) for word in words]
    assert call(monkeypatch, simulated, *words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert why in last and [path.name for path in tmp_path.iterdir()] == ["file"]


# -- Published data sets ---------------------------------------------------------------------------

TRACK3 = "uttID,lisID,rating\n"
OBF, EVAL = "track3_obf/DATA", "audiomos2025-track3-eval-phase/DATA"
CLEAN = "training_files/split1/clean"
SOMOS = "systemId,utteranceId,choice,listenerId\n"
POST_EVALUATION = (  # tables, clips, rows of ratings.csv
    {"post_eval_distro/train/utt_16k.csv":
     TRACK3 + "audiomos-track3-16k_nv_1_2.wav,01,4\naudiomos-track3-16k_nv_1_2.wav,02,5\n",
     "post_eval_distro/train/utt_24k.csv":
     TRACK3 + "audiomos-track3-24k_originalSR_1089_134686_000015_000002.wav,01,3\n",
     "post_eval_distro/val/utt_mix_val.csv": TRACK3 + "audiomos-track3-16k_nv_1_2.wav,01,1\n",
     "post_eval_distro/test/utt_mix_test.csv": TRACK3 + "audiomos-track3-48k_worldSR_7.wav,11,2\n"},
    ["post_eval_distro/wav/audiomos-track3-16k_nv_1_2.wav",
     "post_eval_distro/wav/audiomos-track3-24k_originalSR_1089_134686_000015_000002.wav",
     "post_eval_distro/wav/audiomos-track3-48k_worldSR_7.wav"],
    [(0, "train,16k_nv,nv,,utt_16k:01,4"), (0, "train,16k_nv,nv,,utt_16k:02,5"),
     (1, "train,24k_originalSR,originalSR,,utt_24k:01,3"),
     (2, "test,48k_worldSR,worldSR,,utt_mix_test:11,2")])
PHASES = (
    {f"{OBF}/utt_16k.csv": TRACK3 + "audiomos-track3-16k_sys1_utt31.wav,01,4\n",
     f"{OBF}/utt_24k.csv": TRACK3 + "audiomos-track3-24k_sys2_utt31.wav,01,3\n"
                                    "audiomos-track3-24k_sys3_utt31.wav,01,2\n",
     f"{EVAL}/sets/eval_list.txt":
     "audiomos-track3-16k_sys1_utt51\naudiomos-track3-48k_sys12_utt52\n"},
    [f"{OBF}/wav/audiomos-track3-16k_sys1_utt31.wav",
     f"{OBF}/wav/audiomos-track3-24k_sys2_utt31.wav",
     f"{OBF}/wav/audiomos-track3-24k_sys3_utt31.wav",
     f"{EVAL}/wav/audiomos-track3-16k_sys1_utt51.wav",
     f"{EVAL}/wav/audiomos-track3-48k_sys12_utt52.wav"],
    [(0, "train,16k_sys1,sys1,,utt_16k:01,4"), (1, "train,24k_sys2,sys2,,utt_24k:01,3"),
     (2, "train,24k_sys3,sys3,,utt_24k:01,2"), (3, "test,16k_sys1,sys1,,,"),
     (4, "test,48k_sys12,sys12,,,")])
BVCC = (
    {"DATA/sets/TRAINSET":
     "sys64e2f,sys64e2f-utt9c.wav,4,VDP1_1,{}_30-39_bZPQE7w4Zl3g_Female_Valid_1_No\n"
     "sys64e2f,sys64e2f-utt9c.wav,2,x,{}_30-39_other_Male_Valid_1_No\n",
     "DATA/sets/DEVSET": "sysdev00,sysdev00-utt1.wav,3,x,{}_30-39_third_Male_Valid_1_No\n",
     "DATA/sets/TESTSET": "sysnew00,sysnew00-utt2.wav,5,x,{}_30-39_third_Male_Valid_1_No\n"},
    ["DATA/wav/sys64e2f-utt9c.wav", "DATA/wav/sysdev00-utt1.wav", "DATA/wav/sysnew00-utt2.wav"],
    [(0, "train,sys64e2f,sys64e2f,,bZPQE7w4Zl3g,4"), (0, "train,sys64e2f,sys64e2f,,other,2"),
     (1, "dev,sysdev00,sysdev00,,third,3"), (2, "test,sysnew00,sysnew00,,third,5")])
BVCC_MEANS = (
    {"DATA/sets/train_mos_list.txt": "sys64e2f-utt1.wav,3.125\n", "DATA/sets/val_mos_list.txt": "",
     "DATA/sets/test_mos_list.txt": "sys64e2f-utt2.wav,2.5\n"},
    ["DATA/wav/sys64e2f-utt1.wav", "DATA/wav/sys64e2f-utt2.wav"],
    [(0, "train,sys64e2f,sys64e2f,,,3.125"), (1, "test,sys64e2f,sys64e2f,,,2.5")])
SOMOS_CLEAN = (
    {f"{CLEAN}/TRAINSET": SOMOS + "015,novel_2007_0098_015.wav,4,KEXM49572020611127\n",
     f"{CLEAN}/VALIDSET": SOMOS, f"{CLEAN}/TESTSET": SOMOS + "016,x_016,3,L2\n"},
    ["audios/novel_2007_0098_015.wav", "audios/x_016.wav"],
    [(0, "train,015,015,,KEXM49572020611127,4"), (1, "test,016,016,,L2,3")])
SYNT, CODEC = "3synt_listening_test_results", "mushra_results_dataset"
MOS_PT, EXP = "metrics/MOS/PT/naturalness-MOS.csv", "Exp.2/model+SCL/Portuguese_MLS_SECS"
SPEAKERS = ("test,item,score,speaker_name,speaker,rater,rater_gender,rater_age,speaker_wav\n"
            "137,4,2,S2_CHAR,3338,49,M,31,04_S2_01_CHAR.wav\n"
            "137,4,3,S2_CHAR,3338,50,N,40,04_S2_01_CHAR.wav\n")
ESTONIAN = (
    {f"{SYNT}/all.csv": SPEAKERS + "137,5,7,S3_NEU,3337,49,M,31,05_S3_10_NEU.wav\n"},
    [f"{SYNT}_resources/04_S2_01_CHAR.wav", f"{SYNT}_resources/05_S3_10_NEU.wav"],
    [(0, "test,S2_CHAR,S2_CHAR,01,49,2"), (0, "test,S2_CHAR,S2_CHAR,01,50,3"),
     (1, "train,S3_NEU,S3_NEU,10,49,7")])
SIGNALS = "signal,condition,ratings,participant_ids,file\n"
CODECS = (
    {f"{CODEC}/ratings_formated_filtered.csv":
     SIGNALS + 'VCTK,Proposed 1.38,"[41.0, 32.5]","[2, 3]",stim_01/prop.wav\n'
               'VCTK,3.5 kHz anchor,"[9.0, 8.0]","[2, 3]",\n'
               'TSP,Proposed 1.38,[77.0],[3],stim_02/prop.wav\n'},
    [f"{CODEC}/audio/stim_01/prop.wav", f"{CODEC}/audio/stim_02/prop.wav"],
    [(0, "test,Proposed 1.38,Proposed 1.38,stim_01,2,41"),
     (0, "test,Proposed 1.38,Proposed 1.38,stim_01,3,32.5"),
     (1, "train,Proposed 1.38,Proposed 1.38,stim_02,3,77")])
VOTES = "audio_path,score,evaluator_id\n"
YOURTTS = (
    {MOS_PT: VOTES + f"{EXP}/11995_25.wav,2.0,7\n{EXP}/11995_25.wav,3.5,8\n"
                     "Exp.4/model+SCL/Portuguese_MLS_SECS/11995_10.wav,1.0,7\n"
                     "Exp.5/Portuguese/After-FT-1-min/PT-F.wav_18.wav,3.0,7\n"
                     "Exp.6/PT-EN/F-F/3050_to_p294_sample_p294_005.wav,4.0,7\n"
                     "GT/MLS-PT/11995/11995_10229_000003.wav,5.0,8\n"},
    [f"audios_demo/{EXP}/11995_25.wav",
     "audios_demo/Exp.5/Portuguese/After-FT-1-min/PT-F.wav_18.wav",
     "audios_demo/Exp.6/PT-EN/F-F/3050_to_p294_sample_p294_005.wav",
     "audios_demo/GT/MLS-PT/11995/11995_10229_000003.wav"],
    [(0, "test,Exp.2/model+SCL/Portuguese_MLS,Exp.2/model+SCL/Portuguese_MLS,11995,7,2"),
     (0, "test,Exp.2/model+SCL/Portuguese_MLS,Exp.2/model+SCL/Portuguese_MLS,11995,8,3.5"),
     (1, "train,Exp.5/Portuguese/After-FT-1-min,Exp.5/Portuguese/After-FT-1-min,PT-F,7,3"),
     (2, "train,Exp.6/PT-EN,Exp.6/PT-EN,p294,7,4"), (3, "test,GT/MLS-PT,GT/MLS-PT,11995,8,5")])
FOUND = [
    (POST_EVALUATION, "AudioMOS 2025 Track 3, post-evaluation archive", (1, 5),
     ["train 2 clips, 3 ratings, 2 systems", "test 1 clips, 1 ratings, 1 systems"]),
    (PHASES, "AudioMOS 2025 Track 3, phase archives", (1, 5),
     ["train 3 clips, 3 ratings, 3 systems", "test 2 clips, 0 ratings, 2 systems"]),
    (BVCC, "BVCC, single ratings", (1, 5),
     ["train 1 clips, 2 ratings, 1 systems", "dev 1 clips, 1 ratings, 1 systems",
      "test 1 clips, 1 ratings, 1 systems"]),
    (BVCC_MEANS, "BVCC, mean ratings", (1, 5),
     ["train 1 clips, 1 ratings, 1 systems", "test 1 clips, 1 ratings, 1 systems"]),
    (SOMOS_CLEAN, "SOMOS, clean split", (1, 5),
     ["train 1 clips, 1 ratings, 1 systems", "test 1 clips, 1 ratings, 1 systems"]),
    (ESTONIAN, "Estonian synthesisers", (1, 7),
     ["train 1 clips, 1 ratings, 1 systems", "test 1 clips, 2 ratings, 1 systems"]),
    (CODECS, "neural codecs (MUSHRA)", (0, 100),
     ["train 1 clips, 1 ratings, 1 systems", "test 1 clips, 2 ratings, 1 systems"]),
    (YOURTTS, "YourTTS, Portuguese", (1, 5),
     ["train 2 clips, 2 ratings, 2 systems", "test 2 clips, 3 ratings, 2 systems"]),
]


def own_corpus(folder):
    """A ratings.csv of four clips, without the column `model`."""
    rows = ("a.wav,train,s,r,4", "b.wav,train,s,r,2.5", "c.wav,train,t,r,1", "d.wav,test,t,,")
    text = "\n".join(["wav,split,system,rater,score", *rows, ""])
    return lay_out(folder, {"ratings.csv": text}, ["a.wav", "b.wav", "c.wav", "d.wav"])


@pytest.mark.parametrize(("layout", "name", "scale", "found"), FOUND)
def test_each_data_set_is_converted_into_the_table_that_was_written_by_hand(
        tmp_path, monkeypatch, capsys, layout, name, scale, found):
    files, wavs, rows = layout
    folder, out = lay_out(tmp_path / "set", files, wavs), tmp_path / "mine" / "ratings.csv"
    assert call(monkeypatch, published, folder, "--out", out) == 0
    lines = [f"../set/{wavs[wav]},{rest}" for wav, rest in rows]
    assert out.read_text() == "\n".join(["wav,split,system,model,group,rater,score", *lines, ""])
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}: {name}; ") and all(part in first for part in found)
    message = "the scale is {0} to {1}: train.py needs --scale {0} {1}".format(*scale)
    assert others == ([] if scale == (1, 5) else [message])
    clips = data.read_ratings(out, scale)
    assert [clip.path.resolve() for clip in clips] == [folder / wav for wav in wavs]
    ratings = [(i, rater, score) for i, clip in enumerate(clips)
               for rater, score in clip.ratings.items()]
    rated = [(wav, *rest.split(",")[4:]) for wav, rest in rows if not rest.endswith(",,,")]
    assert ratings == [(wav, rater, float(score)) for wav, rater, score in rated]


@pytest.mark.parametrize(("layout", "inside"), [
    (POST_EVALUATION, "post_eval_distro"), (PHASES, OBF), (PHASES, EVAL), (BVCC, "DATA"),
    (BVCC_MEANS, "DATA")])
def test_the_folder_inside_an_archive_is_recognised_too(tmp_path, monkeypatch, layout, inside):
    files, wavs, rows = layout
    folder = lay_out(tmp_path, files, wavs) / inside
    assert call(monkeypatch, published, folder, "--out", folder / "ratings.csv") == 0
    below = [(wavs[wav], rest) for wav, rest in rows if wavs[wav].startswith(inside)]
    lines = [f"{wav.removeprefix(f'{inside}/')},{rest}" for wav, rest in below]
    assert (folder / "ratings.csv").read_text().splitlines()[1:] == lines


def test_a_ratings_csv_that_lies_in_a_data_set_is_read_only_if_it_is_named(tmp_path, monkeypatch):
    files, wavs, _ = BVCC
    folder, out = lay_out(tmp_path, files, wavs) / "DATA", tmp_path / "out.csv"
    rows = "wav,split,system,rater,score\nwav/sysdev00-utt1.wav,test,s,r,2\n"
    lay_out(folder, {"ratings.csv": rows}, [])
    for path, clips in ((folder, 3), (folder / "ratings.csv", 1)):
        assert call(monkeypatch, published, path, "--out", out) == 0
        assert len(data.read_ratings(out)) == clips


def test_single_ratings_are_preferred_if_a_data_set_also_has_their_means(
        tmp_path, monkeypatch, capsys):
    files, wavs, rows = BVCC
    means = {"DATA/sets/train_mos_list.txt": "sys64e2f-utt9c.wav,3\n"}
    folder = lay_out(tmp_path, means | files, wavs)
    assert call(monkeypatch, published, folder, "--out", tmp_path / "t.csv") == 0
    assert "BVCC, single ratings" in capsys.readouterr().out
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == [
        f"{wavs[wav]},{rest}" for wav, rest in rows]


UTT, LIST = "post_eval_distro/train/utt_16k.csv", f"{EVAL}/sets/eval_list.txt"
TRAINSET, NV = "DATA/sets/TRAINSET", "audiomos-track3-16k_nv_1_2.wav"


@pytest.mark.parametrize(("layout", "name", "text", "why"), [
    (POST_EVALUATION, UTT, "uttID,rating\n", ": the first row must name uttID,lisID,rating, each"),
    (POST_EVALUATION, UTT, f"{NV},01,4\n",
     ", each once, with commas between, not 'audiomos-track3-16k_nv_1_2"),
    (POST_EVALUATION, UTT, "uttID,lisID,rating,rating\n",
     ", each once, with commas between, not 'uttID,lisID,ra"),
    (POST_EVALUATION, UTT, "", ", each once, with commas between, not ''"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01\n", ", row 2: a row needs one value for each of uttI"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,4,5\n", ", row 2: a row needs one value for each of"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,4\nx.wav,01,4\n", ", row 3: {'uttID': 'x.wav', "),
    (POST_EVALUATION, UTT, f"{TRACK3}audiomos-track3-32k_nv_1,01,4\n", "32k_nv_1 is not the name"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,4\n\n{NV},01,4\n", "row 4: rater 'utt_16k:01' has ra"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,good\n", ", row 2: the score 'good' is not a number"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,\n", ", row 2: the score '' is not a number"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,6\n", ", row 2: the score 6 is off the scale of 1 to"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,nan\n", ", row 2: the score nan is off the scale"),
    (POST_EVALUATION, UTT, f"{TRACK3}\udcff,01,4\n", ": is not a CSV table in UTF-8"),
    (POST_EVALUATION, UTT, f'{TRACK3}"{NV},01,4', ": is not a CSV table in UTF-8 (unexpected end"),
    (POST_EVALUATION, "post_eval_distro/test/utt_mix_test.csv", f"{TRACK3}{NV},11,4\n",
     ", row 2: audiomos-track3-16k_nv_1_2.wav has another split, system, model or group"),
    (PHASES, LIST, "audiomos-track3-16k_sys1_utt99\n", "sys1_utt99.wav' is missing, or is no"),
    (PHASES, LIST, "utt51\n", ", row 1: {'uttID': 'utt51'} is not a row of"),
    (PHASES, LIST, "audiomos-track3-16k_sys1_utt51,4\n", ", row 1: a row needs one value for each"),
    (BVCC, TRAINSET, "sys64e2f,sys64e2f-utt9c.wav,4,x\n", ", row 1: a row needs one value for"),
    (BVCC, TRAINSET, "sys64e2f,sys64e2f-utt9c.wav,4,x,someone\n",
     "is not a row of BVCC, single ratings (the listener must be {}_AGE_ID_..., not 'someone')"),
    (BVCC, TRAINSET, "s,,4,x,{}_30_id\n", ", row 1: wav and system need a value"),
    (BVCC_MEANS, "DATA/sets/test_mos_list.txt", "sys64e2f-utt2.wav,x\n", ", row 1: the score 'x'"),
    (SOMOS_CLEAN, f"{CLEAN}/VALIDSET", "systemId,choice\n", "must name systemId,utteranceId,choi"),
    (ESTONIAN, f"{SYNT}/all.csv", SPEAKERS + "1,4,2,S2,3,9,M,31,S2.wav\n", ", row 4: {'test': '1'"),
    (ESTONIAN, f"{SYNT}/all.csv", SPEAKERS.replace(",2,", ",8,"),
     ", row 2: the score 8 is off the scale of 1 to 7"),
    *((CODECS, f"{CODEC}/ratings_formated_filtered.csv", f"{SIGNALS}s,c,{cells},stim_01/prop.wav",
       ", row 2: {'signal': 's', 'condition': 'c', ") for cells in (
           '"[41.0, 32.0]",[2]', "[41.0],2", "41.0,[2]", "[41.0,[2]", "x,y", ",", "'45','12'",
           '"{41, 32}","[2, 3]"', '"[41, 32]","{2, 3}"', '"41, 32","2, 3"', "'4',[2]")),
    (YOURTTS, MOS_PT, VOTES + 2 * f"{EXP}/11995_25.wav,2.0,7\n", ", row 3: rater '7' has rated")])
def test_a_bad_row_is_refused_with_its_file_and_number_and_an_older_table_is_kept(
        tmp_path, monkeypatch, capsys, layout, name, text, why):
    files, wavs, _ = layout
    folder = lay_out(tmp_path / "set", files, wavs)
    (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    out = lay_out(tmp_path / "out", {"ratings.csv": "of yesterday"}, []) / "ratings.csv"
    assert call(monkeypatch, published, folder, "--out", out) == 2
    *others, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"corpora.published: {folder / name}") and why in sentence
    assert all("columns that are ignored" in line for line in others)
    assert contents(tmp_path / "out") == {"ratings.csv": b"of yesterday"}


@pytest.mark.parametrize(("words", "why"), [
    (["nowhere", "--out", "t.csv"], "corpora.published: nowhere: there is no such file or folder"),
    (["EMPTY", "--out", "t.csv"], "EMPTY: there is no data set that is known; looked for"),
    (["EMPTY", "--out", "t.csv"], "sets/TRAINSET, sets/train_mos_list.txt, training_files/"),
    (["x" * 300, "--out", "t.csv"], "xxx: there is no such file or folder"),
    (["BARE", "--out", "t.csv"], "BARE: there are no rows in the tables of this data set"),
    (["OWN"], "required: --out"), (["OWN", "--out", ""], "--out .: name a table"),
    (["OWN", "--out", "EMPTY"], "--out EMPTY: name a table, which ends in .csv"),
    (["OWN", "--out", "OWN/a.wav"], "--out OWN/a.wav: name a table, which ends in .csv"),
    (["OWN", "--out", "OWN/a.wav/t.csv"], "OWN/a.wav/t.csv: cannot be written"),
    (["OWN", "--out", "t.csv", "--scale", "0", "3"], "ratings.csv, row 2: the score 4 is off the"),
    (["OWN", "--out", "t.csv", "--augment", "nowhere"], "--augment nowhere: is not a folder"),
    (["OWN", "--out", "t.csv", "--augment", "EMPTY"], "there is no WAV file in this folder"),
    (["OWN", "--out", "t.csv", "--augment", "LOOSE"], "a.wav: must lie in a subfolder of LOOSE"),
    (["OWN", "--out", "t.csv", "--augment", "."], "a.wav: is a clip of OWN too; take it out of ."),
    (["OWN", "--out", "t.csv", "--aug", "EMPTY"], "unrecognized arguments: --aug EMPTY"),
    *((["OWN", "--out", "t.csv", "--fold", fold], f"--fold {fold!r}: must be K/N, as 1/5 is the")
      for fold in ("0/5", "6/5", "1/1", "1", "1.0/5", "1/5/5", "one/five", "1/99999")),
    (["OWN", "--out", "t.csv", "--fold", "5/9"], "--fold 5/9: leaves no rated clip for training"),
    (["SILENT", "--out", "t.csv"], "SILENT: none of the clips in the tables of this data set is"),
    (["OWN", "--out", "t.csv", "--part", "x"], "invalid choice: 'x'")])
def test_input_or_options_that_cannot_be_used_get_one_sentence_and_status_2(
        tmp_path, monkeypatch, capsys, words, why):
    own_corpus(tmp_path / "OWN")
    lay_out(tmp_path / "LOOSE", {}, ["a.wav"])
    lay_out(tmp_path / "BARE", {f"{CLEAN}/TRAINSET": SOMOS}, [])
    lay_out(tmp_path / "SILENT", YOURTTS[0], [])
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert call(monkeypatch, published, *words) == 2
    assert why in capsys.readouterr().err.splitlines()[-1]
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("layout", "inside"), [
    (ESTONIAN, SYNT), (CODECS, CODEC), (YOURTTS, "metrics")])
def test_a_listening_test_is_also_recognised_by_the_folder_of_its_table(tmp_path, layout, inside):
    folder = lay_out(tmp_path, *layout[:2])
    one, other = (published.read(path) for path in (folder, folder / inside))
    assert len(one[2]) == len(layout[1]) and one[:2] == other[:2]
    for clip, same in zip(one[2], other[2], strict=True):
        assert clip == same


def test_rated_clips_whose_audio_is_missing_are_left_out_and_counted_in_one_line(
        tmp_path, monkeypatch, capsys):
    for number, layout in enumerate((YOURTTS, SOMOS_CLEAN, POST_EVALUATION)):
        files, wavs, _ = layout
        folder = lay_out(tmp_path / str(number), files, wavs)
        (folder / wavs[0]).unlink()  # which has two ratings in two of these data sets
        assert call(monkeypatch, published, folder, "--out", folder / "t.csv") == 0
        first = capsys.readouterr().out.splitlines()[0]
        assert first == f"{folder}: 1 rated clips are left out, their audio is not there"
        assert {row["wav"] for row in table(folder / "t.csv")} == set(wavs[1:])


def workbook(path, sheets):
    """An .xlsx of {name of a sheet: its rows, of texts and numbers}, as Excel lays it out."""
    names = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    links = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    texts, listed, targets, parts = [], "", "", {}
    for number, (name, rows) in enumerate(sheets.items()):
        text = ""
        for i, row in enumerate(rows, 1):
            cells = ""
            for letter, value in zip(string.ascii_uppercase, row):
                if isinstance(value, str):
                    texts.append(value)
                    cells += f'<c r="{letter}{i}" t="s"><v>{len(texts) - 1}</v></c>'
                elif value is not None:
                    cells += f'<c r="{letter}{i}"><v>{value}</v></c>'
            text += f'<row r="{i}">{cells}</row>'
        file = f"worksheets/sheet{9 - number}.xml"  # the files are in another order than the names
        parts[file] = f'<worksheet xmlns="{names}"><sheetData>{text}</sheetData></worksheet>'
        listed += f'<sheet name="{name}" sheetId="{number}" r:id="rId{number}"/>'
        targets += f'<Relationship Id="rId{number}" Target="{file}"/>'
    shared = "".join(f"<si><r><t>{text[:2]}</t></r><r><t>{text[2:]}</t></r></si>" for text in texts)
    parts |= {"sharedStrings.xml": f'<sst xmlns="{names}">{shared}</sst>',
              "_rels/workbook.xml.rels": f"<Relationships>{targets}</Relationships>",
              "workbook.xml": f'<workbook xmlns="{names}" xmlns:r="{links}"><sheets>{listed}'
                              "</sheets></workbook>"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, text in parts.items():
            book.writestr(f"xl/{name}", text)


P835 = "p835_reference_conditions"
BOOK = f"{P835}/CSP835_Ref_Conditions.xlsx"
SHEETS = {part: f"{part}-results per file" for part in ("16KHzWB", "Fullband")}


def p835_row(wav, mean):
    """A row of the workbook, whose second column is the file and the eleventh its mean."""
    return ["url", wav, 1, 15, 4.5, 0.7, 0.4, 4.6, 0.6, 0.3, mean, 0.6]


def lay_out_p835(folder):
    """Two clips in wide band and two in full band, with rows that lack a mean or a file."""
    head = p835_row("wav", "mean")
    wide = [head, p835_row("c0_f2.wav", 4.4), p835_row("c0_m1.wav", None), p835_row(None, 3),
            p835_row("c12_m3.wav", 2)]
    sheets = {"description": [["text"]], SHEETS["Fullband"]: [head, p835_row("c0_f2.wav", 3.1),
                                                              p835_row("c1_m1.wav", 1.5)],
              SHEETS["16KHzWB"]: wide}
    workbook(folder / BOOK, sheets)
    return lay_out(folder, {}, [f"{P835}/{name}.wav" for name in (
        "degraded_WB_16KHz/c0_f2", "degraded_WB_16KHz/c12_m3", "degraded/c0_f2", "degraded/c1_m1")])


@pytest.mark.parametrize("inside", ["", P835])
def test_p835_is_read_from_its_workbook_in_wide_band_unless_full_band_is_asked_for(
        tmp_path, monkeypatch, inside):
    folder = lay_out_p835(tmp_path / "P.808")
    words = (folder / inside, "--out", folder / "t.csv")
    assert call(monkeypatch, published, *words) == 0
    assert (folder / "t.csv").read_text().splitlines()[1:] == [
        f"{P835}/degraded_WB_16KHz/c0_f2.wav,test,c0,c0,f2,,4.4",
        f"{P835}/degraded_WB_16KHz/c12_m3.wav,train,c12,c12,m3,,2"]
    assert call(monkeypatch, published, *words, "--part", "fullband") == 0
    assert (folder / "t.csv").read_text().splitlines()[1:] == [
        f"{P835}/degraded/c0_f2.wav,test,c0,c0,f2,,3.1",
        f"{P835}/degraded/c1_m1.wav,train,c1,c1,m1,,1.5"]


def wide_band(folder, *rows):
    workbook(folder / BOOK, {SHEETS["16KHzWB"]: [p835_row("wav", "mean"), *rows]})


def shortened(path):
    path.write_bytes(path.read_bytes()[:-100])


def with_zeros(path):
    """Damages the compressed data of a part."""
    with zipfile.ZipFile(path) as book:
        start = book.getinfo("xl/sharedStrings.xml").header_offset + 60
    content = bytearray(path.read_bytes())
    content[start:start + 40] = bytes(40)
    path.write_bytes(content)


def rewritten(path, part, change):
    """Changes a part of a workbook."""
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name).decode() for name in book.namelist()}
    parts[part] = change(parts[part])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        for name, text in parts.items():
            book.writestr(name, text)


def with_mean(folder, cell):
    """A workbook with one clip, whose mean stands in another kind of cell."""
    wide_band(folder, p835_row("c0_f2.wav", 4.25))
    rewritten(folder / BOOK, "xl/worksheets/sheet9.xml",
              lambda text: text.replace('r="K2"><v>4.25</v>', f'r="K2" {cell}'))


NO_BOOK = ".xlsx: is not a workbook with a sheet 16KHzWB-results per file"


@pytest.mark.parametrize(("damage", "why"), [
    (lambda folder: (folder / BOOK).write_bytes(b""), NO_BOOK),
    (lambda folder: (folder / BOOK).write_text("a,b\n1,2\n"), NO_BOOK),
    (lambda folder: shortened(folder / BOOK), NO_BOOK),
    (lambda folder: with_zeros(folder / BOOK), NO_BOOK),
    (lambda folder: workbook(folder / BOOK, {"another": []}), NO_BOOK),
    (lambda folder: workbook(folder / BOOK, {SHEETS["16KHzWB"]: [["</si>"]]}), NO_BOOK),
    (lambda folder: wide_band(folder, p835_row("c0f2.wav", 4)),
     f".xlsx, {SHEETS['16KHzWB']}, row 2: {{'A': 'url', 'B': 'c0f2.wav', "),
    (lambda folder: wide_band(folder, p835_row("c0_f2.wav", 5.5)), "row 2: the score 5.5 is off"),
    (lambda folder: wide_band(folder), "there are no rows in the tables of this data set"),
    (lambda folder: with_mean(folder, 't="b"><v>1</v>'), "row 2: the score 'b 1' is not a number"),
    (lambda folder: with_mean(folder, 't="e"><v>#N/A</v>'), "the score 'e #N/A' is not a number"),
    (lambda folder: with_mean(folder, 't="inlineStr"><is><t>4</t></is>'), "'inlineStr ' is not a"),
    (lambda folder: with_mean(folder, 't="s"><v>-1</v>'), "K2 shows a text '-1', which is not"),
    (lambda folder: with_mean(folder, 't="s"><v>99</v>'), "K2 shows a text '99', which is not")])
def test_a_workbook_that_cannot_be_used_gets_one_sentence_and_status_2(tmp_path, monkeypatch,
                                                                       capsys, damage, why):
    folder = lay_out_p835(tmp_path)
    damage(folder)
    assert call(monkeypatch, published, folder, "--out", folder / "t.csv") == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"corpora.published: {folder}") and why in sentence
    assert sentence.count("\n") == 1 and not (folder / "t.csv").exists()


@pytest.mark.parametrize("part", ["worksheets/sheet9.xml", "sharedStrings.xml", "other.bin"])
def test_a_workbook_that_would_decompress_to_too_many_bytes_is_refused_beforehand(
        tmp_path, monkeypatch, capsys, part):
    folder = lay_out_p835(tmp_path)
    with zipfile.ZipFile(folder / BOOK, "a", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/other.bin", "")
    rewritten(folder / BOOK, f"xl/{part}", lambda text: text + " " * published.MAX_INFLATED)
    assert (folder / BOOK).stat().st_size < 100_000
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    assert call(monkeypatch, published, folder, "--out", folder / "t.csv") == 2
    assert re.search(r"\.xlsx: .* \(it inflates to 1678\d{4} bytes, above 16777216\)$",
                     capsys.readouterr().err.strip())


# -- The real listening tests ----------------------------------------------------------------------

def counts(clips):
    """Clips, systems, groups, raters whose name is known, ratings."""
    raters = [rater for clip in clips for rater in clip.ratings]
    return (len(clips), len({clip.system for clip in clips}), len({clip.group for clip in clips}),
            len(set(raters) - {""}), len(raters))


@REAL
@pytest.mark.parametrize(("name", "scale", "found", "left_out"), [
    ("3synt_listening_test_results", (1, 7), (54, 9, 6, 16, 864), 0),
    ("bernoulli-var-speech-codec", (0, 100), (128, 8, 16, 19, 1216), 0),
    ("P.808", (1, 5), (78, 13, 6, 0, 78), 0),
    ("YourTTS", (1, 5), (246, 10, 10, 89, 3035), 234)])
def test_real_listening_tests_give_the_right_counts_of_clips_systems_groups_raters_and_ratings(
        tmp_path, monkeypatch, capsys, name, scale, found, left_out):
    folder, out = LISTENING_TESTS / name, tmp_path / "t.csv"
    assert call(monkeypatch, published, folder, "--out", out) == 0
    clips = data.read_ratings(out, scale)
    assert counts(clips) == found
    lines = capsys.readouterr().out.splitlines()
    assert ("the scale is" in lines[-1]) == (scale != (1, 5))
    message = [f"{folder}: {left_out} rated clips are left out, their audio is not there"]
    assert [line for line in lines if "left out" in line] == message * (left_out > 0)
    test = {clip.group for clip in clips if clip.split == "test"}
    assert test and test.isdisjoint(clip.group for clip in clips if clip.split == "train")


def source_means(table, column, scores):
    """The mean of each clip of a CSV table, a cell being a number or a list of them."""
    ratings = collections.defaultdict(list)
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            ratings[row[column]] += np.ravel(json.loads(row[scores])).tolist()
    return {wav: sum(values) / len(values) for wav, values in ratings.items()}


@REAL
@pytest.mark.parametrize(("name", "source", "columns", "wav", "mos"), [
    ("3synt_listening_test_results", "3synt_listening_test_results/all.csv",
     ("speaker_wav", "score"), "04_S2_01_CHAR.wav", 40 / 16),
    ("bernoulli-var-speech-codec",
     "bernoulli-var-speech-codec/mushra_results_dataset/ratings_formated_filtered.csv",
     ("file", "ratings"), "stim_01/prop_13.wav", 611 / 11),
    ("YourTTS", f"YourTTS/{MOS_PT}", ("audio_path", "score"), f"{EXP}/11995_25.wav", 43 / 12)])
def test_real_mos_are_the_means_of_the_source_table_one_of_which_was_computed_by_hand(
        name, source, columns, wav, mos):
    clips = {clip.wav: clip.mos for clip in published.read(LISTENING_TESTS / name)[2]}
    means = source_means(LISTENING_TESTS / source, *columns)
    assert clips == pytest.approx({wav: means[wav] for wav in clips})
    assert clips[wav] == pytest.approx(mos)


@REAL
def test_the_first_real_mos_of_p835_is_the_number_in_its_cell_of_the_workbook():
    book = LISTENING_TESTS / "P.808" / BOOK
    with zipfile.ZipFile(book) as parts:
        sheet = parts.read("xl/worksheets/sheet4.xml").decode()  # of the wide band
        texts = re.findall("<t>(.*?)</t>", parts.read("xl/sharedStrings.xml").decode())
    cell = dict(re.findall(r'<c r="(\w+)"[^>]*><v>([^<]*)', sheet))
    assert texts[int(cell["B2"])] == "c0_f2.wav"
    clip = published.read(LISTENING_TESTS / "P.808")[2][0]
    assert (clip.wav, clip.system, clip.group) == ("c0_f2.wav", "c0", "f2")
    assert clip.mos == float(cell["K2"]) == pytest.approx(67 / 15)  # full band: 62 / 14


# -- Folds, scale, augmentation --------------------------------------------------------------------

def grouped(folder, split):
    """A ratings.csv of ten clips in four groups, which differ in size and are not sorted."""
    rows = [f"{i}.wav,{split},s,{group},r,4" for i, group in enumerate("bbdacaddda")]
    text = "\n".join(["wav,split,system,group,rater,score", *rows, ""])
    return lay_out(folder, {"ratings.csv": text}, [f"{i}.wav" for i in range(10)])


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_all_folds_together_test_every_clip_once_and_no_fold_splits_a_group(
        tmp_path, monkeypatch, folds):
    folder, tested = grouped(tmp_path, "dev"), []
    for fold in range(1, folds + 1):
        words = (folder, "--out", folder / "t.csv", "--fold", f"{fold}/{folds}")
        assert call(monkeypatch, published, *words) == 0
        clips = data.read_ratings(folder / "t.csv")
        assert {clip.split for clip in clips} == {"train", "test"} and len(clips) == 10
        groups = {split: {clip.group for clip in clips if clip.split == split}
                  for split in ("train", "test")}
        assert groups["test"].isdisjoint(groups["train"])
        tested += [clip.wav for clip in clips if clip.split == "test"]
    assert sorted(tested) == [f"{i}.wav" for i in range(10)]


def test_folds_leave_clips_without_ratings_in_the_split_they_had(tmp_path, monkeypatch):
    rows = [f"{i}.wav,{split},s,{rating}" for i, (split, rating) in enumerate(
        [("test", ","), ("train", "r,4"), ("train", ","), ("test", "r,2"), ("dev", ","),
         ("train", "r,1"), ("test", ","), ("train", ",")])]
    text = "\n".join(["wav,split,system,rater,score", *rows, ""])
    folder = lay_out(tmp_path, {"ratings.csv": text}, [f"{i}.wav" for i in range(8)])
    tested = []
    for fold in (1, 2, 3):
        words = (folder, "--out", folder / "t.csv", "--fold", f"{fold}/3")
        assert call(monkeypatch, published, *words) == 0
        clips = data.read_ratings(folder / "t.csv")
        assert [clip.split for clip in clips if not clip.ratings] == [
            "test", "train", "dev", "test", "train"]
        tested += [clip.wav for clip in clips if clip.ratings and clip.split == "test"]
    assert sorted(tested) == ["1.wav", "3.wav", "5.wav"]


def test_a_data_set_keeps_its_own_split_unless_a_fold_is_asked_for(tmp_path, monkeypatch):
    files, wavs, _ = BVCC
    own = lay_out(tmp_path / "bvcc", files, wavs)
    (own / "DATA" / "sets" / "TESTSET").unlink()
    assert call(monkeypatch, published, own, "--out", tmp_path / "bvcc.csv") == 0
    assert [row["split"] for row in table(tmp_path / "bvcc.csv")] == ["train", "train", "dev"]
    assert call(monkeypatch, published, own, "--out", tmp_path / "bvcc.csv", "--fold", "1/2") == 0
    assert [row["split"] for row in table(tmp_path / "bvcc.csv")] == ["test", "test", "train"]
    codecs = lay_out(tmp_path / "codecs", *CODECS[:2])
    words = (codecs, "--out", tmp_path / "codecs.csv", "--fold", "2/2")
    assert call(monkeypatch, published, *words) == 0
    assert [row["split"] for row in table(tmp_path / "codecs.csv")] == ["train", "train", "test"]


def test_ratings_on_another_scale_are_read_only_if_the_scale_is_given(tmp_path, monkeypatch):
    _, wavs, _ = BVCC_MEANS
    folder = lay_out(tmp_path, {"DATA/sets/train_mos_list.txt": "sys64e2f-utt1.wav,78.1\n"}, wavs)
    assert call(monkeypatch, published, folder, "--out", tmp_path / "t.csv") == 2
    words = ("--out", tmp_path / "t.csv", "--scale", 0, 100)
    assert call(monkeypatch, published, folder, *words) == 0
    (clip,) = data.read_ratings(tmp_path / "t.csv", (0, 100))
    assert clip.ratings == {"": 78.1}


def test_clips_for_augmentation_are_appended_to_your_own_table_and_trained_on(
        tmp_path, monkeypatch):
    own = own_corpus(tmp_path / "own")
    more = lay_out(tmp_path / "more", {}, ["tts1/a.wav", "tts1/deep/b.WAV", "tts2/c.wav"])
    both = own / "both.csv"
    assert call(monkeypatch, published, own, "--out", both, "--augment", more) == 0
    assert both.read_text().splitlines() == [
        "wav,split,system,model,group,rater,score", "a.wav,train,s,s,,r,4",
        "b.wav,train,s,s,,r,2.5", "c.wav,train,t,t,,r,1", "d.wav,test,t,t,,,",
        "../more/tts1/a.wav,train,tts1,tts1,,,", "../more/tts1/deep/b.WAV,train,tts1,tts1,,,",
        "../more/tts2/c.wav,train,tts2,tts2,,,"]
    words = (both, "--out", own / "again.csv", "--augment", more)
    assert call(monkeypatch, published, *words) == 2  # they are there already
    assert not (own / "again.csv").exists()
    train.train(quick(both, tmp_path, steps=1))
    assert torch.load(tmp_path / "run" / "model.pt")["classes"] == ["s", "t", "tts1", "tts2"]


def test_the_paths_in_a_table_lead_to_its_clips_even_through_linked_folders(tmp_path, monkeypatch):
    own = own_corpus(tmp_path / "own")
    (own / "c.wav").rename(own / "stored")
    (own / "c.wav").symlink_to("stored")  # a clip keeps its own name
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "in").symlink_to(own)
    assert call(monkeypatch, published, tmp_path / "in", "--out", tmp_path / "out" / "t.csv") == 0
    assert [row["wav"] for row in table(tmp_path / "out" / "t.csv")] == [
        f"../../own/{name}.wav" for name in "abcd"]
    assert len(data.read_ratings(tmp_path / "out" / "t.csv")) == 4


@pytest.mark.parametrize(("name", "target", "why"), [
    ("more/tts1/broken.wav", "nowhere", "broken.wav' is missing, or is not a file"),
    ("more/tts2/b.wav", "../tts1/a.wav", "tts1/a.wav has another split, system, model or gro"),
    ("more/tts1/b.wav", "../../own/a.wav", "tts1/b.wav: is a clip of"),
    ("more/tts1/\udcff.wav", "", "its name is not in UTF-8; rename it")])
def test_augmentation_with_a_missing_or_repeated_clip_or_a_name_not_in_utf_8_is_refused(
        tmp_path, monkeypatch, capsys, name, target, why):
    own = own_corpus(tmp_path / "own")
    before = contents(own)
    more = lay_out(tmp_path / "more", {}, ["tts1/a.wav"])
    if target:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    else:
        lay_out(tmp_path, {}, [name])
    assert call(monkeypatch, published, own, "--out", own / "t.csv", "--augment", more) == 2
    assert why in capsys.readouterr().err and contents(own) == before


@pytest.mark.parametrize(("name", "why"), [
    ("mo\rre", "no cell may hold a NUL or a CR"), (" more", "'more/tts1/a.wav' is missing")])
def test_if_the_new_table_could_not_be_read_again_the_old_one_is_kept(
        tmp_path, monkeypatch, capsys, name, why):
    own, good = own_corpus(tmp_path / "own"), tmp_path / "own" / "good.csv"
    more = lay_out(own / name, {}, ["tts1/a.wav"])
    assert call(monkeypatch, published, own, "--out", good) == 0
    before = good.read_bytes()
    assert call(monkeypatch, published, own, "--out", good, "--augment", more) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert why in sentence and good.read_bytes() == before


@pytest.mark.parametrize(("layout", "path", "out"), [
    (ESTONIAN, "", f"{SYNT}/all.csv"), (ESTONIAN, SYNT, f"{SYNT}/all.csv"),
    (YOURTTS, "", MOS_PT), (POST_EVALUATION, "", "post_eval_distro/train/utt_24k.csv"),
    (POST_EVALUATION, "post_eval_distro", "post_eval_distro/test/utt_mix_test.csv")])
def test_a_table_of_the_data_set_is_never_overwritten_even_through_a_link(
        tmp_path, monkeypatch, capsys, layout, path, out):
    folder = lay_out(tmp_path, *layout[:2])
    (folder / "link.csv").symlink_to(folder / out)
    before = (folder / out).read_bytes()
    for name in (out, "link.csv"):
        assert call(monkeypatch, published, folder / path, "--out", folder / name) == 2
        sentence = f"--out {folder / name}: is what was read; name another file, so that it stays"
        assert sentence in capsys.readouterr().err and (folder / out).read_bytes() == before


def test_neither_your_own_table_nor_a_clip_is_ever_overwritten(tmp_path, monkeypatch, capsys):
    own = own_corpus(tmp_path / "own")
    (own / "a.wav").rename(own / "a.csv")
    text = (own / "ratings.csv").read_text().replace("a.wav", "a.csv")
    (own / "ratings.csv").write_text(text)
    before = contents(own)
    for path in (own, own / "ratings.csv"):
        for out in (own / "ratings.csv", own / "a.csv"):
            assert call(monkeypatch, published, path, "--out", out) == 2
            assert "is what was read" in capsys.readouterr().err and contents(own) == before


def test_a_link_to_a_clip_is_the_same_clip(tmp_path, monkeypatch):
    own = own_corpus(tmp_path / "own")
    more = lay_out(tmp_path / "more", {}, ["tts1/a.wav"])
    (more / "tts1" / "b.wav").symlink_to("a.wav")
    (more / "tts1" / "circle").symlink_to(more / "tts1")
    assert call(monkeypatch, published, own, "--out", own / "t.csv", "--augment", more) == 0
    assert [row["wav"] for row in table(own / "t.csv")][4:] == ["../more/tts1/a.wav"]
    (own / "again.wav").symlink_to("a.wav")
    with (own / "ratings.csv").open("a") as file:
        file.write("again.wav,train,s,other,2\n")
    assert call(monkeypatch, published, own, "--out", own / "t.csv") == 0
    ratings = {row["rater"]: row["score"] for row in table(own / "t.csv") if row["wav"] == "a.wav"}
    assert ratings == {"r": "4", "other": "2"}


def test_converted_test_clips_of_track_3_without_ratings_are_predicted_into_answer_txt(
        tmp_path, monkeypatch, capsys):
    files, wavs, _ = PHASES
    folder = lay_out(tmp_path / "set", files, wavs)
    assert call(monkeypatch, published, folder, "--out", tmp_path / "ratings.csv") == 0
    train.train(quick(tmp_path / "ratings.csv", tmp_path, steps=1))
    assert evaluate.evaluate(tmp_path / "run", "cpu") is None
    assert "2 test clips without ratings" in capsys.readouterr().out
    lines = (tmp_path / "run" / "answer.txt").read_text().splitlines()
    names, scores = zip(*(line.split(",") for line in lines))
    assert names == ("audiomos-track3-16k_sys1_utt51", "audiomos-track3-48k_sys12_utt52")
    assert np.isfinite(np.array(scores, float)).all()


def test_the_training_means_of_the_systems_alone_give_the_system_numbers_quoted_for_track_3():
    trained, evaluated = np.array(list(simulated.CONDITIONS.values())).T
    found = [metric(trained, evaluated) for metric in moemos.METRICS.values()]
    np.testing.assert_allclose(found, [0.101, 0.945, 0.748, 0.575], atol=5e-4)
