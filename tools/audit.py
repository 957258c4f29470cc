"""Known vulnerabilities in the locked requirements, as far as the advisories can be reached: `make check` runs this.

Ends with 1 if a package has one. Where the advisories cannot be reached it says so in one line and ends with 0: a check
without a network is no failure. pip-audit alone calls packages of which it found nothing "no known vulnerabilities".
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
LIMIT_SECONDS = 60


def main() -> None:
    """Ask pip-audit, and say what came of it."""
    lines = [line for name in ("dev.txt", "torch.txt") for line in (REQUIREMENTS / name).read_text().splitlines()]
    pins = "\n".join(line.removesuffix("\\") for line in lines if not line.startswith((" ", "#")))  # torch has no hashes: ask without
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json"]
    try:
        done = subprocess.run([*command, "-r", "/dev/stdin"], input=pins, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        sys.exit(skipped(f"no answer in {LIMIT_SECONDS} seconds"))
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.exit(skipped((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]))
    sys.exit(judge(packages))


def judge(packages: list[dict[str, Any]]) -> int:
    """Say which of the packages have known vulnerabilities and how many could not be looked up; the exit code."""
    unknown = [package for package in packages if "skip_reason" in package]
    known = [(package, advisory) for package in packages for advisory in package.get("vulns", [])]
    for package, advisory in known:
        fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
        print(f"audit: {package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    if len(unknown) == len(packages):
        return skipped(unknown[0]["skip_reason"] if unknown else "there are no requirements")
    print(f"audit: {len(known)} known vulnerabilities in {len(packages) - len(unknown)} packages; {len(unknown)} could not be looked up")
    return 1 if known else 0


def skipped(reason: str) -> int:
    """Say that nothing was checked, and why."""
    print(f"audit: skipped, nothing was checked: {reason}")
    return 0


if __name__ == "__main__":
    main()
