"""The public names of all floors in one place; `python -m growthrings` is the command line.

Nothing here imports torch before a name needs it.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # The working directory stands first, and may hold a run.py of its own.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parent:
        del sys.path[0]
    from run import main

    sys.exit(main())

import analysis
import nets
import policies
import training
from training import __version__ as __version__

if TYPE_CHECKING:
    from analysis import *
    from nets import *
    from policies import *
    from training import *

_FLOORS = (nets, analysis, policies, training)

__all__ = ["__version__"]
__all__ += nets.__all__
__all__ += analysis.__all__
__all__ += policies.__all__
__all__ += training.__all__


def __getattr__(name: str):
    for floor in _FLOORS:
        if name in floor.__all__:
            return getattr(floor, name)
    raise AttributeError(f"module 'growthrings' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
