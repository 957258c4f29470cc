"""Headless Chromium for the tests that open a page, with no network and a note of all that a page asks for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.system.errors import UserError
from tests import chromium as headless
from tests.chromium import visit, wait_for

__all__ = ["chromium", "complaints", "requests", "visit", "wait_for"]


@contextlib.contextmanager
def chromium(*more: str) -> Iterator[Any]:
    """A driver of a fresh browser, started with `more` arguments; the test is skipped where there is no Chromium with its driver."""
    with contextlib.ExitStack() as stack:
        try:
            driver = stack.enter_context(headless.started(*more))
        except UserError as missing:
            pytest.skip(str(missing))
        yield driver


def requests(driver: Any) -> list[str]:
    """The URLs that were asked for since the last visit, but for data URIs."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def complaints(driver: Any) -> list[str]:
    """What the console says since the last visit: warnings and errors."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
