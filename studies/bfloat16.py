"""The backbone in half precision: matrix products in bfloat16, on processors that have them.

    python -m studies.bfloat16 [train.py's options]    trains and evaluates into runs/bfloat16

Its features are kept apart from those in float32. evaluate.py refuses such a run, as its backbone
is another; from Python it scores a clip:

    trained = evaluate.load_run("runs/bfloat16", backbone=bfloat16.open_half("WAV2VEC2_BASE"))
    waveform, features = evaluate.read_clip("a.wav", trained)
    evaluate.predict(trained.model, features).mos
"""

import argparse
import hashlib

import torch

import data
import evaluate
import moemos
import train
from data import InputError


class HalfPrecision(moemos.Backbone):
    """A Backbone whose matrix products are in bfloat16. Raises InputError without support."""

    def __init__(self, name, network, sample_rate, device="cpu"):
        on_cpu = torch.device(device).type == "cpu"
        if on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise InputError("bfloat16: this processor does not have it; use train.py")
        super().__init__(name, network, sample_rate, device)
        self.identity = hashlib.sha256(b"bfloat16" + self.identity.encode()).hexdigest()

    def extract(self, waveform):
        """(T,) float32 at sample_rate -> (L, F, D) float32, as of Backbone."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return super().extract(waveform).float()


def open_half(name="", device=""):
    """data.open_backbone in half precision. Raises InputError."""
    backbone = data.open_backbone(name, device)
    return HalfPrecision(backbone.name, backbone.network, backbone.sample_rate, backbone.device)


def run(config):
    """Trains and evaluates."""
    backbone = open_half(config.backbone, config.device)
    train.train(config, backbone=backbone)
    evaluate.evaluate(config.out, trained=evaluate.load_run(config.out, backbone=backbone))


def main():
    config, _ = train.parse(argparse.ArgumentParser(
        allow_abbrev=False, description="train.py and evaluate.py, the backbone in bfloat16."),
        out="runs/bfloat16")
    with data.one_sentence("studies.bfloat16"):
        run(config)


if __name__ == "__main__":
    main()
