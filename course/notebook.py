# %% [markdown]
# # From a waveform to a MOS
#
# A *mean opinion score* (MOS) is the mean of the marks, from 1 to 5, that people give a clip of
# speech. This notebook trains a program that listens to a clip and predicts its MOS, and then it
# follows clips through the program, step by step.
#
# You need Jupyter and matplotlib beside the packages of the project: `pip install jupyterlab
# matplotlib`. Run the cells in their order. The whole takes less than two minutes on one core, and
# it needs no network. This notebook is made from `course/notebook.py` by `python -m course.build`.

# %%
import csv
import os
import sys
from pathlib import Path

sys.path.extend([".", ".."])  # the project's folder, wherever the notebook was started
import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, display

import data
import evaluate
import moemos
import train
from course import listen

os.chdir(Path(moemos.__file__).parent)

# %% [markdown]
# ## Training
#
# The clips to learn from are simulated, and so are the people who rate them: both are made on your
# machine. A *backbone* is a large network that others have trained on speech and that stays as it
# is. Its weights are a download, and so this notebook takes a simple stand-in, `logmel`, which
# measures how loud each band of frequencies is. What is learned from it says nothing about real
# speech or about the paper's own numbers, but every step is the same.
#
# Each line that is printed below is a part of training, which has three stages. The columns that
# matter most are explained where we plot them.

# %%
RUN = "runs/notebook"
train.train(train.Config(backbone="logmel", out=RUN))
trained = evaluate.load_run(RUN)
model, backbone = trained.model, trained.backbone

# %% [markdown]
# ## One clip, from its waveform to its MOS
#
# Each step makes new numbers from those before it, and numbers come in tables called *tensors*. The
# *shape* of a tensor says how many numbers it has in each direction.
#
# The waveform is one number for each of 16,000 moments in a second.

# %%
clips = [clip for clip in data.read_ratings("corpus") if clip.split == "test"]
clip = clips[0]
waveform = data.read_wav(clip.path, backbone.sample_rate)
print(f"{clip.wav}: waveform {tuple(waveform.shape)}, {len(waveform) / 16000:.2f} seconds")

# %% [markdown]
# The backbone makes *frames*: a hundred times in a second it says in 80 numbers what it hears. It
# has two layers. The first is the loudness of 80 bands, from low to high frequencies, on a
# logarithmic scale. The second is how fast that changes.

# %%
frames = backbone.extract(waveform)
print("frames (layers, frames, bands):", tuple(frames.shape))

plt.figure(figsize=(9, 4))
plt.subplot(2, 1, 1)
plt.plot(torch.arange(len(waveform)) / 16000, waveform, linewidth=0.5)
plt.xlim(0, len(waveform) / 16000)
plt.ylabel("waveform")
plt.subplot(2, 1, 2)
plt.imshow(frames[0].T, origin="lower", aspect="auto",
           extent=(0, len(waveform) / 16000, 0, frames.shape[2]))
plt.xlabel("seconds")
plt.ylabel("first layer: band")
plt.show()

# %% [markdown]
# Clips have different lengths, and so different numbers of frames. The mean of each number over
# time, and its standard deviation, have the same shape for all clips.
#
# *Feature fusion* puts all of these numbers side by side. It subtracts the mean of the training
# clips and divides by their deviation, and then turns the result to new axes, those along which the
# training clips differ most.

# %%
statistics = moemos.pool_statistics(frames)
features = statistics[None]  # a batch of one clip
with torch.no_grad():
    fused = model.fusion(features)
    output = model(features)
print("mean and deviation over time (layers, 2 x bands):", tuple(statistics.shape))
print("fused features (clips, axes):", tuple(fused.shape))

# %% [markdown]
# The fused features go to four *experts*, which are small networks, and to the *gate*. The gate
# says how much each expert counts: four shares that add up to 1. Every expert makes 13 numbers: one
# for the MOS, and one for each of the 12 synthesis models, which are what made the clips.
#
# The sum of what the experts say, each times its gate, is called y:
#
#     y = g_1 E_1 + g_2 E_2 + g_3 E_3 + g_4 E_4

# %%
gates, experts = output.gates[0], output.experts[0]
print("gates (experts,):", tuple(gates.shape), [f"{gate:.3f}" for gate in gates])
print("experts (experts, 1 + synthesis models):", tuple(experts.shape))
y = sum(gates[i] * experts[i] for i in range(4))
print("y by hand is the y of the model:", torch.allclose(y, output.y[0], atol=1e-5))

# %% [markdown]
# Two *heads* read y. Each is one layer, which is a weighted sum. One guesses which synthesis model
# made the clip. The other predicts the MOS. What it gives counts in standard deviations of the MOS
# of the training clips, from their mean.

# %%
weights, bias = model.mos_head.weight[0].detach(), model.mos_head.bias.item()
mos = model.mean + model.deviation * (weights @ y + bias)
print("scores of the synthesis models (clips, synthesis models):", tuple(output.logits.shape))
print(f"the best score has {trained.classes[output.logits.argmax()]}; it was {clip.model}")
print(f"MOS by hand {mos:.4f}, of the model {output.mos.item():.4f}, rated {clip.mos:.2f}")

# %% [markdown]
# ## What the gate does with four clips
#
# Here are four clips of one sentence by four synthesis models. Listen to them, and look at their
# pictures: time goes to the right, frequency goes up, and loud is bright. The blue bars are the
# gates of the four experts. Do they differ where you hear a difference?

# %%
one_of_each = [clips[i] for i in listen.one_of_each_system(clips)]
four = [own for own in one_of_each if own.system.startswith("24k") and "SR" not in own.system]
cards = listen.cards(four, evaluate.predict_clips(trained, four))
display(HTML(f'<style>{listen.STYLE}</style><div class="clips">{"".join(cards)}</div>'))

# %% [markdown]
# ## The losses of the three stages
#
# A *loss* says how wrong the model is, and training changes the model in small steps so that the
# loss gets smaller. There are two main losses: that of the classes, which are the synthesis models,
# and that of the MOS. Training has three stages of 200 steps. The first is for the classes only. In
# the second the weight of the MOS grows, and in the third it is nine times that of the classes. The
# dotted lines lie between the stages.
#
# The loss of the MOS hardly changes, because training starts from a linear model that is good
# already. In the first stage, which does not care for the MOS, it even rises a little. The third
# picture shows the mean gates of all clips: each of the four experts has about a quarter of the
# work.

# %%
rows = list(csv.DictReader(Path(RUN, "log.csv").read_text().splitlines()))
steps = [50 * (i + 1) for i in range(len(rows))]  # each row is the mean over 50 steps

pictures = {"loss of the classes": ["classification"], "loss of the MOS": ["mos"],
            "mean gates": ["gate_1", "gate_2", "gate_3", "gate_4"]}
plt.figure(figsize=(9, 3))
for place, (title, columns) in enumerate(pictures.items()):
    plt.subplot(1, 3, place + 1)
    for column in columns:
        plt.plot(steps, [float(row[column]) for row in rows], marker=".", label=column)
    plt.axvline(225, color="grey", linestyle=":")
    plt.axvline(425, color="grey", linestyle=":")
    plt.ylim(bottom=0)
    plt.xlabel("step")
    plt.title(title)
plt.legend(loc="lower left")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## A prediction against a rating
#
# Ten people rated our first clip. Their mean is its MOS, but ten other people would have given
# another mean. The *standard error* says by how much, roughly: it is the standard deviation of the
# ratings, divided by the root of their number. If the prediction is off by less than two standard
# errors, these ten ratings cannot tell whether it is wrong at all.

# %%
ratings = torch.tensor(list(clip.ratings.values()))
error = output.mos.item() - clip.mos
standard_error = ratings.std().item() / len(ratings) ** 0.5
print("ratings:", sorted(int(rating) for rating in ratings))
print(f"MOS {clip.mos:.2f}, with a standard error of {standard_error:.2f}")
print(f"predicted {output.mos.item():.2f}, which is off by {error:+.2f}")

# %% [markdown]
# ## The verdict in words
#
# One clip says little, and so all 400 test clips are predicted. The *correlation* (LCC) is 1 if the
# predictions lie on a straight line against the ratings, and 0 if they have nothing to do with
# them. The question is always: better than what? We compare with *ridge regression*, which is a
# linear model of the same features, and with a predictor that hears nothing and is only told which
# system made the clip.
#
# The model is called better or worse only if the 95 % interval of the difference does not contain
# 0. "Not shown to differ" does not mean "equally good": it means that these clips do
# not decide it. This verdict is in the last lines of the report below, so read them first.

# %%
evaluate.evaluate(RUN)
predicted = evaluate.predict_clips(trained, clips).mos

plt.figure(figsize=(4, 4))
plt.scatter([own.mos for own in clips], predicted, s=8)
plt.plot([1, 5], [1, 5], color="grey", linestyle=":")  # where a perfect prediction would lie
plt.xlabel("rated MOS")
plt.ylabel("predicted MOS")
plt.show()

# %% [markdown]
# ## What now?
#
# - `python -m course.explain WAV` prints all numbers of one clip, so that you can compute its MOS
#   by hand.
# - `python -m course.listen` writes a page with the clips that are predicted worst.
# - `python -m course --new mine.py` lets you write the method yourself, and tells you what is
#   right.
# - `course/exercises.md` has open questions for a report.
