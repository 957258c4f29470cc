"""Headless Chromium for the tests that open a page, with no network and a note of all that a page asks for."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@contextlib.contextmanager
def chromium(*more: str) -> Iterator[Any]:
    """A driver of a fresh browser, started with `more` arguments; the test is skipped where there is no Chromium with its driver."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (make setup)")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_binary = shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        pytest.skip("no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*ARGUMENTS, *more, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        driver = selenium.Chrome(options, selenium.ChromeService(driver_binary))
        try:
            driver.execute_cdp_cmd("Network.enable", {})
            offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
            yield driver
        finally:
            driver.quit()


def visit(driver: Any, page: Path, *, width: int, dark: bool = False) -> None:
    """Open a file as a reader with that width and scheme sees it; below 600 pixels it is a phone."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    driver.get_log("performance"), driver.get_log("browser")
    driver.get(page.resolve().as_uri())


def wait_for(driver: Any, script: str) -> None:
    """Wait until a script's value is true, 30 s at most."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 30).until(lambda d: d.execute_script(f"return {script}"))


def requests(driver: Any) -> list[str]:
    """The URLs that were asked for since the last visit, but for data URIs."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def complaints(driver: Any) -> list[str]:
    """What the console says since the last visit: warnings and errors."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
