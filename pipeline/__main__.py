"""`python -m pipeline`. Any Python can read this file: one that is too old, or another than the project's, must be able to say so."""

from __future__ import print_function  # noqa: UP010 - as below

import os
import sys


def run() -> None:
    """Run the command line, as the command `pipeline` does, or say on one line why it cannot be."""
    if sys.version_info < (3, 11):  # noqa: UP036 - a Python that is too old does read this
        this_python = "%s is Python %d.%d" % ((sys.executable,) + tuple(sys.version_info[:2]))  # noqa: RUF005, UP031
        remedy = "; use the project's own: `. .venv/bin/activate`, or make repro"
        print("error: Python 3.11 or later is needed, and " + this_python + remedy, file=sys.stderr)
        sys.exit(2)
    try:
        from pipeline.cli import main
    except Exception as error:
        print("error: " + _said_of(error), file=sys.stderr)
        sys.exit(2)
    main()


def _said_of(error):  # type: (Exception) -> str
    """Why the command line cannot be imported, on one line."""
    try:
        from pipeline.system.libraries import failed_import

        return str(failed_import(error) or error)
    except Exception as without:  # what explains it needs the module, too, that a file of the user's stands in the way of
        file, trace = getattr(without, "path", None), without.__traceback__
        while trace is not None:
            file, trace = file if isinstance(without, ImportError) else trace.tb_frame.f_code.co_filename, trace.tb_next
        said = " ".join(("%s: %s" % (type(without).__name__, without)).split())[:200]  # noqa: UP031
        remedy = "; rename it, or take its folder out of PYTHONPATH"
        return "%s stands in the way of the module of that name (%s)%s" % (os.path.relpath(file or "a file"), said, remedy)  # noqa: UP031


if __name__ == "__main__":
    if not __package__:  # started as a file, from an editor
        sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    elif not getattr(sys.flags, "safe_path", False):
        sys.path.append(sys.path.pop(0))  # the folder in which we are started: a csv.py there is not Python's
    run()
