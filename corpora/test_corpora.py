"""Tests of the corpora as oracles: a table written by hand, published figures, or a property."""

import itertools
import math
import os
import subprocess
import sys

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

pytestmark = pytest.mark.filterwarnings("error")


# -- The simulated corpus --------------------------------------------------------------------------

def a_part(monkeypatch, conditions, augmentation):
    """Simulates these conditions only, and few clips of augmentation, for the time's sake."""
    kept = {name: simulated.CONDITIONS[name] for name in conditions}
    monkeypatch.setattr(simulated, "CONDITIONS", kept)
    monkeypatch.setattr(simulated, "AUGMENTATION_CLIPS", augmentation)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_corpus_has_the_make_up_of_track_3():
    clips = data.read_manifest(simulated_corpus())
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


def test_training_and_test_share_no_sentence_and_augmentation_speaks_those_of_training():
    plan = simulated.plan_corpus(101)
    for split, sentences in (("train", range(30)), ("test", range(30, 60))):
        own = [clip for clip in plan if clip.split == split]
        assert {clip.sentence for clip in own} == set(sentences)
        named = {int(clip.name[-2:]) - 1 for clip in own if clip.scores}
        assert named == set(sentences)


def test_each_sentence_has_a_talker_and_the_studio_of_48_khz_has_two():
    rated = [clip for clip in simulated.plan_corpus(101) if clip.scores]
    studio = {clip.talker for clip in rated if clip.rate == 48000}
    others = {(clip.sentence, clip.talker) for clip in rated if clip.rate != 48000}
    assert studio == {0, 1} and len(others) == 60
    assert len({talker for _, talker in others} - studio) == 60


def test_simulated_clips_have_their_rates_and_neither_length_nor_level_tells_the_score():
    clips = data.read_manifest(simulated_corpus())
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


def test_super_resolution_mirrors_the_band_below_six_kilohertz():
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


def test_severity_makes_every_trace_e_to_the_0_6_times_as_strong(tmp_path, monkeypatch):
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


def test_a_corpus_is_the_same_bytes_for_a_seed_and_others_for_another(tmp_path, monkeypatch):
    a_part(monkeypatch, ("48k_original", "48k_nv", "48k_ttsSR"), 2)
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        simulated.simulate(tmp_path / name, seed)
    one, two, three = (contents(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two and len(one) == 2 * (5 + 5 + 5) + 4 * 2 + 1
    assert not any(one.get(name) == content for name, content in three.items())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_simulation_that_ends_early_leaves_nothing(tmp_path, monkeypatch, error):
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
    """The training and the test panel rate clips of the same severity -> two of {condition: ...}"""
    severity = {name: rng.normal(size=simulated.CLIPS[name[:2]]) for name in simulated.CONDITIONS}
    halves = []
    for half in (0, 1):
        raters = simulated.draw_panel(rng)
        halves.append({name: simulated.rate_clips(rng, mos[half], severity[name], *raters)
                       for name, mos in simulated.CONDITIONS.items()})
    return halves


def test_simulated_listeners_are_calibrated_on_the_published_figures():
    """The condition-mean row and the reliabilities are Track 3's, rater effects those of VCC."""
    errors, rows, reliability, halves, effects = [], [], [], [], []
    for seed in range(200, 212):
        train_half, test_half = rate_twice(np.random.default_rng(seed))
        for name, mos in simulated.CONDITIONS.items():
            errors += [train_half[name].mean() - mos[0], test_half[name].mean() - mos[1]]
        names = np.repeat(list(test_half), [len(scores) for scores in test_half.values()])
        told = [train_half[name].mean() for name in names]
        scores = np.concatenate(list(test_half.values()))              # (400, 10)
        rows.append(evaluate.eight(moemos.metrics(told, scores.mean(1), names)))
        one, other = scores[:, ::2].mean(1), scores[:, 1::2].mean(1)
        r = moemos.lcc(one, other)
        reliability.append(2 * r / (1 + r))                            # Spearman-Brown
        halves.append(moemos.metrics(one, other, names)["system"]["SRCC"])
        residual = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
        slopes = [np.polyfit(scores.mean(1), own, 1)[0] for own in scores.T]
        effects.append([scores.mean(0).std(ddof=1), residual.std() * math.sqrt(10 / 9),
                        np.std(slopes, ddof=1)])
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.11
    published_row = evaluate.PUBLISHED["condition's mean training MOS"]
    np.testing.assert_allclose(np.mean(rows, 0), published_row, atol=0.04)
    assert np.mean(reliability) == pytest.approx(0.900, abs=0.025)
    assert np.mean(halves) == pytest.approx(0.951, abs=0.025)
    bias, residual, gain = np.mean(effects, 0)
    assert 0.42 <= bias <= 0.70 and 0.68 <= residual <= 0.86 and 0.14 <= gain <= 0.24


def test_panels_rate_the_same_test_clips_and_leave_training_alone():
    plans = {panel: simulated.plan_corpus(5, panel) for panel in simulated.PANELS}
    assert plans["second"] == simulated.plan_corpus(5)
    for panel, plan in plans.items():
        for clip, own in zip(plan, plans["second"], strict=True):
            assert clip == own or clip.split == "test"
            assert clip._replace(scores=0) == own._replace(scores=0)
        raters = range(10) if panel == "training" else range(10, 20)
        assert all(list(clip.scores) == list(raters) for clip in plan if clip.split == "test")


def test_panels_hear_what_they_are_said_to_hear_each_for_itself():
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
    rater = {panel: own.mean(0) for panel, own in scores.items()}
    assert rater["unbiased"].std() < 0.1 and rater["second"].std() > 0.3
    assert moemos.lcc(rater["strict"], rater["second"]) > 0.95         # the same raters
    assert moemos.lcc(rater["training"], training.mean(0)) > 0.95      # the same raters
    residual = {panel: (own - own.mean(0) - own.mean(1, keepdims=True)).ravel()
                for panel, own in scores.items()}
    for one, other in itertools.combinations(residual.values(), 2):
        assert abs(moemos.lcc(one, other)) < 0.1


def test_a_corpus_is_prepared_with_the_ratings_of_all_panels(tmp_path, monkeypatch, capsys):
    a_part(monkeypatch, ("48k_worldSR",), 1)
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


def test_a_corpus_that_is_there_is_kept_if_it_is_the_one(tmp_path, monkeypatch):
    a_part(monkeypatch, ("48k_worldSR",), 1)
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
def test_what_cannot_be_simulated_gets_one_sentence_and_status_2(tmp_path, monkeypatch, capsys,
                                                                 words, why):
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
    [(0, "train,16k_nv,nv,utt_16k:01,4"), (0, "train,16k_nv,nv,utt_16k:02,5"),
     (1, "train,24k_originalSR,originalSR,utt_24k:01,3"),
     (2, "test,48k_worldSR,worldSR,utt_mix_test:11,2")])
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
    [(0, "train,16k_sys1,sys1,utt_16k:01,4"), (1, "train,24k_sys2,sys2,utt_24k:01,3"),
     (2, "train,24k_sys3,sys3,utt_24k:01,2"), (3, "test,16k_sys1,sys1,,"),
     (4, "test,48k_sys12,sys12,,")])
BVCC = (
    {"DATA/sets/TRAINSET":
     "sys64e2f,sys64e2f-utt9c.wav,4,VDP1_1,{}_30-39_bZPQE7w4Zl3g_Female_Valid_1_No\n"
     "sys64e2f,sys64e2f-utt9c.wav,2,x,{}_30-39_other_Male_Valid_1_No\n",
     "DATA/sets/DEVSET": "sysdev00,sysdev00-utt1.wav,3,x,{}_30-39_third_Male_Valid_1_No\n",
     "DATA/sets/TESTSET": "sysnew00,sysnew00-utt2.wav,5,x,{}_30-39_third_Male_Valid_1_No\n"},
    ["DATA/wav/sys64e2f-utt9c.wav", "DATA/wav/sysdev00-utt1.wav", "DATA/wav/sysnew00-utt2.wav"],
    [(0, "train,sys64e2f,sys64e2f,bZPQE7w4Zl3g,4"), (0, "train,sys64e2f,sys64e2f,other,2"),
     (1, "dev,sysdev00,sysdev00,third,3"), (2, "test,sysnew00,sysnew00,third,5")])
BVCC_MEANS = (
    {"DATA/sets/train_mos_list.txt": "sys64e2f-utt1.wav,3.125\n", "DATA/sets/val_mos_list.txt": "",
     "DATA/sets/test_mos_list.txt": "sys64e2f-utt2.wav,2.5\n"},
    ["DATA/wav/sys64e2f-utt1.wav", "DATA/wav/sys64e2f-utt2.wav"],
    [(0, "train,sys64e2f,sys64e2f,mean,3.125"), (1, "test,sys64e2f,sys64e2f,mean,2.5")])
SOMOS_CLEAN = (
    {f"{CLEAN}/TRAINSET": SOMOS + "015,novel_2007_0098_015.wav,4,KEXM49572020611127\n",
     f"{CLEAN}/VALIDSET": SOMOS, f"{CLEAN}/TESTSET": SOMOS + "016,x_016,3,L2\n"},
    ["audios/novel_2007_0098_015.wav", "audios/x_016.wav"],
    [(0, "train,015,015,KEXM49572020611127,4"), (1, "test,016,016,L2,3")])
FOUND = [
    (POST_EVALUATION, "AudioMOS 2025 Track 3, post-evaluation archive",
     ["train 2 clips, 3 ratings, 2 systems, 3 raters",
      "test 1 clips, 1 ratings, 1 systems, 1 raters"]),
    (PHASES, "AudioMOS 2025 Track 3, phase archives",
     ["train 3 clips, 3 ratings, 3 systems, 2 raters",
      "test 2 clips, 0 ratings, 2 systems, 0 raters"]),
    (BVCC, "BVCC, single ratings",
     ["train 1 clips, 2 ratings, 1 systems, 2 raters",
      "dev 1 clips, 1 ratings, 1 systems, 1 raters",
      "test 1 clips, 1 ratings, 1 systems, 1 raters"]),
    (BVCC_MEANS, "BVCC, mean ratings",
     ["train 1 clips, 1 ratings, 1 systems, 1 raters",
      "test 1 clips, 1 ratings, 1 systems, 1 raters"]),
    (SOMOS_CLEAN, "SOMOS, clean split",
     ["train 1 clips, 1 ratings, 1 systems, 1 raters",
      "test 1 clips, 1 ratings, 1 systems, 1 raters"]),
]


def own_corpus(folder):
    """A ratings.csv of four clips, without the column `model`."""
    rows = ("a.wav,train,s,r,4", "b.wav,train,s,r,2.5", "c.wav,train,t,r,1", "d.wav,test,t,,")
    text = "\n".join(["wav,split,system,rater,score", *rows, ""])
    return lay_out(folder, {"ratings.csv": text}, ["a.wav", "b.wav", "c.wav", "d.wav"])


@pytest.mark.parametrize(("layout", "name", "found"), FOUND)
def test_each_data_set_becomes_the_table_written_by_hand(tmp_path, monkeypatch, capsys, layout,
                                                         name, found):
    files, wavs, rows = layout
    folder, out = lay_out(tmp_path / "set", files, wavs), tmp_path / "mine" / "ratings.csv"
    assert call(monkeypatch, published, folder, "--out", out) == 0
    lines = [f"../set/{wavs[wav]},{rest}" for wav, rest in rows]
    assert out.read_text() == "\n".join(["wav,split,system,model,rater,score", *lines, ""])
    found = [f"{part}, {0.25 * int(part.split()[1]):.0f} s" for part in found]  # lay_out's clips
    assert capsys.readouterr().out == "; ".join([f"{out}: {name}", *found]) + "\n"
    clips = data.read_manifest(out)
    assert [clip.path.resolve() for clip in clips] == [folder / wav for wav in wavs]
    ratings = [(i, rater, score) for i, clip in enumerate(clips)
               for rater, score in clip.ratings.items()]
    rated = [(wav, *rest.split(",")[3:]) for wav, rest in rows if not rest.endswith(",,")]
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


def test_a_data_set_is_read_anew_though_a_table_lies_in_it_unless_that_is_named(tmp_path,
                                                                                monkeypatch):
    files, wavs, _ = BVCC
    folder, out = lay_out(tmp_path, files, wavs) / "DATA", tmp_path / "out.csv"
    rows = "wav,split,system,rater,score\nwav/sysdev00-utt1.wav,test,s,r,2\n"
    lay_out(folder, {"ratings.csv": rows}, [])
    for path, clips in ((folder, 3), (folder / "ratings.csv", 1)):
        assert call(monkeypatch, published, path, "--out", out) == 0
        assert len(data.read_manifest(out)) == clips


def test_single_ratings_are_taken_where_their_means_lie_beside_them(tmp_path, monkeypatch, capsys):
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
    (POST_EVALUATION, UTT, "uttID,rating\n", ": the first row must be uttID,lisID,rating, not 'ut"),
    (POST_EVALUATION, UTT, f"{NV},01,4\n", ": the first row must be uttID,lisID,rating, not 'audi"),
    (POST_EVALUATION, UTT, "uttID,lisID,rating,rating\n", ": the first row must be"),
    (POST_EVALUATION, UTT, "", ": the first row must be uttID,lisID,rating, not ''"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01\n", ", row 2: a row needs one value for each of uttI"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,4,5\n", ", row 2: a row needs one value for each of"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,4\nx.wav,01,4\n", ", row 3: x.wav is no name of a"),
    (POST_EVALUATION, UTT, f"{TRACK3}audiomos-track3-32k_nv_1,01,4\n", "32k_nv_1 is no name of a"),
    (POST_EVALUATION, UTT, f"{TRACK3}audiomos-track3-16k_tts_9.wav,01,4\n", "_9.wav is not there"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,4\n\n{NV},01,4\n", "row 4: rater 'utt_16k:01' has ra"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,good\n", ", row 2: the score 'good' is no number"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,\n", ", row 2: the score '' is no number"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,6\n", ", row 2: the score 6 is off the scale of 1 to"),
    (POST_EVALUATION, UTT, f"{TRACK3}{NV},01,nan\n", ", row 2: the score nan is off the scale"),
    (POST_EVALUATION, UTT, f"{TRACK3}\udcff,01,4\n", ": is no CSV table in UTF-8"),
    (POST_EVALUATION, UTT, f'{TRACK3}"{NV},01,4', ": is no CSV table in UTF-8 (unexpected end"),
    (POST_EVALUATION, "post_eval_distro/test/utt_mix_test.csv", f"{TRACK3}{NV},11,4\n",
     ", row 2: audiomos-track3-16k_nv_1_2.wav stood in another split, system or model above"),
    (PHASES, LIST, "audiomos-track3-16k_sys1_utt99\n", "sys1_utt99.wav is not there, or no file"),
    (PHASES, LIST, "utt51\n", ", row 1: utt51 is no name of a Track 3 clip"),
    (PHASES, LIST, "audiomos-track3-16k_sys1_utt51,4\n", ", row 1: a row needs one value for each"),
    (BVCC, TRAINSET, "sys64e2f,sys64e2f-utt9c.wav,4,x\n", ", row 1: a row needs one value for"),
    (BVCC, TRAINSET, "sys64e2f,sys64e2f-utt9c.wav,4,x,someone\n",
     ", row 1: the listener must be {}_AGE_ID_..., not 'someone'"),
    (BVCC, TRAINSET, "s,,4,x,{}_30_id\n", ", row 1: wav and system must not be empty"),
    (BVCC_MEANS, "DATA/sets/test_mos_list.txt", "sys64e2f-utt2.wav,\n", ", row 1: the score '' is"),
    (SOMOS_CLEAN, f"{CLEAN}/VALIDSET", "systemId,choice\n", ": the first row must be systemId,utt"),
    (SOMOS_CLEAN, f"{CLEAN}/TESTSET", f"{SOMOS}016,y,3,L2\n", "y.wav is not there, or no file")])
def test_a_bad_row_is_refused_by_file_and_number_and_an_older_table_stays(
        tmp_path, monkeypatch, capsys, layout, name, text, why):
    files, wavs, _ = layout
    folder = lay_out(tmp_path / "set", files, wavs)
    (folder / name).write_bytes(text.encode(errors="surrogateescape"))
    out = lay_out(tmp_path / "out", {"ratings.csv": "of yesterday"}, []) / "ratings.csv"
    assert call(monkeypatch, published, folder, "--out", out) == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"corpora.published: {folder / name}") and why in sentence
    assert sentence.count("\n") == 1
    assert contents(tmp_path / "out") == {"ratings.csv": b"of yesterday"}


@pytest.mark.parametrize(("words", "why"), [
    (["nowhere", "--out", "t.csv"], "nowhere: there is no data set that is known; looked for"),
    (["EMPTY", "--out", "t.csv"], "sets/TRAINSET, sets/train_mos_list.txt, training_files/"),
    (["x" * 300, "--out", "t.csv"], "there is no data set that is known"),
    (["BARE", "--out", "t.csv"], "BARE: there are no rows in the tables of this data set"),
    (["OWN"], "required: --out"), (["OWN", "--out", ""], "is a folder; name a table in it"),
    (["OWN", "--out", "EMPTY"], "--out EMPTY: is a folder; name a table in it"),
    (["OWN", "--out", "OWN/a.wav/t.csv"], "OWN/a.wav/t.csv: cannot be written"),
    (["OWN", "--out", "t.csv", "--scale", "0", "3"], "ratings.csv, row 2: the score 4 is off the"),
    (["OWN", "--out", "t.csv", "--augment", "nowhere"], "--augment nowhere: is no folder"),
    (["OWN", "--out", "t.csv", "--augment", "EMPTY"], "there is no WAV file in this folder"),
    (["OWN", "--out", "t.csv", "--augment", "LOOSE"], "a.wav: must lie in a subfolder of LOOSE"),
    (["OWN", "--out", "t.csv", "--augment", "."], "a.wav: is a clip of OWN too; take it out of ."),
    (["OWN", "--out", "t.csv", "--aug", "EMPTY"], "unrecognized arguments: --aug EMPTY")])
def test_what_cannot_be_converted_gets_one_sentence_and_status_2(tmp_path, monkeypatch, capsys,
                                                                 words, why):
    own_corpus(tmp_path / "OWN")
    lay_out(tmp_path / "LOOSE", {}, ["a.wav"])
    lay_out(tmp_path / "BARE", {f"{CLEAN}/TRAINSET": SOMOS}, [])
    (tmp_path / "EMPTY").mkdir()
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert call(monkeypatch, published, *words) == 2
    assert why in capsys.readouterr().err.splitlines()[-1]
    assert contents(tmp_path) == before


def test_another_scale_is_read_where_it_is_given(tmp_path, monkeypatch):
    _, wavs, _ = BVCC_MEANS
    folder = lay_out(tmp_path, {"DATA/sets/train_mos_list.txt": "sys64e2f-utt1.wav,78.1\n"}, wavs)
    assert call(monkeypatch, published, folder, "--out", tmp_path / "t.csv") == 2
    words = ("--out", tmp_path / "t.csv", "--scale", 0, 100)
    assert call(monkeypatch, published, folder, *words) == 0
    (clip,) = data.read_manifest(tmp_path / "t.csv", (0, 100))
    assert clip.ratings == {"mean": 78.1}


def test_augmentation_is_appended_to_ones_own_table_and_trained_on(tmp_path, monkeypatch):
    own = own_corpus(tmp_path / "own")
    more = lay_out(tmp_path / "more", {}, ["tts1/a.wav", "tts1/deep/b.WAV", "tts2/c.wav"])
    words = (own, "--out", own / "ratings.csv", "--augment", more)
    assert call(monkeypatch, published, *words) == 0
    assert (own / "ratings.csv").read_text().splitlines() == [
        "wav,split,system,model,rater,score",
        "a.wav,train,s,s,r,4", "b.wav,train,s,s,r,2.5", "c.wav,train,t,t,r,1", "d.wav,test,t,t,,",
        "../more/tts1/a.wav,train,tts1,tts1,,", "../more/tts1/deep/b.WAV,train,tts1,tts1,,",
        "../more/tts2/c.wav,train,tts2,tts2,,"]
    before = (own / "ratings.csv").read_bytes()
    assert call(monkeypatch, published, *words) == 2  # they are there already
    assert (own / "ratings.csv").read_bytes() == before
    train.train(quick(own, tmp_path, steps=1))
    assert torch.load(tmp_path / "run" / "model.pt")["classes"] == ["s", "t", "tts1", "tts2"]


def test_a_table_leads_to_its_clips_through_linked_folders_too(tmp_path, monkeypatch):
    own = own_corpus(tmp_path / "own")
    (own / "c.wav").rename(own / "stored")
    (own / "c.wav").symlink_to("stored")  # a clip keeps its own name
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "in").symlink_to(own)
    assert call(monkeypatch, published, tmp_path / "in", "--out", tmp_path / "out" / "t.csv") == 0
    assert [row["wav"] for row in table(tmp_path / "out" / "t.csv")] == [
        f"../../own/{name}.wav" for name in "abcd"]
    assert len(data.read_manifest(tmp_path / "out" / "t.csv")) == 4


@pytest.mark.parametrize(("link", "why"), [
    ("more/tts1/circle", "under two names; take one of them out"),
    ("more/tts1/broken.wav", "broken.wav is not there, or no file"),
    ("more/tts1/\udcff.wav", "its name is not in UTF-8; rename it")])
def test_names_that_a_table_cannot_hold_are_refused(tmp_path, monkeypatch, capsys, link, why):
    own = own_corpus(tmp_path / "own")
    before = contents(own)
    more = lay_out(tmp_path / "more", {}, ["tts1/a.wav"])
    target = {"circle": more / "tts1", "broken": "nowhere", "\udcff": "a.wav"}[(more / link).stem]
    (tmp_path / link).symlink_to(target)
    assert call(monkeypatch, published, own, "--out", own / "ratings.csv", "--augment", more) == 2
    assert why in capsys.readouterr().err and contents(own) == before


def test_clips_without_ratings_are_predicted_in_the_challenges_form_and_not_scored(
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
