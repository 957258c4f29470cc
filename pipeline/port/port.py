"""Port scripts: read them and the modules that they import, find what is bound to a device, rewrite it, and say what was found."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libcst as cst

from pipeline.port import cannot, checkpoints, kinds, moved, placement, precision, runtime  # noqa: F401 - each registers its rules
from pipeline.port.cannot import PACKAGES
from pipeline.port.device import exported, settle
from pipeline.port.rules import RULES, Answer, Edit, Finding, Found, Level, Rule
from pipeline.port.script import NotPython, Script, parsed, without_async
from pipeline.port.sources import Source, collect
from pipeline.system import files, paths
from pipeline.system.errors import UserError

WRITTEN = (Answer.SAME, Answer.MOVED)
"""The answers whose rewrites compute what the script meant; other numbers are only written where they are asked for."""
ASYNC = Rule("async-keyword", Answer.MOVED, "async is a word of Python since 3.7: non_blocking=", (), lambda *_: None, ())
OLD = Rule("not-python", Answer.CANNOT, "no Python 3 (2to3 turns Python 2 into it): ", (), lambda *_: None, ())
UNREAD = Rule("not-read", Answer.CANNOT, "", (), lambda *_: None, ())
_PASSES = 20
_MAY_MATTER = re.compile(r"torch|cuda|gpu|nccl|\.next\(\)|" + "|".join(PACKAGES), re.IGNORECASE)
"""A script without any of these words is not looked at more closely."""


@dataclass
class Ported:
    """What became of a script."""

    source: Source
    text: str
    findings: list[Finding] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)
    exports: str = ""

    @property
    def changed(self) -> bool:
        """Whether a rewrite changes the script."""
        return self.text != self.source.text

    def diff(self) -> Iterator[str]:
        """The lines of a unified diff."""
        before, after = (text.splitlines(keepends=True) for text in (self.source.text, self.text))
        for line in difflib.unified_diff(before, after, str(self.source.path), f"{self.source.path} (ported)"):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"

    @property
    def bound(self) -> list[Finding]:
        """The lines that are bound to a device as the script is."""
        return [finding for finding in self.findings if finding.bound]


def examine(script: Script) -> Iterator[Finding]:
    """What all rules find in a script, in the order of its lines."""
    findings = []
    rules = {kind: [each for each in RULES if issubclass(kind, each.kinds)] for kind in {type(node) for node in script.nodes}}
    for node in script.nodes:
        for each in rules[type(node)]:
            if (found := each.find(node, script)) is not None:
                line, column = script.position(node)
                findings.append(Finding(each, found, line, column, script.lines[line - 1].strip(), node))
    yield from sorted(findings, key=lambda finding: (finding.line, finding.column))


def port(source: Source, answers: Collection[Answer], shared: dict[str, str]) -> Ported:
    """Find what is bound to a device in a script, and rewrite what gives one of `answers` until nothing more changes.

    Raises:
        NotPython: it cannot be parsed.
    """
    text, old = source.text, list[int]()
    if not _MAY_MATTER.search(text):
        parsed(text)
        return Ported(source, text)
    try:
        script = Script(text)
    except NotPython:
        text, old = without_async(text)
        script = Script(text)
    ported = Ported(source, text)
    names = [Finding(ASYNC, Found(), row, 1, source.text.split("\n")[row - 1].strip(), script.module) for row in old]
    findings = list(examine(script))
    ported.findings = sorted([*names, *findings], key=lambda finding: finding.line)
    touched = bool(old)
    for _ in range(_PASSES):
        chosen = _without_overlaps([f for f in findings if f.found.edits and f.rule.answer in answers])
        touched = touched or any(f.found.level in (Level.BOUND, Level.NOTE) for f in chosen)
        edits = settle(script, chosen, shared) if touched else []
        text = applied(script.bytes, edits).decode()
        if text == ported.text:
            break
        ported.text = text
        script = Script(ported.text)
        findings = list(examine(script))
    else:
        raise AssertionError(f"{source.path}: rewriting does not come to an end")
    ported.left = [finding for finding in findings if finding.bound]
    ported.exports = exported(script)
    return ported


def _without_overlaps(findings: list[Finding]) -> list[Finding]:
    """Those that can be rewritten at once; the others wait for the next pass."""
    taken: list[Edit] = []
    kept = []
    for finding in findings:
        if not any(_overlap(a, b) for a in finding.found.edits for b in taken):
            taken += finding.found.edits
            kept.append(finding)
    return kept


def _overlap(a: Edit, b: Edit) -> bool:
    if a == b:  # two questions in one statement, which is guarded once
        return True
    if a.start == a.end or b.start == b.end:  # one inserts: only inside the other is a conflict
        return a.start < b.start < a.end or b.start < a.start < b.end
    return a.start < b.end and b.start < a.end


def applied(content: bytes, edits: Sequence[Edit]) -> bytes:
    """`content` after edits that do not overlap."""
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end), reverse=True):
        content = content[: edit.start] + edit.text.encode() + content[edit.end :]
    return content


def port_all(paths: Sequence[Path], numbers: bool = False) -> list[Ported]:
    """Port scripts, folders of them, and what they import, each after the modules that it imports.

    Raises:
        UserError: one cannot be read, or is no Python and was named itself.
    """
    answers = {*WRITTEN, *([Answer.NUMBERS] if numbers else [])}
    done: dict[Path, Ported] = {}
    for source in collect(paths):
        if source.fault and source.named:
            raise UserError(f"{source.path}: {source.fault}; name a script, or a folder of scripts")
        shared = {module: done[path].exports for module, path in source.imports.items() if path in done and done[path].exports}
        try:
            done[source.path] = _not_read(source, UNREAD, source.fault) if source.fault else port(source, answers, shared)
        except NotPython as error:
            if source.named:
                raise UserError(f"{source.path}:{error.line}: no Python 3: {error}; name a script (2to3 turns Python 2 into 3)") from None
            done[source.path] = _not_read(source, OLD, str(error), error.line)
        except RecursionError:
            raise UserError(f"{source.path}: its expressions are nested too deeply to be read; name the other files") from None
    return [done[path] for path in sorted(done)]


def _not_read(source: Source, rule: Rule, reason: str, line: int = 1) -> Ported:
    """A script of a folder, or a module of a script, that is said and left."""
    finding = Finding(rule, Found(remark=reason), line, 1, "", cst.Pass())
    return Ported(source, source.text, [finding], [finding])


def write(ported: Sequence[Ported]) -> None:
    """Write the changed scripts in their places, each whole or not at all, with the permissions that they had."""
    changed = [(each, paths.followed(each.source.path)[0]) for each in ported if each.changed]
    for _, target in changed:
        with files.explained(target):
            if not os.access(target.parent, os.W_OK) or not os.access(target, os.W_OK):
                raise PermissionError(13, os.strerror(13), str(target))
    for each, target in changed:
        with files.replacing(target) as file:
            os.fchmod(file.fileno(), target.stat().st_mode & 0o7777)
            file.write(each.source.encoded(each.text))


def lines(ported: Sequence[Ported]) -> Iterator[str]:
    """The report: a line for each finding that matters, and a summary."""
    for each in ported:
        told: dict[str, str] = {}
        for finding in each.findings:
            noted = finding.found.level is Level.NOTE
            if finding.bound or (noted and finding.rule.answer is Answer.SAME) or (each.bound and (noted or not finding.found.edits)):
                note = "" if finding.bound else " (note)"
                told[f"{each.source.path}:{finding.line}: {finding.rule.answer.value}{note}: {finding.message}"] = finding.code
        for line, code in told.items():
            yield line
            if code:
                yield f"    {code}"
    bound = {(each.source.path, finding.line, finding.rule.answer) for each in ported for finding in each.bound}
    scripts = f"{len(ported)} script{'s' if len(ported) > 1 else ''}"
    if not bound:
        yield f"nothing is bound to a device in {scripts}"
        return
    counts = {answer.value: sum(found is answer for *_, found in bound) for answer in Answer}
    number = len({line[:2] for line in bound})
    each_answer = ", ".join(f"{count} {answer}" for answer, count in counts.items() if count)
    yield f"{number} line{'s are' if number > 1 else ' is'} bound to a device in {scripts}: {each_answer}"


def as_json(ported: Sequence[Ported]) -> str:
    """All findings, notes too, for a program."""
    documents: list[dict[str, Any]] = [
        {
            "path": str(each.source.path),
            "changed": each.changed,
            "findings": [
                {
                    "line": finding.line,
                    "column": finding.column,
                    "class": finding.rule.answer.value,
                    "level": finding.found.level.value,
                    "rule": finding.rule.name,
                    "message": finding.message,
                    "code": finding.code,
                }
                for finding in each.findings
            ],
            "left": len(each.left),
        }
        for each in ported
    ]
    return json.dumps({"bound": sum(len(each.bound) for each in ported), "scripts": documents}, indent=2)
