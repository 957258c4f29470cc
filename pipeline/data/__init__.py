"""Where images come from: mirrors and download, the archive read safely, the synthetic set, the stages' own file."""
