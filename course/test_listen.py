"""Tests of the page of course/listen.py: it shows what the files hold, and needs nothing else."""

import base64
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from scipy.io import wavfile

import data
import evaluate
import moemos
from course import listen
from test_moemos import call, no_network, run  # noqa: F401 - fixtures


class Page(HTMLParser):
    """Collects the addresses, by element, and the texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [(tag, value) for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def a_clip(system, group="g"):
    return data.Clip("a.wav", Path("a.wav"), "test", system, system, group, {"r": 3.0})


def pixels(content):
    """(height, width) uint8 of a PNG as png() writes it."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    place, parts = 8, {}
    while place < len(content):
        (length,) = struct.unpack(">I", content[place:place + 4])
        body = content[place + 4:place + 8 + length]
        assert struct.unpack(">I", content[place + 8 + length:place + 12 + length]) == (
            zlib.crc32(body),)
        parts[body[:4]] = body[4:]
        place += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    assert (depth, colour, parts[b"IEND"]) == (8, 0, b"")
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, 1 + width)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:]


def test_a_png_holds_its_pixels():
    picture = np.random.default_rng(0).integers(256, size=(7, 11)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(listen.png(picture)), picture)


def test_the_picture_of_a_tone_is_brightest_at_its_band_and_high_bands_are_at_the_top(tmp_path):
    for hertz in (500, 7000):
        tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(24000) / 48000)
        wavfile.write(tmp_path / f"{hertz}.wav", 48000, tone.astype(np.float32))
    backbone = moemos.load_backbone(listen.PICTURE)
    low, high = (listen.log_mel(tmp_path / f"{hertz}.wav", backbone).mean(1).argmax()
                 for hertz in (500, 7000))
    assert low > 60
    assert high < 10


def test_each_system_is_shown_once_with_a_clip_of_the_commonest_group_that_it_has():
    pairs = ("pa", "pb", "qb", "qb", "rc")
    clips = [a_clip(system, group) for system, group in pairs]
    assert listen.one_of_each_system(clips) == [1, 2, 4]


def test_the_clips_with_the_largest_errors_come_first():
    assert listen.most_wrong([1.0, 5.0, 2.0], [1.5, 2.0, 3.0]) == [1, 2, 0]
    assert len(listen.most_wrong(np.zeros(40), np.arange(40))) == listen.WORST


def test_the_page_contains_the_clips_and_their_numbers_and_loads_nothing_from_elsewhere(
        run, monkeypatch, capsys):
    assert call(monkeypatch, listen, run, "--backbone", "logmel") == 0
    assert "listen.html" in capsys.readouterr().out
    page = Page((run / "listen.html").read_text())
    assert page.open == []
    trained = evaluate.load_run(run)
    clips = [clip for clip in data.read_ratings(trained.config.data) if clip.split == "test"]
    output = evaluate.predict_clips(trained, clips)
    predicted = output.mos.tolist()
    shown = listen.one_of_each_system(clips)
    shown += listen.most_wrong(predicted, [clip.mos for clip in clips])
    audio = [address for tag, address in page.addresses if tag == "audio"]
    images = [address for tag, address in page.addresses if tag == "img"]
    assert len(audio) + len(images) == len(page.addresses)
    assert len(shown) == 4 + 12
    for i, sound, image in zip(shown, audio, images, strict=True):
        kind, _, content = sound.partition(",")
        assert kind == "data:audio/wav;base64"
        assert base64.b64decode(content) == clips[i].path.read_bytes()
        kind, _, content = image.partition(",")
        assert kind == "data:image/png;base64"
        assert pixels(base64.b64decode(content)).shape[0] == 80
    text = "".join(page.texts)
    for i in shown:
        error = predicted[i] - clips[i].mos
        assert f"rated {clips[i].mos:.2f}, predicted {predicted[i]:.2f} ({error:+.2f})" in text
        for gate in output.gates[i].tolist():
            assert f"{100 * gate:.0f} %" in text


def test_names_can_neither_break_the_page_nor_reverse_the_direction_of_its_text():
    strange = data.Clip("<b>&.wav", Path(__file__), "test", "<i>\x1b\0", '<script>"\u202e', "g",
                        {"r": 3.0})
    text = listen.card(strange, 2.0, [1.0], np.zeros((2, 2), np.uint8))
    for bad in ("<script", "<i>\\", "<b>&", "\x1b", "\0", "\u202e"):
        assert bad not in text
    assert r"&lt;i&gt;\x1b\x00" in text
    assert r"&lt;script&gt;&quot;\u202e" in text


def test_only_clips_of_the_simulation_get_a_description_of_what_to_listen_for():
    assert listen.describe(a_clip("tts")) == listen.ARTEFACTS["tts"]
    assert listen.describe(a_clip("ttsSR")) == (
        f"{listen.ARTEFACTS['tts']}; {listen.ARTEFACTS['SR']}")
    assert listen.describe(a_clip("else")) == "else"


def test_a_missing_run_gets_a_sentence_and_status_2(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, listen, tmp_path / "none") == 2
    assert "cannot be read" in capsys.readouterr().err
