"""What only a maintainer runs, from the project's folder: `python -m tools.NAME`."""
