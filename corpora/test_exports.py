"""Tests of the exports of listening tests. One command converts each kind of export into a table,
whose ratings are compared with those written by hand."""

import re
import shlex
import subprocess
import sys

import pytest

import data
from corpora import exports, published
from test_moemos import HERE, call, lay_out, no_network  # noqa: F401 - no_network is for all tests

pytestmark = pytest.mark.filterwarnings("error")
LONG = ["--columns", "wav=clip", "score=mos"]
WAVS = ("near/a_01.wav", "near/a_02.wav", "far/b_01.wav", "far/b_02.WAV")


def export(folder, text, encoding="utf-8", wavs=WAVS):
    """Writes an export beside its clips -> its path."""
    lay_out(folder, {"export.csv": ""}, wavs)
    (folder / "export.csv").write_bytes(text.encode(encoding))
    return folder / "export.csv"


def convert(monkeypatch, path, *words, scale=(1, 5)):
    """The clips that the one command makes of an export."""
    out = path.parent / "mine" / "ratings.csv"
    words = (*words, "--scale", *scale) if scale != (1, 5) else words
    assert call(monkeypatch, published, path, *words, "--out", out) == 0
    return data.read_ratings(out, scale)


def ratings_of(clips):
    """{end of a clip's path: its ratings}"""
    return {"/".join(clip.path.parts[-2:]): clip.ratings for clip in clips}


FORM = '''"Timestamp","Email address","How natural, from 1 to 5, is ""a_01.wav""?",\
"Rate the clip [a_02]","https://x.org/forms/b_01.wav?dl=0","B_02
please","Your remarks"
"2024/05/01 10:00:00","ann@x.org","4","3","","2","none, thanks"
"2024/05/01 10:05:00","bob@x.org","5","1","2","1",""
'''
MUSHRA = """session_test_id,email,session_uuid,trial_id,rating_stimulus,rating_score,rating_time,\
rating_comment
t,ann@x.org,u1,trial_1,reference,100,9000,
t,ann@x.org,u1,trial_1,C1,78,9000,"clear, but thin"
t,ann@x.org,u1,trial_1,C2,40,9000,
t,bob@x.org,u2,trial_1,reference,95,8000,
t,bob@x.org,u2,trial_1,C1,60,8000,
t,bob@x.org,u2,trial_1,C2,0,8000,
t,bob@x.org,u2,trial_1,anchor35,10,8000,
"""
PROLIFIC = """PROLIFIC_PID,STUDY_ID,SESSION_ID,stimulus,"System
 name",rating
5f1a,s,x1,near/a_01,vocoder,4
5f1a,s,x1,far/b_01,neural,2
60bb,s,x2,near/a_01,vocoder,5
"""
BUCKET = "https://bucket.s3.amazonaws.com/study%201"
MTURK = f'''"HITId","AssignmentId","WorkerId","AssignmentStatus","Input.audio_url","Answer.score",\
"Approve","Reject"
"h1","i1","W1","Approved","{BUCKET}/near/a_01.wav?X-Amz-Expires=9","4"
"h1","i2","W2","Rejected","{BUCKET}/near/a_01.wav?X-Amz-Expires=8","1"
"h2","i3","W1","Submitted","{BUCKET}/far/b%5F01.wav","2"
"h2","i4","W1","Approved","{BUCKET}/far/b_01.wav","3"
'''
KINDS = {
    "form": (FORM, ["--wide", "--columns", "rater=Email address"],
             {"near/a_01.wav": {"ann@x.org": 4, "bob@x.org": 5},
              "near/a_02.wav": {"ann@x.org": 3, "bob@x.org": 1},
              "far/b_01.wav": {"bob@x.org": 2},
              "far/b_02.WAV": {"ann@x.org": 2, "bob@x.org": 1}}),
    "Prolific": (PROLIFIC, ["--columns", "wav=stimulus", "score=rating", "rater=PROLIFIC_PID",
                            "system=System name"],
                 {"near/a_01.wav": {"5f1a": 4, "60bb": 5}, "far/b_01.wav": {"5f1a": 2}}),
    "MTurk": (MTURK, ["--columns", "wav=Input.audio_url", "score=Answer.score", "rater=WorkerId"],
              {"near/a_01.wav": {"W1": 4}, "far/b_01.wav": {"W1": 2.5}}),
    "filename,mos": ("filename,mos\na_01,3.25\nA_02.WAV,4\nb_02.wav,1\n",
                     ["--columns", "wav=filename", "score=mos"],
                     {"near/a_01.wav": {"": 3.25}, "near/a_02.wav": {"": 4},
                      "far/b_02.WAV": {"": 1}}),
    "tabs": ("file\trater\tscore\na_01.wav\tann\t4\nb_01.wav\tann\t2\nb_01.wav\t\t1\n",
             ["--columns", "wav=file", "score=score", "rater=rater"],
             {"near/a_01.wav": {"ann": 4}, "far/b_01.wav": {"ann": 2, "row 4 of export.csv": 1}}),
    "semicolons": ("Datei;Note, Mittel, 1-5, alle;\nnear\\a_01.wav;4,25;\nfar\\b_01.wav;2,5;\n;;",
                   ["--columns", "wav=Datei", "score=Note, Mittel, 1-5, alle"],
                   {"near/a_01.wav": {"": 4.25}, "far/b_01.wav": {"": 2.5}}),
    "URLs": (f"url,score\n{BUCKET}/a_01.wav,4\n{BUCKET}/b_01.wav#t,2\n{BUCKET}/b_01.wav,4\n",
             ["--columns", "wav=url", "score=score"],
             {"near/a_01.wav": {"": 4}, "far/b_01.wav": {"": 3}}),
}


@pytest.mark.parametrize(("text", "words", "ratings"), KINDS.values(), ids=KINDS)
def test_one_command_converts_an_export_into_the_ratings_that_were_written_by_hand(
        tmp_path, monkeypatch, text, words, ratings):
    clips = convert(monkeypatch, export(tmp_path, text), *words)
    assert ratings_of(clips) == ratings
    assert {clip.split for clip in clips} == {"train", "test"}
    folders = ["vocoder", "neural"] if "System" in text else [clip.path.parent.name
                                                              for clip in clips]
    assert [clip.system for clip in clips] == folders


def test_the_example_of_a_form_prints_and_writes_what_the_readme_shows(
        tmp_path, monkeypatch, capsys):
    text = (HERE / "corpora" / "README.md").read_text(encoding="utf-8")
    text = text.partition("### From an export with one column for each clip")[2]
    blocks = [re.sub("^    ", "", block, flags=re.MULTILINE)
              for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)]
    form, command, printed, written, *_ = blocks
    wavs = re.findall(r"\w+/\w+\.wav", form.splitlines()[0])
    lay_out(tmp_path, {"form.csv": form}, wavs)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, published, *command.split()[3:]) == 0
    assert capsys.readouterr().out.startswith(printed)
    assert (tmp_path / "ratings.csv").read_text(encoding="utf-8").startswith(written)
    # Then its lines of Python write the groups, and its next command chooses the test clips anew.
    code, again = [block for block in blocks if "DictWriter" in block or "--fold 1/5" in block]
    subprocess.run([sys.executable, "-c", code], check=True)
    assert call(monkeypatch, published, *again.split()[3:]) == 0
    clips = data.read_ratings("split.csv")
    assert {(clip.wav, clip.group, clip.split) for clip in clips} == {
        ("anna/one.wav", "one.wav", "test"), ("bert/one.wav", "one.wav", "test"),
        ("anna/two.wav", "two.wav", "train"), ("bert/two.wav", "two.wav", "train")}


def test_the_columns_that_the_readme_names_for_tools_are_understood():
    text = (HERE / "corpora" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"\| `(\S+\.csv --columns .*)` \|", text)
    assert len(commands) == 4
    for command in commands:
        columns = command.partition("--columns ")[2].partition(" --scale")[0]
        assert {"wav", "score"} <= set(exports.named(shlex.split(columns), wide=False))


def test_clips_of_a_webmushra_export_are_found_by_trial_and_stimulus(tmp_path, monkeypatch):
    wavs = [f"audio/trial_1/{name}.wav" for name in ("reference", "C1", "C2")]
    clips = convert(monkeypatch, export(tmp_path, MUSHRA, wavs=wavs), "--columns",
                    "wav=audio/{trial_id}/{rating_stimulus}.wav", "score=rating_score",
                    "rater=session_uuid", "system=rating_stimulus", "group=trial_id",
                    "model={rating_stimulus} of {trial_id}", scale=(0, 100))
    assert ratings_of(clips) == {"trial_1/reference.wav": {"u1": 100, "u2": 95},
                                 "trial_1/C1.wav": {"u1": 78, "u2": 60},
                                 "trial_1/C2.wav": {"u1": 40, "u2": 0}}
    assert [(clip.system, clip.model, clip.group) for clip in clips] == [
        (name, f"{name} of trial_1", "trial_1") for name in ("reference", "C1", "C2")]


@pytest.mark.parametrize(("encoding", "name"), [
    ("latin-1", "latin-1"), ("utf-16", "UTF-16"), ("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8")])
def test_an_encoding_is_recognised_and_named_in_one_line(
        tmp_path, monkeypatch, capsys, encoding, name):
    wavs = ["schön/grün.wav", "schön/u\u0308bel.wav"]  # the second as a Mac stores it
    path = export(tmp_path, "Datei\tNote\ngrün.wav\t4,5\nübel.wav\t2\n", encoding, wavs)
    clips = convert(monkeypatch, path, "--columns", "wav=Datei", "score=Note")
    assert ratings_of(clips) == {wavs[0]: {"": 4.5}, wavs[1]: {"": 2}}
    assert {clip.system for clip in clips} == {"schön"}
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{path}: {name} with tabs between cells and decimal commas"


def test_the_conversion_prints_what_it_found_what_is_missing_and_what_it_left_out(
        tmp_path, monkeypatch, capsys):
    path = export(tmp_path, FORM.replace("b_01", "c_01"))
    convert(monkeypatch, path, "--wide", "--columns", "rater=Email address")
    heading = "https://x.org/forms/c_01.wav?dl=0"
    assert capsys.readouterr().out.splitlines()[:4] == [
        f"{path}: UTF-8 with commas between cells",
        f"{path}: 3 clips found, 1 missing; 6 ratings from 1 to 5; 2 raters, 2 systems",
        f"{path}: missing: ['{heading}']",
        f"{path}: columns left out, as they have no numbers: ['Timestamp', 'Your remarks']"]
    path = export(tmp_path, MTURK + '"h3","i5","W2","Approved","a_02","NA"\n'
                                    '"h3","i6","W3","Approved","a_02","5"\n')
    convert(monkeypatch, path, "--columns", "wav=Input.audio_url", "score=Answer.score")
    assert capsys.readouterr().out.splitlines()[1:5] == [
        f"{path}: 3 clips found, 0 missing; 4 ratings from 2 to 5; no raters, 2 systems",
        f"{path}: rejected answers, left out: 1", f"{path}: empty scores, left out: 1",
        f"{path}: ratings averaged with others of the same clip and rater: 1"]


@pytest.mark.parametrize(("cell", "score"), [
    ("4", 4), ("4.25", 4.25), ("4,25", 4.25), (",5", 0.5), ("-1", -1), ("4 - good", 4),
    ("5: like speech, live", 5), ("4 (good)", 4), ("3 = fair", 3), (" 2 ", 2)])
def test_a_score_is_a_number_with_point_or_comma_and_a_label_may_follow_it(
        tmp_path, monkeypatch, cell, score):
    path = export(tmp_path, f'clip,mos\na_01,"{cell}"\nb_01,1\nb_01,NA\nb_01,-\na_02,\nb_01\n')
    clips = convert(monkeypatch, path, *LONG, scale=(-5, 5))
    assert ratings_of(clips) == {"near/a_01.wav": {"": score}, "far/b_01.wav": {"": 1}}


@pytest.mark.parametrize("cell", ["4 5", "4 good", "1:30", "4-5", "2024/05/01", "good", "4,5,6"])
def test_a_cell_that_is_not_plainly_a_score_is_refused(tmp_path, monkeypatch, capsys, cell):
    path = export(tmp_path, f'clip,mos\na_01,"{cell}"\nb_01,1\na_01,2\n')
    assert call(monkeypatch, published, path, *LONG, "--out", tmp_path / "t.csv") == 2
    sentence = capsys.readouterr().err
    assert f"export.csv, row 2: the score {cell!r} is not a number" in sentence


def test_in_a_form_without_names_each_row_is_a_rater_and_repeated_questions_are_averaged(
        tmp_path, monkeypatch):
    path = export(tmp_path, "a_01.wav,b_01.wav,a_01.wav,a_01.wav\n1,2,3,5\n4,5,,\n")
    assert ratings_of(convert(monkeypatch, path, "--wide")) == {
        "near/a_01.wav": {"row 2 of export.csv": 3, "row 3 of export.csv": 4},
        "far/b_01.wav": {"row 2 of export.csv": 2, "row 3 of export.csv": 5}}


def test_raters_without_names_stay_different_people_when_two_exports_are_joined(
        tmp_path, monkeypatch):
    first = export(tmp_path, "a_01.wav,b_01.wav\n1,2\n")
    second = first.with_name("second.csv")
    second.write_text("a_01.wav,b_01.wav\n3,5\n")
    table, rows = tmp_path / "mine" / "ratings.csv", []
    for path in (first, second):
        convert(monkeypatch, path, "--wide")
        heading, *some = table.read_text().splitlines()
        rows += [row.replace(",test,", ",train,") for row in some]
    table.write_text("\n".join([heading, *rows]))
    assert ratings_of(data.read_ratings(table))["near/a_01.wav"] == {
        "row 2 of export.csv": 1, "row 2 of second.csv": 3}


@pytest.mark.parametrize(("heading", "wav"), [
    ("From 1 to 5, how good is 2.wav?", "2.wav"), ("Rate a-1.", "a-1.wav"), ("a", "a.wav"),
    ("How good is TAKE 2, on the whole?", "take 2.wav"), ("y/3 [naturalness]", "y/3.wav"),
    ("a-3", None), ("a.b", None), ("data", None), ("a b", "a b.wav")])
def test_a_heading_means_the_clip_whose_whole_name_it_contains(tmp_path, heading, wav):
    names = ["1.wav", "2.wav", "x/3.wav", "y/3.wav", "a.wav", "a-1.wav", "take 2.wav", "a b.wav"]
    lay_out(tmp_path, {}, names)
    found = exports.find_in_headings([heading], tmp_path)
    assert found == {heading: wav and tmp_path / wav}


def test_if_headings_name_files_the_number_of_a_question_is_not_taken_for_a_clip(tmp_path):
    lay_out(tmp_path, {}, ["1.wav", "2.wav"])
    headings = ["1. How many hours a day do you listen?", "2. How natural is it? 2.wav"]
    assert exports.find_in_headings(headings, tmp_path) == {
        headings[0]: None, headings[1]: tmp_path / "2.wav"}
    numbered = ["1. How natural?", "2. How natural?"]
    assert exports.find_in_headings(numbered, tmp_path) == {
        numbered[0]: tmp_path / "1.wav", numbered[1]: tmp_path / "2.wav"}


def test_the_line_that_tells_excel_the_separator_is_skipped(tmp_path, monkeypatch):
    path = export(tmp_path, "sep=;\nclip;mos\na_01;4,5\nb_01;2\n")
    assert ratings_of(convert(monkeypatch, path, *LONG)) == {
        "near/a_01.wav": {"": 4.5}, "far/b_01.wav": {"": 2}}


def test_the_name_of_a_column_is_read_as_utf_8_in_any_locale():
    """In a locale of ASCII Python keeps the bytes of a command line as surrogates."""
    word = "wav=Hörer".encode().decode("ascii", "surrogateescape")
    assert exports.named([word, "score=mos"], False) == {"wav": "Hörer", "score": "mos"}


def test_a_heading_means_no_clip_if_there_are_no_clips(tmp_path):
    assert exports.find_in_headings(["How good?"], tmp_path) == {"How good?": None}


def test_the_option_wavs_names_the_folder_of_the_clips_and_a_column_may_give_the_split(
        tmp_path, monkeypatch):
    path = export(tmp_path / "tables", "clip,mos,part\nb_01,2,test\na_01,4,train\na_02,3,dev\n",
                  wavs=[])
    lay_out(tmp_path / "audio", {}, WAVS)
    words = ("--wavs", tmp_path / "audio", "--columns", "wav=clip", "score=mos", "split=part")
    clips = convert(monkeypatch, path, *words)
    assert [(clip.path.name, clip.split) for clip in clips] == [
        ("b_01.wav", "test"), ("a_01.wav", "train"), ("a_02.wav", "dev")]
    clips = convert(monkeypatch, path, *words, "--fold", "3/3")
    assert [clip.split for clip in clips] == ["train", "train", "test"]


ONE = "clip,mos\na_01,4\n"


@pytest.mark.parametrize(("text", "words", "why"), [
    (ONE, ["--columns", "wav=file", "score=mos"],
     "export.csv: has 0 columns 'file' where one is needed; its columns are clip, mos"),
    ("clip,mos,mos\na_01,4,4\n", LONG, "has 2 columns 'mos' where one is needed; its columns are"),
    (ONE, ["--columns", "wav={clip}/{take}.wav", "score=mos"], "has 0 columns 'take' where one"),
    (ONE, ["--columns", "wav=clip"], "--columns: needs wav=COLUMN and score=COLUMN; a table with"),
    (ONE, [*LONG, "rator=x"], "--columns 'rator=x': must be NAME=COLUMN, where NAME is one"),
    (ONE, [*LONG, "mos"], "--columns 'mos': must be NAME=COLUMN"),
    (ONE, [*LONG, "rater="], "--columns 'rater=': must be NAME=COLUMN"),
    (ONE, [*LONG, "wav=mos"], "--columns 'wav=mos': must be NAME=COLUMN"),
    (ONE, ["--wide", *LONG], "'wav=clip': must be NAME=COLUMN, where NAME is one of rater and"),
    (ONE, ["--wavs", "."], "--wavs: is for an export, with --columns or --wide"),
    (ONE, [*LONG, "--wavs", "nowhere"], "--wavs nowhere: is not a folder"),
    ("clip,mos\n", LONG, "export.csv: there are no rows below the header"),
    ("", LONG, "export.csv: there are no rows below the header"),
    ("clip,mos\na_01,good\n", LONG, "export.csv: has no score that is a number"),
    (f"{ONE}a_01,good\n", LONG, "export.csv, row 3: the score 'good' is not a number"),
    ("clip,mos\na_01,7\n", LONG, "export.csv, row 2: the score 7 is off the scale of 1 to 5; --sc"),
    ("clip,mos\na_01,4,x\n", LONG, "export.csv, row 2: has more cells than the first row"),
    ('clip,mos\n"a_01,4\n', LONG, "export.csv: is not a table (unexpected end of data); save it"),
    ("PK\x03\x04\0\0", LONG, "export.csv: is not text in UTF-8, UTF-16 or latin-1; save the table"),
    (f"{ONE}c_01,4\nc_02,4\n", LONG, "export.csv: only 1 of its 3 clips are in HERE; there is"),
    (f"{ONE}c_01,4\nc_02,4\n", LONG, "for ['c_01', 'c_02']; --wavs FOLDER says where the clips"),
    ("a_01,c_01,c_02\n4,3,2\n", ["--wide"], "only 1 of its 3 clips are in HERE; there is none for"),
    ("clip,mos\nsame,4\n", LONG, "'same' may be HERE/far/same.wav or HERE/near/same.wav; say"),
    ("clip,mos\nhttp://x/p/a_01.wav,4\nhttp://x/q/a_01.wav,4\n", LONG,
     "HERE/near/a_01.wav: may be 'http://x/p/a_01' or 'http://x/q/a_01'; lay the clips in folders"),
    ("Is a_01 or b_01 better?\n4\n", ["--wide"],
     "the column 'Is a_01 or b_01 better?' may be HERE/far/b_01.wav or HERE/near/a_01.wav; rename"),
    ("a_01 natural,a_01 loud\n4,1\n", ["--wide"], "'a_01 natural' and 'a_01 loud'; delete the one"),
    ("clip,mos\na_01,4/5\n", LONG, "has no score that is a number; the first is '4/5', where 4 or"),
    ("a_01,b_01\n4,7\n", ["--wide"], "row 2, column 2: the score 7 is off the scale of 1 to 5"),
    ("clip,mos,s\na_01,4,x\na_01,4,y\n", [*LONG, "system=s"], "row 3: HERE/near/a_01.wav has"),
    ("clip,mos,s\na_01,4,\nb_01,4,y\n", [*LONG, "system=s"], "row 2: wav and system need a va"),
    (ONE, LONG, "--fold 1/5: leaves no rated clip for training or for test; there are 1 groups")])
def test_an_export_that_cannot_be_used_gets_one_sentence_and_status_2(tmp_path, monkeypatch,
                                                                      capsys, text, words, why):
    path = export(tmp_path, text, wavs=(*WAVS, "near/same.wav", "far/same.wav"))
    assert call(monkeypatch, published, path, *words, "--out", tmp_path / "t.csv") == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert why.replace("HERE", str(tmp_path)) in sentence
    assert not (tmp_path / "t.csv").exists()


def test_an_export_is_never_overwritten(tmp_path, monkeypatch, capsys):
    path = export(tmp_path, "clip,mos\na_01,4\nb_01,2\n")
    before = path.read_bytes()
    assert call(monkeypatch, published, path, *LONG, "--out", path) == 2
    assert f"--out {path}: is what was read" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_path_from_another_machine_is_found_by_its_end_but_a_local_one_must_be_exact(tmp_path):
    lay_out(tmp_path, {}, ["a/x.wav", "b/x.wav", "b/y.wav", "b/z.wav"])
    found = {"/srv/clips/a/x.wav": "a/x.wav", r"C:\study\b\x.wav": "b/x.wav",
             "https://x.org/b/y.wav": "b/y.wav", "c/y.wav": None, "b/z": "b/z.wav"}
    assert exports.find_clips(found, tmp_path) == {
        name: wav and tmp_path / wav for name, wav in found.items()}
    assert exports.find_clips(["https://x.org/c/y.wav"], tmp_path) == {
        "https://x.org/c/y.wav": tmp_path / "b/y.wav"}
    assert exports.find_clips(["../b/z.wav"], tmp_path / "a") == {
        "../b/z.wav": tmp_path / "a" / "../b/z.wav"}


@pytest.mark.parametrize("before", ["https://h/", "/srv/", "HERE/"])
def test_a_missing_clip_is_never_given_the_file_of_another_clip(tmp_path, before):
    lay_out(tmp_path, {}, ["sys1/a.wav", "sys2/b.wav"])
    before = before.replace("HERE", str(tmp_path))
    found = {f"{before}sys2/a.wav": None, f"{before}sys2/b.wav": tmp_path / "sys2/b.wav"}
    assert exports.find_clips(found, tmp_path) == found
    found[f"{before}sys1/a.wav"] = tmp_path / "sys1/a.wav"
    assert exports.find_clips(found, tmp_path) == found


def test_the_system_of_clips_beside_their_export_is_the_name_of_their_folder(tmp_path, monkeypatch):
    """At most half of the clips may be missing; here it is one of two."""
    export(tmp_path / "vocoder", "clip,mos\na_01,4\nb_01,3\n", wavs=["a_01.wav"])
    monkeypatch.chdir(tmp_path / "vocoder")
    (clip,) = exports.read("export.csv", {"wav": "clip", "score": "mos"})
    assert (clip.wav, clip.system, clip.split, clip.ratings) == (
        "a_01.wav", "vocoder", "train", {"": 4})
