"""A headless Chromium as a reader's browser: its window, its theme, what its console and its network log have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

PHONE, DESK = 390, 1440
READABLE = 4.5
"""Contrast of text with what is under it (WCAG 2.2, level AA)."""

CONTRASTS = """
function channel(value) { value /= 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; }
function luminance(c) { return 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]); }
function parsed(text) { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; }
function under(element) {
  for (let e = element; e; e = e.parentElement) {
    const color = parsed(getComputedStyle(e).backgroundColor);
    if (color[3] === 1) return color;
  }
  return null;
}
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!own || !element.getClientRects().length || element.tagName === "title") continue;
  const style = getComputedStyle(element), paper = under(element);
  const ink = parsed(element.ownerSVGElement ? style.fill : style.color);
  const [high, low] = [luminance(ink), luminance(paper)].sort((a, b) => b - a);
  found.push([(high + 0.05) / (low + 0.05), element.tagName + "." + element.getAttribute("class"),
              element.textContent.trim().slice(0, 40)]);
}
return found;
"""

FIGURES = """
return [...document.querySelectorAll("figure")].map(figure => {
  const drawing = [...figure.querySelectorAll("svg")].find(each => each.getClientRects().length);
  const box = drawing ? drawing.getBoundingClientRect() : {width: 0, height: 0};
  const texts = drawing ? [...drawing.querySelectorAll("text")].map(each => each.textContent) : [];
  return {name: drawing ? drawing.getAttribute("aria-label") : "", width: box.width, height: box.height,
          words: texts.filter(text => /[A-Za-z]{2}/.test(text)), source: figure.querySelector(".source") !== null,
          caption: figure.querySelector("figcaption").textContent};
});
"""

HTML = (
    "</script><script>alert(1)</script>",
    "</style></title></svg></pre></details><script>alert(2)</script>",
    "<svg onload=alert(3)><img src=x onerror=alert(4)>",
    '"><iframe src="javascript:alert(5)"></iframe>',
    "' onmouseover='alert(6)' style='position:fixed'",
    "<!-- <![CDATA[ ]]> --> &lt;b&gt; &#x3c;i&#x3e;",
    "{{7*7}} {% raw %} ${7*7} $\\alpha$ %s {0}",
    "javascript:alert(7)",
    '<base href="https://example.org/"><link rel=stylesheet href=//example.org/x.css>',
    "<meta http-equiv=refresh content='0;url=https://example.org'><form action=//example.org><input>",
)
HIDDEN_TEXT = (
    "a\x1b[2J\x1b]0;owned\x07b\x08\x7f\x9b31m",
    "a\u202egnp.exe\u2066b\u200b\ufeff",
    "a\U000e0048\U000e0069 tags\u00ad\u2028\u2029",
    "a\ud800b\udfff\ufffe",
    "a\x00b\r\nc\rd\te",
)
ALL = " ".join((*HTML, *HIDDEN_TEXT))
DOM = """
const found = {tags: {}, attributes: {}, links: [], styles: []};
for (const element of document.querySelectorAll("*")) {
  found.tags[element.tagName.toLowerCase()] = 1;
  for (const {name, value} of element.attributes) {
    found.attributes[name] = 1;
    if (name.endsWith("href") || name === "src" || name === "action") found.links.push(value);
    if (name === "style") found.styles.push(value);
  }
}
return found;
"""


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
