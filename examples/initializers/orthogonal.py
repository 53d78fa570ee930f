"""New rows at right angles to the old ones, and as long: new channels look where none looks yet."""

from dataclasses import dataclass

import torch

from nets import Initializer


@dataclass(frozen=True)
class Orthogonal(Initializer):
    least: float = 0.01

    def new_values(self, edit):
        values = {}
        for axis in edit.grown:
            for layer in axis.incoming:
                weight = edit.value(f"{layer.name}.weight")  # (channels, inputs, *kernel)
                old, new = weight[: axis.start].flatten(1), weight[axis.start :].flatten(1)
                with edit.counted():
                    rest = new - new @ torch.linalg.pinv(old) @ old
                norm = rest.norm(dim=1, keepdim=True)
                free = norm > self.least * new.norm(dim=1, keepdim=True)  # else: as drawn
                rows = torch.where(free, rest / norm * old.norm(dim=1).mean(), new)
                weight[axis.start :] = rows.view_as(weight[axis.start :])
                values[f"{layer.name}.weight"] = weight
        return values
