"""The `export` command: a run's network as one file that needs no PyTorch: an ONNX model, or a page that classifies in the browser."""

from __future__ import annotations

from pathlib import Path

from pipeline.runs import outputs
from pipeline.system.errors import UserError


def export(folder: Path, to: Path) -> list[str]:
    """Write the network of the run in `folder` to `to`, whole or not at all; return what is to be said of it, a line each.

    Raises:
        UserError: the run or `to` cannot be used, packages are missing, or the file would not compute what the run does.
    """
    if to.suffix.lower() not in (".onnx", ".html"):
        raise UserError(f"--to {to}: the name must end in .onnx or .html")
    model = outputs.read_model(folder)
    if to.suffix.lower() == ".onnx":
        from pipeline.weights.export import onnx

        return onnx.write(to, model)
    from pipeline.weights.export import page

    return page.write(to, model)
