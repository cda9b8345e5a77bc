"""A learned backbone that everybody can install: `pip install distillmos`, then

    python train.py --backbone studies.distilled

It is the network of DistillMOS (Stahl and Gamper, MIT licence), whose weights come with the
package: a spectrum, six convolutions and seven transformer layers of width 200, with 50 frames a
second. It is not a wav2vec2, but was distilled from a quality predictor that uses one, wav2vec2
XLS-R. So it was trained to predict quality, perhaps on some of the very conditions that it is tried
on here. zero_shot() gives the MOS that DistillMOS itself predicts.
"""

import contextlib

import torch
from torch import nn

from data import InputError

try:
    import distillmos
except ImportError:  # it is not a requirement
    distillmos = None

WINDOW = 122880  # samples at 16 kHz, 7.68 s: what it was trained on
FRAME = 320      # samples, 20 ms


class Network(nn.Module):
    """DistillMOS; the outputs of its transformer layers are the layers of the backbone."""

    def __init__(self):
        super().__init__()
        with contextlib.redirect_stdout(None):  # it prints where its weights are
            self.model = distillmos.ConvTransformerSQAModel()
        self.heard = []  # what the layers gave in the last forward pass
        transformer = self.model.transformer_pool_attn.transformer.transformer_encoder
        for layer in transformer.layers:
            layer.register_forward_hook(lambda layer, given, output: self.heard.append(output))

    def extract_features(self, waveforms):
        """(1, T) at 16 kHz -> (seven tensors (1, F, 200), None).

        The clip is cut into pieces of WINDOW samples. The model pads the last one, and the frames
        of padding are left out. It also scales each piece to its peak, so that the level of a clip
        does not matter.
        """
        pieces = []
        for piece in waveforms.split(WINDOW, dim=1):
            frames = piece.shape[1] // FRAME or not pieces  # the last may be shorter than one
            pieces.append([layer[:, :frames] for layer in self.layers(piece)])
        return [torch.cat(layer, dim=1) for layer in zip(*pieces)], None

    def layers(self, piece):
        self.heard.clear()
        self.model(piece)
        return list(self.heard)


def load():
    """(the network, its sampling rate), as moemos.load_backbone() wants it. Raises InputError."""
    if distillmos is None:
        raise InputError("--backbone studies.distilled needs `pip install distillmos`")
    return Network(), 16000


@torch.no_grad()
def zero_shot(backbone, waveform):
    """The MOS, 1 to 5, that DistillMOS itself predicts for a waveform (T,) at 16 kHz. backbone: the
    moemos.Backbone of a Network."""
    mos = backbone.network.model(waveform[None].to(backbone.device)).item()
    backbone.network.heard.clear()  # so that many clips in a row do not fill the memory
    return mos
