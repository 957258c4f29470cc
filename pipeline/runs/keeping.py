"""How a finished run is kept: whole, in one rename, under a name of its own.

Nothing that is kept already is replaced, and what stands under a run's name is read, never trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline import sources
from pipeline.inputs import CACHE
from pipeline.runs import environments, outputs
from pipeline.runs.environments import Environment, Facts
from pipeline.runs.kept import ENVIRONMENT, FORMAT, IDENTITY, RUNS, Identity, Run, checked, listed, load, read_document, read_parts, sums_of
from pipeline.runs.outputs import MODEL, NETWORK, OUTPUTS, PARTS, Model
from pipeline.runs.provenance import Provenance
from pipeline.system import files, revision
from pipeline.system.errors import UserError, printable


def keep(folder: Path = OUTPUTS, runs: Path | None = None, evaluated_in: Facts | None = None, trained_in: Facts | None = None) -> Path:
    """Keep the finished run in `folder`, whole, under a name of its own in `runs`; return its folder.

    Everything that is claimed of the training comes from the model itself. A run that is kept already stays as it is; one with
    another result is another run. Without `evaluated_in` a run with the same files counts as kept already. Without `trained_in` the
    environment of the training is the one that waits for it.

    Raises:
        UserError: the parts do not belong together.
    """
    runs = runs or runs_folder()
    parts = read_parts(folder)
    run = made(folder, parts, evaluated_in, trained_in)
    if evaluated_in is None and (kept := _with_files(runs, run.sums)):
        return kept
    return put(run, parts, runs)


def made(folder: Path, parts: Mapping[str, bytes], evaluated_in: Facts | None, trained_in: Facts | None = None) -> Run:
    """The run whose parts, which `folder` names in errors, were computed here. Arguments and errors are those of `keep`."""
    model = outputs.model(folder / MODEL, parts[MODEL], parts.get(NETWORK))
    environment = Environment(train=trained_in or environments.of_training(model), evaluate=evaluated_in)
    return checked(folder, parts, model, _identity(model, environment), environment, sums_of(parts))


def put(run: Run, parts: Mapping[str, bytes], runs: Path) -> Path:
    """Put a run with these parts under `runs`; return its folder. What stands there under its name is read, never trusted.

    Raises:
        UserError: another run stands under its name.
    """
    digest = _digest(run)
    for digits in (8, 16, 64):  # 8 can be made to collide
        target = runs / _name(run, digest[:digits])
        with files.in_turn(runs.parent / CACHE / "keep.lock"):
            if not os.path.lexists(target):
                with files.publishing(target) as part:
                    outputs.write(part, parts)
                    files.write_json(part / ENVIRONMENT, msgspec.to_builtins(run.environment))
                    files.write_json(part / IDENTITY, {"format": FORMAT, **msgspec.to_builtins(run.identity), "files": run.sums})
                return target
        with contextlib.suppress(UserError):
            if _digest(load(target)) == digest:
                return target
    raise UserError(f"{target}: is there, but is not the run of that name; move it away and run again")


def keep_unkept(folder: Path = OUTPUTS) -> Path | None:
    """Keep the run in `folder` if it is finished and not kept yet; return its new folder, or None.

    Where DVC brought the files from a cache or a remote, no stage ran here that would have kept them. What cannot be kept is said
    on standard error: the runs that are kept can be compared all the same.
    """
    if not all((folder / name).exists() for name in PARTS):
        return None
    before = listed(runs_folder())
    try:
        if outputs.read_metrics(folder).fingerprint != outputs.read_model(folder).fingerprint:
            return None  # the evaluation is still to come
        target = keep(folder)
    except UserError as reason:
        print(f"{folder}/ is not kept: {printable(str(reason))}", file=sys.stderr)
        return None
    return None if target in before else target


def runs_folder() -> Path:
    """Where finished runs go: `runs/` here, or that of the project that started a DVC experiment elsewhere (`--temp`, `--queue`)."""
    started_by = os.environ.get("DVC_ROOT")
    if not started_by:
        return RUNS
    here, experiments = Path.cwd(), Path(started_by).resolve() / ".dvc" / "tmp" / "exps"
    copy = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
    if experiments not in copy.parents:
        return RUNS
    return Path(started_by) / here.relative_to(copy) / RUNS


def _identity(model: Model, environment: Environment) -> Identity:
    here = sources.digest("train") == model.provenance.code
    return Identity(
        **{name: getattr(model.provenance, name) for name in Provenance.__struct_fields__},
        device=environment.train.device if environment.train else None,
        fingerprint=model.fingerprint,
        evaluation_code=sources.digest("evaluate") if environment.evaluate else None,
        revision=revision.describe(sources.PACKAGE) if here else None,
    )


def _digest(run: Run) -> str:
    """What tells a run from all others: equal runs on one machine share it."""
    matters: list[Any] = [msgspec.structs.replace(run.identity, revision=None), run.sums]
    matters += [environments.lasting(facts) for facts in (run.environment.train, run.environment.evaluate)]
    return hashlib.sha256(msgspec.json.encode(matters, order="sorted")).hexdigest()


def _name(run: Run, digits: str) -> str:
    """A folder's name for a run. Its words are held to what a name may be, wherever they come from."""
    identity = run.identity
    words = [identity.data.name, identity.numerics, (identity.device or "").replace(":", ""), f"seed{identity.seed}", digits]
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", "-".join(filter(None, words)))


def _with_files(runs: Path, sums: dict[str, str]) -> Path | None:
    for folder in listed(runs):
        try:
            if read_document(folder).files == sums and sums_of(read_parts(folder)) == sums:
                return folder
        except UserError:
            continue  # whoever reads that run is told
    return None
