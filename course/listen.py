"""One page to look and listen (ours): a single HTML file that needs no network.

    python -m course.listen          of runs/default, into runs/default/listen.html
    python -m course.listen RUN      of another run, into RUN/listen.html

It has one test clip of each system, of one group as far as there is one, such as a sentence, and
the WORST clips that the run gets most wrong; of each the audio, its log-mel picture up to 8 kHz,
rated and predicted MOS, and the gates. In the picture time goes to the right, frequency up, loud is
bright; all pictures have one scale, and silence at both ends is cut, as for the model.
"""

import argparse
import base64
import html
import struct
import zlib
from pathlib import Path

import numpy as np

import data
import evaluate
import moemos
from data import InputError

WORST = 12
PICTURE = "logmel"  # the backbone whose first layer is drawn, whatever the run's
ARTEFACTS = {  # of corpora.simulated
    "original": "the recording: its noise and its room",
    "nv": "a neural vocoder: phases that wander, roughness above all in high frequencies; hiss "
          "that follows the speech; faint steady tones",
    "tts": "text to speech: pitch, loudness and timing too level, and a little of nv's traces",
    "world": "a parametric vocoder: muffled, blurred in time, wide formants; buzzy, strictly "
             "periodic, without breath",
    "SR": "super-resolution: above 6 kHz a mirror image of the band below",
}
PAGE_STYLE = """
body { font: 15px/1.45 sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #222; background: #fff }
"""
STYLE = """
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
.clip { border: 1px solid #bbb; border-radius: 4px; padding: .7rem; overflow-wrap: anywhere }
.clip h3 { font-size: 1rem; margin: 0 0 .3rem }
.clip p { margin: .3rem 0 }
.clip audio { width: 100%; height: 2.2rem }
.clip img { width: 100%; height: 8rem; image-rendering: pixelated; background: #000 }
.gates { display: flex; gap: .4rem; align-items: end }
.gates span { flex: 1; font-size: .8rem }
.gates i { display: block; height: .6rem; background: #ddd }
.gates b { display: block; height: 100%; background: #0072b2 }
"""


# -- What is shown ---------------------------------------------------------------------------------

def one_of_each_system(clips):
    """-> one index a system, in order of name: its clip of the group that most systems have."""
    systems = {}  # of a group
    for clip in clips:
        systems.setdefault(clip.group, set()).add(clip.system)
    chosen = {}
    for i in sorted(range(len(clips)), key=lambda i: -len(systems[clips[i].group])):
        chosen.setdefault(clips[i].system, i)
    return [chosen[system] for system in sorted(chosen)]


def most_wrong(predicted, true):
    """-> indices of the WORST largest errors, the largest first."""
    errors = np.abs(np.asarray(predicted) - np.asarray(true))
    return np.argsort(-errors, kind="stable")[:WORST].tolist()


# -- Pictures --------------------------------------------------------------------------------------

def log_mel(path, backbone):
    """A WAV file -> (D, F): log-mel, the highest band first."""
    waveform = data.read_wav(path, backbone.sample_rate)
    return backbone.extract(waveform)[0].T.flip(0).cpu().numpy()


def png(pixels):
    """(height, width) uint8, 0 black -> the bytes of a PNG."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # each: no filter

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def embed(kind, content):
    """Bytes as the address of an audio or img element."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# -- The page --------------------------------------------------------------------------------------

def escaped(text):
    """A name from outside as a page may hold it."""
    return html.escape(data.printable(text))


def describe(clip):
    """What to listen for, where the clip is of the simulation; else its synthesis model."""
    base = clip.model.removesuffix("SR")
    heard = [ARTEFACTS[name] for name in (base, "SR" * clip.model.endswith("SR"))
             if name in ARTEFACTS]
    return "; ".join(heard) or clip.model


def card(clip, predicted, gates, picture):
    """A clip's part of the page. picture: (D, F) uint8."""
    bars = "".join(f'<span>{100 * gate:.0f} %<i><b style="width: {100 * gate:.0f}%"></b></i></span>'
                   for gate in gates)
    name = escaped(clip.wav)
    return f"""<div class="clip"><h3>{escaped(clip.system)}</h3>
<p>{escaped(describe(clip))}</p>
<audio controls preload="metadata" src="{embed('audio/wav', data.read_bytes(clip.path))}"></audio>
<img alt="log-mel of {name}" src="{embed('image/png', png(picture))}">
<p>rated <b>{clip.mos:.2f}</b>, predicted <b>{predicted:.2f}</b> ({predicted - clip.mos:+.2f})</p>
<div class="gates" title="gates of the experts">{bars}</div>
<p><small>{name}</small></p></div>
"""


def cards(clips, output):
    """Clips and the Output of them -> the part of the page of each; their pictures have one scale.
    """
    eyes = moemos.load_backbone(PICTURE)
    log_mels = [log_mel(clip.path, eyes) for clip in clips]
    dark, bright = np.quantile(np.concatenate([own.ravel() for own in log_mels]), (0.05, 0.995))
    parts = []
    for i, clip in enumerate(clips):
        grey = np.clip((log_mels[i] - dark) / (bright - dark), 0, 1)
        picture = (255 * grey).astype(np.uint8)
        parts.append(card(clip, output.mos[i].item(), output.gates[i].tolist(), picture))
    return parts


def page(run, device="", backbone=""):
    """A run -> the page's text. Raises InputError."""
    trained = evaluate.load_run(run, device, backbone)
    config = trained.config
    clips = data.read_ratings(config.data, config.scale)
    clips = [clip for clip in clips if clip.split == "test" and clip.ratings]
    if not clips:
        raise InputError(f"{config.data} has no rated test clips; there is nothing to show")
    output = evaluate.predict_clips(trained, clips)
    each = one_of_each_system(clips)
    worst = most_wrong(output.mos.tolist(), [clip.mos for clip in clips])
    shown = [*each, *worst]
    made = cards([clips[i] for i in shown], moemos.Output(*(part[shown] for part in output)))
    parts = [f'<h2>{title}</h2>\n<div class="clips">\n{"".join(some)}</div>\n'
             for title, some in (("Each system once", made[:len(each)]),
                                 ("Most wrong", made[len(each):]))]
    title = escaped(f"{run} on {config.data}, {trained.backbone.name}")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>{PAGE_STYLE}{STYLE}</style></head>
<body><h1>{title}</h1>
<p>In the pictures time goes to the right, frequency goes up to 8 kHz, and loud is bright. The bars
are the gates: how much each expert counts for the clip. They add up to 100 %.</p>
{"".join(parts)}</body></html>
"""


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Writes a page to look at clips and listen to them.")
    parser.add_argument("run", nargs="?", default="runs/default",
                        help="Name a run (default: runs/default).")
    parser.add_argument("--device", default="", help="Choose it as in train.py.")
    parser.add_argument("--backbone", default="", help="Choose it as in evaluate.py.")
    options = parser.parse_args()
    with data.errors_in_one_sentence("course.listen"):
        text = page(options.run, options.device, options.backbone)
        path = Path(options.run, "listen.html")
        data.write_files({path: text.encode("utf-8", "replace")})
        size = path.stat().st_size / 2 ** 20
        print(data.printable(f"wrote {path}, {size:.1f} MiB; open it in a browser"))


if __name__ == "__main__":
    main()
