"""Fit the ball-and-stick model in every voxel of a real scan, and draw what it finds: fibers and how much of them.

python examples/diffusion_map.py [STARTS [FILE.png]]
"""

import sys

import numpy as np
from matplotlib.figure import Figure

import bygrad
from bygrad.problems import BallAndStick

family, scan = BallAndStick.embedded(), BallAndStick.scan()
starts = int(sys.argv[1]) if len(sys.argv) > 1 else 3
solution = bygrad.solve(family, scan.reshape(-1, scan.shape[-1]), starts=starts)
tissue = family.tissue(solution.x)
fraction = np.asarray(tissue.fraction).reshape(scan.shape[:-1])
direction = np.asarray(tissue.direction).reshape(*scan.shape[:-1], 3)
print(f"{len(solution)} voxels, {solution.success.mean():.1%} solved, {solution.nit.mean() / starts:.1f} steps a start")
print(f"volume fraction of the fibers: {np.median(fraction):.2f} in the median voxel, {fraction.max():.2f} at most")

figure = Figure(figsize=(9, 3), layout="constrained")
for axes, sheet in zip(figure.subplots(1, 3), (0, 2, 4), strict=True):
    image = axes.imshow(fraction[sheet].T, cmap="cividis", vmin=0, vmax=0.5, origin="lower")
    # A fiber has no head: a line through the middle of the voxel, as long as the part of it in the sheet.
    i, j = np.indices(fraction[sheet].shape)
    _, u, v = np.moveaxis(direction[sheet], -1, 0)
    axes.quiver(i, j, u, v, pivot="mid", headwidth=0, headlength=0, headaxislength=0, scale=11, width=0.01, color="w")
    axes.set(title=f"sheet {sheet}", xticks=[], yticks=[])
figure.colorbar(image, label="volume fraction of the fibers")
if len(sys.argv) > 2:
    figure.savefig(sys.argv[2], dpi=64)
