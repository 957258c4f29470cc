"""An HTML file that opens offline: its scripts, style and data inside, and a policy that forbids it any request.

What a template is given is text, which Jinja escapes; no script can come of it, for the policy names the page's own scripts and
style by their SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def render(template: Path, scripts: Sequence[str], style: str, content: Any, **names: Any) -> bytes:
    """The page that `template` makes of `scripts`, `style`, `content` (anything that JSON can hold) and other names, in UTF-8."""
    import jinja2

    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts))}; style-src {_source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template.read_text(encoding="utf-8"))
    text = page.render(policy=policy, scripts=scripts, style=style, content=_in_script(content), **names)
    return text.encode(errors="replace")  # not every name of a class or a folder can be written as UTF-8


def _source(text: str) -> str:
    """A script or style as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _in_script(content: Any) -> str:
    """JSON for a script element, which only a "<" could end early."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")
