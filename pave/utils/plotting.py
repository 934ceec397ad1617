"""Import matplotlib, the optional extra `plot`, or say how to install it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pave.types import UserError
from pave.utils.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib(file: Path) -> None:
    """Select the backend that needs no screen, before `file` is drawn. Raises UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(f"{file}: a plot needs matplotlib; pip install -e '.[plot]'") from error
    matplotlib.use("agg")


def save_figure(figure: Figure, file: Path, dpi: int) -> None:
    """Write a figure as .png and close it."""
    from matplotlib import pyplot

    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
    pyplot.close(figure)
