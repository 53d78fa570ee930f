"""New channels of a block add the function that the layer behind them lacks most.

After Verbockhaven et al. 2024 (Growing Tiny Networks, TINY, arXiv 2405.19816). What a layer should
give is the negative gradient of the loss by its output. The part of it that no change of the
layer's own weights can give, the residual of a least-squares fit on its inputs, is its expressivity
bottleneck. New channels in front of it are its best fit of low rank: with S the second
moment of what they see and N its product with the residual, the incoming weights are S^(-1/2) u for
the leading left-singular vectors u of S^(-1/2) N, and a line search on the loss gives the amplitude
of the outgoing ones. Outputs move: the loss on the probe batch falls, or nothing is added.

Deviations: in front of a convolution the directions are those of its centre tap, and the outgoing
weights, of all taps, are the least-squares fit of what the new channels really give, behind
BatchNorm and activation, where the paper takes the activation as linear; of a direction and its
opposite the one that fits better is taken; incoming weights get the mean norm of the old ones; the
layer's own best update is not applied. What a stream gains begins as by he, and so do channels
beyond the number of directions, and new blocks.

    PYTHONPATH=examples/initializers python run.py train --policy Periodic --initializer tiny.Tiny
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from nets import Initializer, Widen

RIDGE = 1e-6
"""Share of its mean eigenvalue that is added to a second moment before it is inverted."""


@dataclass(frozen=True)
class Tiny(Initializer):
    """Args: halvings: of the amplitude in the line search, each a forward of the probe batch."""

    halvings: int = 8
    moves_outputs = True

    def __post_init__(self):
        if not 0 <= self.halvings <= 30:
            raise ValueError(f"halvings must be from 0 to 30, got {self.halvings}")

    def new_values(self, edit):
        if not isinstance(edit.action, Widen):
            return {}
        fits, amplitude = edit.once("tiny", lambda: self.fitted(edit))
        return placed(edit, fits, amplitude)

    def fitted(self, edit):
        """Give the fit in front of each layer, and the amplitude of the smallest loss."""
        fits = [fit(edit, axis) for axis in edit.grown]
        losses = {
            amplitude: edit.loss_with(placed(edit, fits, amplitude))
            for amplitude in (0.0, *(0.5**k for k in range(self.halvings + 1)))
        }
        return fits, min(losses, key=losses.get)


def placed(edit, fits, amplitude):
    """Give whole weights with new rows and new columns in their places."""
    values = {}
    for axis, (rows, columns) in zip(edit.grown, fits):
        new = slice(axis.start, axis.start + len(rows))
        weight = values.setdefault(
            incoming := f"{axis.incoming[0].name}.weight", edit.value(incoming)
        )
        weight[new, : rows.shape[1]] = rows.to(weight)
        weight = values.setdefault(
            outgoing := f"{axis.outgoing[0].name}.weight", edit.value(outgoing)
        )
        weight[: len(columns), new] = amplitude * columns.to(weight)
    return values


def fit(edit, axis):
    """Give rows, (new, inputs, *kernel), and columns, (outputs, new, *kernel), in float64."""
    layer, behind = axis.incoming[0], axis.outgoing[0]
    ends = [(layer.name, "input"), (behind.name, "input"), (behind.name, "output")]
    (x, _), (b, _), (a, gradient) = (edit.tap(ends)[end] for end in ends)
    old_rows = edit.old[f"{layer.name}.weight"].double()  # (channels, inputs, *kernel)
    with edit.counted():
        inputs, wanted = patches(b, behind), -len(x) * by_place(gradient)  # (.., places)
        own = wanted @ inputs.T @ power_of(edit, inputs @ inputs.T, -1)  # the layer's best update
        residual = wanted - own @ inputs  # (outputs, places)
        seen = patches(x, layer, layer.stride * behind.stride)
        root = power_of(edit, seen @ seen.T, -0.5)
        u, strength, _ = torch.linalg.svd(root @ (seen @ residual.T), full_matrices=False)
        edit.charge(26 * max(u.shape) * min(u.shape) ** 2)  # of 6mn^2 + 20n^3, from above
        found = int((strength > 1e-12 * strength[0]).sum())
        count = max(1, min(axis.size - axis.start, found))
        rows = (root @ u[:, :count]).T  # (count, inputs * taps)
        rows *= old_rows.flatten(1).norm(dim=1).mean() / rows.norm(dim=1, keepdim=True)
        rows = rows.view(count, *old_rows.shape[1:])
        gains = [
            (residual @ given(edit, x, layer, behind, signed).T).view(len(residual), count, -1)
            for signed in (rows, -rows)
        ]
        better = gains[0].norm(dim=(0, 2)) >= gains[1].norm(dim=(0, 2))
        rows = torch.where(better.view(-1, *[1] * (rows.dim() - 1)), rows, -rows)
        responses = given(edit, x, layer, behind, rows)  # (count * taps, places)
        columns = residual @ responses.T @ power_of(edit, responses @ responses.T, -1)
        size = (columns @ responses).square().mean().sqrt().clamp_min(1e-12)
    columns *= a.double().square().mean().sqrt() / size  # amplitude 1: as large as what was there
    return rows, columns.view(len(residual), count, *edit.old[f"{behind.name}.weight"].shape[2:])


def given(edit, x, layer, behind, rows):
    """Give what the layer behind would see of new channels with these rows, (.., places)."""
    x = x.double()
    if layer.kind == "conv":
        z = functional.conv2d(x, rows, stride=layer.stride, padding=layer.shape[-1] // 2)
    else:
        z = functional.linear(x, rows)
    if edit.before.block != "plain":
        z = functional.batch_norm(z, None, None, training=True)
    return patches(getattr(functional, edit.before.activation)(z), behind)


def patches(x, layer, stride=None):
    """Give what a layer sees at each place, (inputs * taps, samples * positions)."""
    if layer.kind != "conv":
        return by_place(x)
    kernel = layer.shape[-1]
    return by_place(functional.unfold(x.double(), kernel, 1, kernel // 2, stride or layer.stride))


def by_place(x):
    """(N, C, *positions) -> (C, N * positions), in float64."""
    return x.double().transpose(0, 1).flatten(1)


def power_of(edit, moment, power):
    """Give a power of a second moment, (d, d), with a ridge."""
    values, vectors = torch.linalg.eigh(moment)
    edit.charge(9 * len(moment) ** 3)  # Golub and Van Loan, symmetric QR with vectors
    values = values.clamp_min(0) + RIDGE * values.mean().clamp_min(1e-12)
    return vectors * values**power @ vectors.T
