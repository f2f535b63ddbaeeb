"""A headless Chromium as a reader's browser: its window, its theme, what its console and its network log have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait


@dataclass(frozen=True)
class Browser:
    """A headless Chromium, its window and theme set as a reader's would be."""

    driver: webdriver.Chrome

    def open(self, page: Path, *, width: int = 1440, dark: bool = False) -> None:
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme(dark)]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(page.as_uri())
        is_whole = "return document.readyState === 'complete'"
        WebDriverWait(self.driver, 20).until(lambda driver: driver.execute_script(is_whole))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def complaints(self) -> list[str]:
        """What the console has since it was last asked, errors and warnings."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses asked for since this was last asked, but for data that is in the page itself."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if urlsplit(url).scheme != "data"]


def scheme(dark: bool) -> dict[str, str]:
    return {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
