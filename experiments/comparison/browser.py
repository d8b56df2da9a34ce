"""A headless Chromium that opens pages from this machine's disk, for screenshots and for tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diffode.errors import InputError
from diffode.files import atomic

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # containers do not allow the sandbox, and a page that loads nothing does not need it
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
WIDTH, HEIGHT = 1280, 1720


@contextmanager
def chromium(width: int = WIDTH, height: int = HEIGHT) -> Iterator[Chrome]:
    """A window of this size, in CSS pixels; InputError where selenium, Chromium or chromedriver is missing."""
    try:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    except ImportError as error:
        raise InputError("selenium, which controls the browser, is not installed: pip install 'diffode[test]'") from error
    binary, controller = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or controller is None:
        raise InputError("there is no chromium, or no chromedriver, here: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for option in (*ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        driver = Chrome(options, ChromeService(controller))
        try:
            resize(driver, width, height)
            yield driver
        finally:
            driver.quit()


def resize(driver: Chrome, width: int, height: int, *, scale: float = 1) -> None:
    """Set the size of the page's viewport, which may be smaller than any window can be; scale: screen pixels per CSS pixel."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def save_screenshot(page: Path, out: Path, *, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write a PNG of the top of a page."""
    with chromium(width, height) as driver:
        driver.get(page.resolve().as_uri())
        png = driver.get_screenshot_as_png()
    with atomic(out) as part:
        part.write_bytes(png)
