"""What an initializer is: an object that gives the new entries of a growing network their values.

Nothing here imports torch, so that a command line can know the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nets.initializing.edit import Edit


class Initializer:
    """How new entries begin. Those in the box and a user's own derive from it.

    An action is carried out in two steps. First old entries keep their values, new weights are
    drawn by `draw`, old rows get zeros in their new columns, and new BatchNorm channels are the
    identity: outputs stay, and everything new is alive. Then `new_values` may give other values for
    any entry; what it does not name stays. Both have a default (he, and nothing), so a class
    overrides what it needs:

        @dataclass(frozen=True)
        class Tiny(Initializer):
            rate: float = 0.1
            moves_outputs = True

            def new_values(self, edit):
                ...

    `grow(net, actions, initializer=Tiny(0.2))`, `Widen(block, by, initializer=Tiny())` from a
    policy, and `--initializer mine.Tiny --initializer.rate 0.2` on the command line take it. As a
    frozen dataclass of numbers and texts it can stand in a run's config.yaml.

    `moves_outputs` says that outputs move on purpose; `Grown.difference` says by how much. A run
    tells of outputs that move without it.
    """

    moves_outputs = False

    def draw(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a weight: all of it in a first network, and when some of it is new.

        Args:
            name: of the entry, "stage1.block1.conv1.weight" or "head.linear.weight", say.
            shape: (outputs, inputs, *kernel).
            generator: on the CPU; all randomness comes from it.
        """
        from nets.initializing.distributions import he

        return he(shape, generator)

    def new_values(self, edit: Edit) -> Mapping[str, Tensor]:
        """Give values by entry, each whole and of its shape after the edit.

        It is asked at every action that adds something, for the network and then for its running
        average, if there is one, with that one's values. `Edit` says what it can see and measure.
        Values must be finite; what is frozen keeps its own, whatever is given for it. Passes on the
        probe batch are charged to the run; `Edit.counted` and `Edit.charge` charge the rest.
        """
        return {}
