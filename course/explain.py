"""One clip on its way: every tensor between a WAV file and its MOS.

    python -m course.explain WAV          by runs/default
    python -m course.explain WAV RUN      by another run of train.py

First comes an overview of the tensors. Then comes all that you need to compute y and the MOS again
by hand. Where the run's corpus has the clip, its loss follows, term by term. Letters of dimensions:
see moemos.py.
"""

import argparse
from pathlib import Path

import torch

import data
import evaluate
import moemos


@torch.no_grad()
def explain(run, path, device="", backbone=""):
    """Prints all of it. Raises InputError for a run or a file that cannot be used."""
    trained = evaluate.load_run(run, device, backbone)
    waveform, features = evaluate.read_clip(path, trained)
    features = features.to(trained.backbone.device)  # (1, L, 2D)
    output = trained.model(features)
    print(data.printable(f"{path} by {run}, backbone {trained.backbone.name}"))
    show_tensors(trained, waveform, features, output)
    show_sum(trained, output)
    show_loss(run, path, trained, output)


def show_tensors(trained, waveform, features, output):
    """Prints a line for each tensor, in the order in which a clip goes through the method."""
    tensors = [
        ("waveform", "(T,)", waveform),
        ("layers of the backbone", "(L, F, D)", trained.backbone.extract(waveform)),
        ("mean, deviation over F", "(L, 2D)", features[0]),
        ("fused features", "(B, A)", trained.model.fusion(features)),
        ("gates g", "(B, E)", output.gates),
        ("experts E_1 ... E_N", "(B, E, 1 + C)", output.experts),
        ("y = sum g_i E_i", "(B, 1 + C)", output.y),
        ("logits of the classes", "(B, C)", output.logits),
        ("MOS", "(B,)", output.mos),
    ]
    print(f"{'what':26}{'letters':15}{'shape':16}first values")
    for what, letters, tensor in tensors:
        first = tensor.flatten()[:4].tolist()
        values = " ".join(f"{value:8.4f}" for value in first)
        more = " ..." if tensor.numel() > 4 else ""
        print(f"{what:26}{letters:15}{tuple(tensor.shape)!s:16}{values}{more}")
    print(data.printable(f"most probable class: {trained.classes[output.logits.argmax()]}"))


def show_sum(trained, output):
    """Prints the gated sum y and the MOS of one clip with every number that goes into them.

    A row is one of the 1 + C numbers of y, so that more classes make the table longer, not wider.
    The first one starts training as an estimate of the MOS, the others as estimates of the classes.
    All have four decimals, so that a sum by hand is off by about a thousandth."""
    model = trained.model
    columns = [*output.experts[0], output.y[0], model.mos_head.weight[0]]  # each (1 + C,)
    names = ["MOS", *(data.printable(name)[:24] for name in trained.classes)]
    width = max(map(len, ["gates g", *names]))

    def show_row(name, numbers):
        print(f"{name:{width}}" + "".join(f"{number:10.4f}" for number in numbers))
    print("\nby hand: y = g_1 E_1 + g_2 E_2 + ... in each row; MOS = mean + deviation (w . y + b)")
    headings = [*(f"E_{i + 1}" for i in range(len(columns) - 2)), "y", "w"]
    print(" " * width + "".join(f"{heading:>10}" for heading in headings))
    show_row("gates g", output.gates[0].tolist())
    for name, *numbers in zip(names, *(column.tolist() for column in columns), strict=True):
        show_row(name, numbers)
    bias, mean, deviation = model.mos_head.bias.item(), model.mean.item(), model.deviation.item()
    print(f"w . y is the sum of w times y over the rows; b = {bias:.4f}")
    print(f"of the training MOS: mean = {mean:.4f}, deviation = {deviation:.4f}")
    print(f"MOS = {mean:.4f} + {deviation:.4f} * {(output.mos.item() - mean) / deviation:.4f} "
          f"= {output.mos.item():.4f}\n")


def show_loss(run, path, trained, output):
    """Prints the loss of a batch of this clip alone at the end of training, if the clip has ratings
    and training has seen its class."""
    config, device = trained.config, trained.backbone.device
    try:
        clips = data.read_ratings(config.data, config.scale)
    except data.InputError as error:
        print(f"no loss: {error}")
        return
    path = Path(path).resolve()
    same = [clip for clip in clips if clip.path.resolve() == path and clip.ratings]
    if not same or same[0].model not in trained.classes:
        return
    clip = same[0]
    label = trained.classes.index(clip.model)
    stage = evaluate.read_checkpoint(run)["stages"][-1]
    alpha = stage["alpha_end"]
    terms = moemos.losses(output, torch.tensor([clip.mos], device=device),
                          torch.tensor([label], device=device), alpha, 1 - alpha,
                          config.lambda_1, config.lambda_2, trained.model.deviation)
    print(data.printable(f"rated MOS {clip.mos:.2f}, class {clip.model}; a batch of it alone has "
                         f"at the end of stage {stage['name']}:"))
    print(", ".join(f"{name} {term.item():.4f}" for name, term in terms.items()))


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Prints every tensor between a WAV file and its MOS.")
    parser.add_argument("wav", metavar="WAV")
    parser.add_argument("run", nargs="?", default="runs/default",
                        help="Name a run (default: runs/default).")
    parser.add_argument("--device", default="", help="Choose it as in train.py.")
    parser.add_argument("--backbone", default="", help="Choose it as in evaluate.py.")
    options = parser.parse_args()
    with data.errors_in_one_sentence("course.explain"):
        explain(options.run, options.wav, options.device, options.backbone)


if __name__ == "__main__":
    main()
