"""The public names of all floors in one place; `python -m growthrings` is the command line.

Nothing here imports torch before a name needs it.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

_FLOORS = ("nets", "analysis", "policies", "training")

if __name__ == "__main__":
    # The working directory stands first, and may hold a run.py of its own.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parent:
        del sys.path[0]
    from run import main

    sys.exit(main())

for _name in _FLOORS:
    _spec = find_spec(_name)
    _file = Path((_spec and _spec.origin) or ".").resolve()
    if _file.parents[1] != Path(__file__).resolve().parent:
        raise ImportError(
            f"{_file} hides the {_name} of growthrings: rename it, or start elsewhere"
        )

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

__all__ = ["__version__"]
__all__ += nets.__all__
__all__ += analysis.__all__
__all__ += policies.__all__
__all__ += training.__all__


def __getattr__(name: str):
    for floor in (nets, analysis, policies, training):
        if name in floor.__all__:
            return getattr(floor, name)
    raise AttributeError(f"module 'growthrings' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
