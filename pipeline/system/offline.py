"""An HTML file that opens offline: its scripts, style and data inside, and a policy that forbids it any request.

What a template is given is text, which Jinja escapes; no script can come of it, for the policy names the page's own scripts by
their SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def render(package: Path, scripts: Sequence[str], content: Any, *, inline_styles: bool = False, **names: Any) -> bytes:
    """The page of a package, in UTF-8: its page.html in offline.html, its page.css after offline.css.

    Args:
        package: the package's folder.
        scripts: what the page runs.
        content: anything that JSON can hold; the scripts find it in the element "content".
        inline_styles: whether elements may have styles of their own, which the policy cannot name one by one.
        names: what page.html asks for.
    """
    import jinja2

    style = "".join(path.read_text(encoding="utf-8") for path in (_FOLDER / "offline.css", package / "page.css"))
    styles = "'unsafe-inline'" if inline_styles else _source(style)
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts))}; style-src {styles}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    templates = jinja2.FileSystemLoader([package, _FOLDER])
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=templates
    )
    page = environment.get_template("page.html")
    text = page.render(policy=policy, scripts=scripts, style=style, content=_in_script(content), **names)
    return text.encode(errors="replace")  # not every name of a class or a folder can be written as UTF-8


def _source(text: str) -> str:
    """A script or style as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _in_script(content: Any) -> str:
    """JSON for a script element, which only a "<" could end early."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")
