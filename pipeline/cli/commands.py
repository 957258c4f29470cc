"""One command a stage, and the commands around them: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from pipeline import __version__
from pipeline.system.errors import ANSWER_IS_NO, UserError, printable

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Train and evaluate a network with the same bits on every device. Settings: params.yaml."""
    if version:
        print(f"pipeline {__version__}")
        raise typer.Exit


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
    """Train the network on the data set, on the device of params.yaml: the second stage."""
    from pipeline import inputs

    given = inputs.read("train")
    from pipeline.training import stage

    stage.train(given, checkpoint_seconds)


@app.command()
def evaluate(
    run: Annotated[Optional[Path], typer.Option(help="Evaluate this kept run instead of outputs/, and change no file.")] = None,
    device: Annotated[Optional[str], typer.Option(help="Compute here instead of on the device of params.yaml.")] = None,
) -> None:
    """Evaluate the trained weights on the test images: the third stage; keeps the finished run under runs/.

    With --run exit code 3 if the run records something else.
    """
    from pipeline import inputs
    from pipeline.params import PARAMS

    if run is None and device is not None:
        raise UserError(f"--device {device} without --run: the stage's device is set in params.yaml; name a kept run with --run")
    given = None if run is not None and not PARAMS.exists() else inputs.read("evaluate")  # who received a run may have no settings
    from pipeline import device as devices
    from pipeline import evaluation

    if run is None:
        assert given is not None
        evaluation.stage(given)
        return
    settings = given.params.evaluate if given else evaluation.BATCHES
    if not evaluation.evaluate_kept(run, device or (given.params.device if given else devices.CPU), settings.batch_size):
        raise typer.Exit(ANSWER_IS_NO)


@app.command()
def fingerprint(
    runs: Annotated[Optional[list[Path]], typer.Argument(help="Folders with a model; outputs/ by default.", metavar="[RUN]...")] = None,
) -> None:
    """Print the SHA-256 of each run's weights: one `HEX  RUN` a line."""
    from pipeline.runs import outputs
    from pipeline.system import tensors

    for folder in runs or [outputs.OUTPUTS]:
        print(f"{tensors.fingerprint(outputs.read_weights(folder))}  {printable(str(folder))}")


@app.command()
def compare(
    folders: Annotated[Optional[list[Path]], typer.Argument(help="Kept runs; all of runs/ by default.", metavar="[RUN]...")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print markdown, for a pull request.")] = False,
    html: Annotated[Optional[Path], typer.Option(help="Write a page with plots that opens offline.", metavar="FILE")] = None,
) -> None:
    """Compare kept runs with the first one; exit code 0: identical or equivalent, 3: different or undecided, 2: bad input."""
    from pipeline import params
    from pipeline.comparison import verdict
    from pipeline.comparison.report import AGREEING
    from pipeline.runs import keeping, kept

    if json and markdown:
        raise UserError("--json and --markdown together: choose one")
    settings = params.load().compare
    if not folders and (folder := keeping.keep_unkept()):
        print(f"kept as {folder}", file=sys.stderr)
    runs = verdict.load(folders or kept.by_time(kept.listed()))
    report = verdict.report(runs, settings)
    if html is not None:
        from pipeline.comparison import page

        page.write(html, report, runs)
        print(printable(f"wrote {html}"), file=sys.stderr)
    if json:
        from pipeline.comparison import as_json

        print(as_json.render(report))
    elif markdown:
        from pipeline.comparison import markdown as as_markdown

        print(as_markdown.render(report), end="")
    else:
        from pipeline.comparison import terminal

        terminal.show(report)
    raise typer.Exit(0 if report.verdict in AGREEING else ANSWER_IS_NO)


@app.command()
def demo(folder: Annotated[Path, typer.Option(help="Where to run; made if need be.")] = Path("demo")) -> None:
    """Run everything on the synthetic set in a folder of its own, and prove the claim on this machine."""
    from pipeline.machine import demo

    if not demo.demo(folder):
        raise typer.Exit(ANSWER_IS_NO)


@app.command()
def check(
    model: Annotated[
        Optional[str], typer.Argument(help="A network, as model.name; that of params.yaml by default.", metavar="[MODEL]")
    ] = None,
) -> None:
    """Say what exact numerics make of a network, and prove it on this machine; exit code 3 if the bits differ."""
    from pipeline import params
    from pipeline.machine import check

    if not check.check(check.subject_of(params.load(), model)):
        raise typer.Exit(ANSWER_IS_NO)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Only look at the device of params.yaml, and only speak if it cannot be used.")
    ] = False,
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Find the first operation whose exact result on the device of params.yaml is not the expected one."),
    ] = False,
) -> None:
    """Say what this environment can do; exit code 0 if the device of params.yaml can be used, 3 if not."""
    if trace:
        from pipeline import params
        from pipeline.machine import trace as traces

        raise typer.Exit(0 if traces.show(params.load().device) else ANSWER_IS_NO)
    import json

    from pipeline.machine import doctor

    findings = doctor.examine(doctor.DEVICE) if quiet else doctor.examine()
    usable = all(finding.ok for finding in findings if finding.about == doctor.DEVICE)
    if quiet:
        if not usable:
            print(f"error: {findings[0].text}", file=sys.stderr)
    elif as_json:
        print(json.dumps({"usable": usable, "findings": {f.about: {"ok": f.ok, "text": f.text} for f in findings}}, indent=2))
    else:
        for finding in findings:
            print(f"{'ok' if finding.ok else '!!'}  {finding.about:<12} {finding.text}")
    raise typer.Exit(0 if usable else ANSWER_IS_NO)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a run; its model is all that is needed.", metavar="RUN")],
    images: Annotated[list[str], typer.Argument(help="Image files; folders of them; - for standard input.", metavar="IMAGE...")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with the names' own bytes.")] = False,
    device: Annotated[str, typer.Option(help="Compute here, as in params.yaml; on the CPU by default.")] = "",
) -> None:
    """Say what images show; exit code 0: all were answered, 3: some were, 2: none, or bad input."""
    if json and csv:
        raise UserError("--json and --csv together: choose one")
    from pipeline import device as devices
    from pipeline.weights import predict

    write = predict.write_json if json else predict.write_csv if csv else predict.write_table
    answered, refused = predict.predict(run, images, device or devices.CPU, write)
    if refused:
        raise typer.Exit(ANSWER_IS_NO if answered else 2)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The folder of a run; its model is all that is needed.", metavar="RUN")],
    to: Annotated[Path, typer.Option(help="The file to write: FILE.onnx, or FILE.html, a page that classifies.", metavar="FILE")],
) -> None:
    """Write a run's network as one file that needs no PyTorch."""
    from pipeline.weights.export import export

    for line in export(run, to):
        print(printable(line))


@app.command("import")
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, .pt or .safetensors file that was trained elsewhere.", metavar="CHECKPOINT")],
    model: Annotated[str, typer.Option(help="Its network, as model.name in params.yaml.")],
    argument: Annotated[Optional[list[str]], typer.Option(help="Of the network's constructor.", metavar="NAME=VALUE")] = None,
    classes: Annotated[Optional[Path], typer.Option(help="A text file with the classes' names, in order, a line each.")] = None,
    size: Annotated[Optional[int], typer.Option(help="Pixels a side of its images; data/'s, else 224 for torchvision's, 32.")] = None,
    mean: Annotated[Optional[str], typer.Option(help="What its images were normalized by, from 0 to 1, such as 0.485,0.456,0.406.")] = None,
    std: Annotated[Optional[str], typer.Option(help="The deviations that belong to --mean.")] = None,
    entry: Annotated[Optional[str], typer.Option(help="The name of the weights in the file, where it holds several.")] = None,
    numerics: Annotated[str, typer.Option(help="exact | native, for all that is computed with it.")] = "exact",
) -> None:
    """Make a run of a checkpoint that was trained elsewhere, for predict, export, evaluate and compare."""
    from pipeline.weights import importing

    for line in importing.import_checkpoint(
        checkpoint, importing.model_of(model, argument or [], mean, std), classes, size, entry, numerics
    ):
        print(printable(line))


@app.command()
def port(
    scripts: Annotated[
        list[Path], typer.Argument(help="Scripts with the modules that they import; folders.", metavar="SCRIPT_OR_FOLDER...")
    ],
    write: Annotated[bool, typer.Option("--write", help="Show the diff, then rewrite what computes the same.")] = False,
    numbers: Annotated[bool, typer.Option("--numbers", help="Rewrite what gives other numbers too.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print only what would be rewritten, as a diff.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")] = False,
) -> None:
    """Find what binds scripts to a GPU, and rewrite it; exit code 0: nothing is bound any more, 3: something is, 2: bad input."""
    from pipeline.port import port

    if as_json and diff:
        raise UserError("--json and --diff together: choose one")
    ported = port.port_all(scripts, numbers)
    if as_json:
        print(port.as_json(ported))
    elif not diff:
        print(*port.lines(ported), sep="\n")
    if (diff or write) and not as_json:
        print("".join(line for each in ported for line in each.diff()), end="")
    if write:
        sys.stdout.flush()
        port.write(ported)
    if any(each.left if write else each.bound for each in ported):
        raise typer.Exit(ANSWER_IS_NO)


@app.command()
def reproduce(
    run: Annotated[Path, typer.Argument(help="The folder of a kept run.", metavar="RUN")],
    device: Annotated[str, typer.Option(help="Where to compute, as in params.yaml; the CPU by default.")] = "",
    workers: Annotated[Optional[int], typer.Option(help="Train with so many processes on this machine.", min=1, max=1024)] = None,
    epochs: Annotated[Optional[int], typer.Option(help="Check only the logged losses of the first so many epochs.")] = None,
    data: Annotated[
        Optional[Path], typer.Option(help="The run's data set; by default the one in data/, or made here.", metavar="FILE")
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Save the unfinished training every so many seconds.", min=0)] = 15,
) -> None:
    """Train and evaluate a kept run again and compare; exit code 0: identical or equivalent, 3: different or undecided, 2: bad input."""
    from pipeline import device as devices
    from pipeline.weights import reproduce

    if not reproduce.reproduce(run, device or devices.CPU, epochs, data, checkpoint_seconds, workers):
        raise typer.Exit(ANSWER_IS_NO)
