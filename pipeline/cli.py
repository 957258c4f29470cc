"""One command a stage, and the commands around them: parse, call, print. The one place that turns an error into an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from pipeline.errors import STOP_SIGNALS, Interrupted, UserError, printable

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and evaluate SimpleCNN with the same bits on every device. Settings: params.yaml.",
)


def main() -> NoReturn:
    """Run the command line; a mistake of the user's is one line and exit code 2, a signal 128 + its number."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    bound_spinning()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows only ASCII gets "?" instead of a traceback
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
    except typer.TyperException as error:  # the command line itself is wrong
        print(f"error: {' '.join(error.format_message().split())} (see python -m pipeline --help)", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        _ignore_signals()
        print(f"stopped: {interruption}", file=sys.stderr)
        sys.exit(128 + interruption.signal_number)


def bound_spinning() -> None:
    """Let PyTorch's threads spin for microseconds while they wait for each other, not for milliseconds; before PyTorch is imported.

    On a machine that has other work, or fewer CPUs than threads, the default made training ten times slower (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _stop(number: int, _frame: object) -> NoReturn:
    _ignore_signals()
    raise Interrupted(f"by {signal.Signals(number).name}", number)


def _ignore_signals() -> None:
    """We are on our way out: a second signal must not end it with a traceback."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@app.command()
def download() -> None:
    """Put the data set of params.yaml into data/: the first stage."""
    from pipeline import inputs

    given = inputs.read("download")
    from pipeline.data import download

    download.stage(given)


@app.command()
def train(
    checkpoint_seconds: Annotated[float, typer.Option(help="Save the unfinished training every so many seconds.", min=0)] = 15,
) -> None:
    """Train SimpleCNN on the data set, on the device of params.yaml: the second stage."""
    from pipeline import inputs

    given = inputs.read("train")
    from pipeline.training import stage

    stage.train(given, checkpoint_seconds)


@app.command()
def evaluate(
    run: Annotated[Optional[Path], typer.Option(help="Evaluate this kept run instead of outputs/, and change no file.")] = None,
    device: Annotated[Optional[str], typer.Option(help="Compute here instead of on the device of params.yaml.")] = None,
) -> None:
    """Evaluate the trained weights on the test images: the third stage; keeps the finished run under runs/."""
    from pipeline import inputs

    if run is None and device is not None:
        raise UserError(f"--device {device} without --run: the stage's device is set in params.yaml; name a kept run with --run")
    given = inputs.read("evaluate")
    from pipeline import evaluation

    if run is None:
        evaluation.stage(given)
    else:
        evaluation.evaluate_kept(run, device or given.params.device, given.params.evaluate.batch_size)


@app.command()
def fingerprint(
    runs: Annotated[Optional[list[Path]], typer.Argument(help="Folders with a model; outputs/ by default.", metavar="[RUN]...")] = None,
) -> None:
    """Print the SHA-256 of each run's weights: one `HEX  RUN` a line."""
    from pipeline import tensors
    from pipeline.runs import outputs

    for folder in runs or [outputs.OUTPUTS]:
        print(f"{tensors.fingerprint(outputs.read_weights(folder))}  {folder}")


@app.command()
def compare(
    folders: Annotated[Optional[list[Path]], typer.Argument(help="Kept runs; all of runs/ by default.", metavar="[RUN]...")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown, for a pull request.")] = False,
    html: Annotated[Optional[Path], typer.Option(help="Write a page with plots that opens offline.", metavar="FILE")] = None,
) -> None:
    """Compare kept runs with the first one; exit code 0: identical or equivalent, 1: different, 2: bad input."""
    import atexit
    import gc

    from pipeline import params
    from pipeline.comparison import verdict
    from pipeline.runs import kept

    atexit.register(gc.freeze)  # nothing is left to be found; the search at the end took a tenth of this command's CPU time
    if json and markdown:
        raise UserError("--json and --markdown together: choose one")
    settings = params.load().compare
    if not folders and (folder := kept.keep_unkept()):
        print(f"kept as {folder}", file=sys.stderr)
    runs = verdict.load(folders or kept.listed())
    report = verdict.report(runs, settings)
    if html is not None:
        from pipeline.comparison import page

        page.write(html, report, runs)
        print(f"wrote {html}", file=sys.stderr)
    if json:
        from pipeline.comparison import as_json

        print(as_json.render(report))
    elif markdown:
        from pipeline.comparison import markdown as as_markdown

        print(as_markdown.render(report), end="")
    else:
        from pipeline.comparison import terminal

        terminal.show(report)
    raise typer.Exit(1 if report.verdict == "different" else 0)


@app.command()
def demo(folder: Annotated[Path, typer.Option(help="Where to run; made if need be.")] = Path("demo")) -> None:
    """Run everything on the synthetic set in a folder of its own, and prove the claim on this machine."""
    from pipeline import demo

    if not demo.demo(folder):
        raise typer.Exit(1)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Only look at the device of params.yaml, and only speak if it cannot be used.")
    ] = False,
) -> None:
    """Say what this environment can do; exit code 0 if the device of params.yaml can be used, 1 if not."""
    import json

    from pipeline import doctor

    findings = doctor.examine(doctor.DEVICE) if quiet else doctor.examine()
    usable = all(found.ok for found in findings if found.about == doctor.DEVICE)
    if quiet:
        if not usable:
            print(f"error: {findings[0].text}", file=sys.stderr)
    elif as_json:
        print(json.dumps({"usable": usable, "findings": {f.about: {"ok": f.ok, "text": f.text} for f in findings}}, indent=2))
    else:
        for found in findings:
            print(f"{'ok' if found.ok else '!!'}  {found.about:<12} {found.text}")
    raise typer.Exit(0 if usable else 1)
