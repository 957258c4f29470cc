"""Make .dvc/plots.html, the page of `dvc plots show` and `dvc plots diff`, with the Vega scripts inside.

DVC's own page loads them from a CDN, so it is empty offline. Needs npm and its registry; run it to change a version:

    python -m tools.plots_page
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pipeline import files

PAGE = Path(__file__).parent.parent / ".dvc" / "plots.html"

# The last releases for Vega-Lite 5, whose schema DVC's templates name, with the registry's checksums of the packages.
PACKAGES = {
    "vega@5.33.1": "sha512-1fArfVDUqVbb5z8n+/nVQb+VNBzx8svY6CrsyTK4Ujm4yrd9I1auoKxBAPXLCavY1LcrbHUskQbGUP8gXOzyQw==",
    "vega-lite@5.23.0": "sha512-l4J6+AWE3DIjvovEoHl2LdtCUkfm4zs8Xxx7INwZEAv+XVb6kR6vIN1gt3t2gN2gs/y4DYTs/RPoTeYAuEg6mA==",
    "vega-embed@6.29.0": "sha512-PmlshTLtLFLgWtF/b23T1OwX53AugJ9RZ3qPE2c01VFAbgt3/GSNI/etzA/GzdrkceXFma+FDHNXUppKuM0U6Q==",
}

# {plot_divs} and {refresh_tag} are DVC's; without {scripts} it adds none. Vega compiles its expressions: 'unsafe-eval'.
HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<!-- Made by tools/plots_page.py. Holds NAMES, whose licence follows.

LICENCE-->
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; \
style-src 'unsafe-inline'; img-src 'self' file: data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
{refresh_tag}
<title>DVC plots</title>
<style>
  body { background: white; color: black; font-family: system-ui, sans-serif; overflow-x: auto; }
  table { border-spacing: 15px; }
</style>
"""
TAIL = """</head>
<body>
{plot_divs}
</body>
</html>
"""


def main() -> None:
    """Fetch the packages with npm, check them, write the page."""
    licence, scripts = "", []
    with tempfile.TemporaryDirectory() as folder:
        for package, integrity in PACKAGES.items():
            packed = subprocess.run(["npm", "pack", "--json", package], cwd=folder, check=True, stdout=subprocess.PIPE).stdout
            (package_file,) = json.loads(packed)
            if package_file["integrity"] != integrity:
                sys.exit(f"{package}: its checksum is {package_file['integrity']}, not {integrity}")
            name = package.partition("@")[0]
            with tarfile.open(Path(folder) / package_file["filename"]) as archive:
                script = _text(archive, f"package/build/{name}.min.js")
                scripts.append(re.sub(r"//# sourceMappingURL=.*", "", script))  # the page has no maps beside it
                if name == "vega-embed":
                    licence = _text(archive, "package/LICENSE")  # the same for all three, of the same holder
    for script in scripts:
        if "</script" in script or "{plot_divs}" in script or "{refresh_tag}" in script:
            sys.exit("a script holds what would end it, or a place that DVC fills")
    head = HEAD.replace("NAMES", ", ".join(PACKAGES)).replace("LICENCE", licence)
    files.write_text(PAGE, head + "".join(f"<script>{script.strip()}</script>\n" for script in scripts) + TAIL)
    print(f"wrote {PAGE}")


def _text(archive: tarfile.TarFile, name: str) -> str:
    member = archive.extractfile(name)
    assert member is not None
    return member.read().decode()


if __name__ == "__main__":
    main()
