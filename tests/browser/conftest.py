"""A real browser, one session per test file; tests that need it are skipped with the reason where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from headless import Browser
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

NEEDED = ("chromium", "chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {' and no '.join(missing)} on this machine: the report is not looked at in a browser")
    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    driver.execute_cdp_cmd("Network.enable", {})
    yield Browser(driver)
    driver.quit()
