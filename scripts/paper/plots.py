"""matplotlib for the scripts of this folder, and how a figure becomes a small PNG."""

from __future__ import annotations

import io
import sys
from pathlib import Path

try:
    import matplotlib
except ModuleNotFoundError:
    print("error: the figures need matplotlib, an extra of the package: pip install '.[plots]'", file=sys.stderr)
    sys.exit(2)

from PIL import Image

matplotlib.use("Agg")

import matplotlib.pyplot as plt

__all__ = ["plt", "write_png"]

COLOURS = 256  # of a PNG: lines and labels need no more, and the file is half as large


def write_png(figure: plt.Figure, file: Path) -> None:
    """Write a figure, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, bbox_inches="tight")
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(COLOURS).save(file, optimize=True)
