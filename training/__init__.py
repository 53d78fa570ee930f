"""Data, the loop, checkpoints and sweeps: everything that trains, on top of the other floors.

Everything that needs torch is imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from training.version import __version__ as __version__

if TYPE_CHECKING:
    from training.asking.branch import branch
    from training.comparing.comparison import compare
    from training.running.loop import train
    from training.settings.compare_settings import Cell, Compare
    from training.settings.start_settings import Start
    from training.settings.train_settings import Train

_LAZY = {"branch": "asking.branch", "compare": "comparing.comparison", "train": "running.loop"}
_LAZY |= {"Cell": "settings.compare_settings", "Compare": "settings.compare_settings"}
_LAZY |= {"Start": "settings.start_settings", "Train": "settings.train_settings"}

__all__ = ["Cell", "Compare", "Start", "Train", "branch", "compare", "train"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"training.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'training' has no attribute {name!r}")
