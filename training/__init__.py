"""Data, the loop, checkpoints and sweeps: everything that trains, on top of the other floors.

Everything that needs torch is imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from training.version import __version__ as __version__

if TYPE_CHECKING:
    from training.asking.branching import branch
    from training.comparing.comparison import compare
    from training.running.loop import train
    from training.settings.compare import Cell, Compare
    from training.settings.start import Start
    from training.settings.train import Train

_LAZY = {"branch": "asking.branching", "compare": "comparing.comparison", "train": "running.loop"}
_LAZY |= {"Cell": "settings.compare", "Compare": "settings.compare"}
_LAZY |= {"Start": "settings.start", "Train": "settings.train"}

__all__ = ["Cell", "Compare", "Start", "Train", "branch", "compare", "train"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"training.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'training' has no attribute {name!r}")
