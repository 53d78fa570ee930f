"""What a training run can be told: what comparisons can, and its policy, start, seed and folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nets import Architecture, preset
from policies import Never, Policy
from training.settings.checks import check_train, folder_of
from training.settings.common import Common
from training.settings.start import Start


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    """One training run.

    Args:
        policy: when and where to grow: a class in the box, or an import path such as mine.Mine.
        start: the net to start from; by default a quarter of the width and one block a stage, and
            the limit itself for Never.
        seed: of initial values, data order and everything random.
        out: the run folder; by default runs/DATA-NET-POLICY-seedN.
        resume: go on with the run in the folder, if there is one.
    """

    policy: Policy = field(default_factory=Never)
    start: Start | None = None
    seed: int = 0
    out: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_train(self)

    @property
    def folder(self) -> Path:
        """The run folder."""
        data = Path(self.data.removeprefix("folder:")).name
        policy = type(self.policy).__name__.lower()
        name = f"runs/{data}-{self.net}-{policy}-seed{self.seed}"
        return folder_of(name if self.out is None else self.out)

    def limit(self, classes: int, image: tuple[int, ...]) -> Architecture:
        """Give the limit network for data of that shape."""
        return preset(self.net, classes=classes, image=image, order=self.order)

    def first(self, limit: Architecture) -> Architecture:
        """Give the network to start from; a ValueError if it costs more than the limit."""
        start = Start(1, None) if isinstance(self.policy, Never) else Start()
        return (self.start or start).within(limit)
