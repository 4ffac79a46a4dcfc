"""Code every patch of a picture with few atoms of a dictionary, and draw what is left of it, and how many it took.

python examples/sparse_picture.py [PATCHES [FILE.png]]
"""

import sys

import numpy as np
from matplotlib.figure import Figure

import bygrad
from bygrad.problems import SparseCoding
from bygrad.problems.data.pictures import load_painting

across = int(sys.argv[1]) if len(sys.argv) > 1 else 32  # patches of 8 x 8 pixels in a row, and in a column
picture = load_painting("great_wave").mean(axis=2)[: 8 * across, : 8 * across]
patches = picture.reshape(across, 8, across, 8).swapaxes(1, 2).reshape(-1, 64)
means = patches.mean(axis=1, keepdims=True)
norms = np.linalg.norm(patches - means, axis=1, keepdims=True)
family = SparseCoding.embedded()
solution = bygrad.solve(family, (patches - means) / norms, dtype=np.float32)
coded = means + norms * (solution.x @ np.asarray(family.dictionary).T)
again = coded.reshape(across, across, 8, 8).swapaxes(1, 2).reshape(picture.shape)
atoms = np.sum(solution.x != 0, axis=1).reshape(across, across)
print(f"{len(patches)} patches, {solution.success.mean():.1%} solved, {solution.nit.mean():.0f} steps")
print(f"{atoms.mean():.1f} of 256 atoms each; off by {np.sqrt(np.mean((again - picture) ** 2)):.1f} of 255 in the mean")

figure = Figure(figsize=(9, 3.2), layout="constrained")
left, middle, right = figure.subplots(1, 3)
for axes, title, shown in ((left, "picture", picture), (middle, "coded", again)):
    axes.imshow(shown, cmap="gray", vmin=0, vmax=255)
    axes.set(title=title, xticks=[], yticks=[])
figure.colorbar(right.imshow(atoms, cmap="cividis"), label="atoms of a patch")
right.set(title="atoms", xticks=[], yticks=[])
if len(sys.argv) > 2:
    figure.savefig(sys.argv[2], dpi=80)
