"""`python -m pipeline`. Any Python can read this file: one that is too old, or another than the project's, must be able to say so."""

from __future__ import print_function  # noqa: UP010 - as below

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a Python that is too old does read this
    this_python = "%s is Python %d.%d" % ((sys.executable,) + tuple(sys.version_info[:2]))  # noqa: RUF005, UP031
    print("error: Python 3.11 or later is needed, and " + this_python + "; use the project's own: `. .venv/bin/activate`, or make repro",
          file=sys.stderr)  # fmt: skip
    sys.exit(2)

try:
    from pipeline.cli import main
except ImportError as error:
    from pipeline.libraries import failed_import

    print("error: " + str(failed_import(error)), file=sys.stderr)
    sys.exit(2)

main()
