"""A real browser without a window, and what it sees of a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

DESKTOP, PHONE = (1280, 900), (390, 844)  # CSS pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LEAST_CONTRAST = 4.5  # WCAG 2.2, level AA

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # nothing else is reached
)

# Colours as the browser blends them: a pixel is painted with each and read back.
CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const known = new Map();
function rgba(color) {
  if (!known.has(color)) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    known.set(color, [r, g, b, a / 255]);
  }
  return known.get(color);
}
const over = (top, below, alpha) => below.map((value, i) => alpha * top[i] + (1 - alpha) * value);
const grounds = new Map([[null, {below: [255, 255, 255], opacity: 1}]]);
function ground(element) { // what lies behind its text, and how opaque it is itself
  if (!grounds.has(element)) {
    const style = getComputedStyle(element);
    const color = rgba(style.backgroundColor);
    const {below, opacity} = ground(element.parentElement);
    grounds.set(element, {below: over(color, below, color[3]), opacity: style.opacity * opacity});
  }
  return grounds.get(element);
}
function luminance(color) {
  const [r, g, b] = color.map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ratio(element) {
  const {below, opacity} = ground(element);
  const color = rgba(getComputedStyle(element).color);
  const shown = over(color, below, color[3] * opacity);
  const [light, dark] = [luminance(shown), luminance(below)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}
const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
const elements = new Set();
while (texts.nextNode())
  if (texts.currentNode.data.trim()) elements.add(texts.currentNode.parentElement);
const seen = [...elements].filter(element => element.checkVisibility({opacityProperty: true}));
const faint = seen.filter(element => ratio(element) < arguments[0]).map(
  element => `${ratio(element).toFixed(2)}: ${element.outerHTML.slice(0, 120)}`);
return [seen.length, faint];
"""

# Text that a reader of a narrow page cannot get at: it ends beyond the edge and nothing scrolls.
CUT_OFF = """
const width = document.documentElement.clientWidth;
function scrolls(element) {
  if (!element) return false;
  const style = getComputedStyle(element);
  return (["auto", "scroll"].includes(style.overflowX) && element.scrollWidth > element.clientWidth
          && element.getBoundingClientRect().right <= width + 1) || scrolls(element.parentElement);
}
const cut = [...document.querySelectorAll("main .md-content *, body > :not(.md-container)")].filter(
  element => element.checkVisibility() && element.getBoundingClientRect().right > width + 1
             && !scrolls(element)).map(element => element.outerHTML.slice(0, 120));
if (document.documentElement.scrollWidth > width)
  cut.push(`the page is ${document.documentElement.scrollWidth} pixels wide`);
const codes = [...document.querySelectorAll("pre > code")];
return [cut, codes.filter(code => code.scrollWidth > code.clientWidth).length];
"""

# Where the navigation leads within the site; it has a link to the repository as well.
NAVIGATION = """
return [...document.querySelectorAll(".md-nav--primary a[href]")]
  .filter(link => link.origin === location.origin).map(link => link.href);
"""

IMAGES = """
return [...document.images].map(
  image => [image.getAttribute("src"), image.complete && image.naturalWidth > 0]);
"""


class Findings(NamedTuple):
    """What was seen of one page."""

    title: str
    navigation: set[str]  # addresses
    console: list[str]
    requests: set[str]  # addresses of everything asked for
    failed: list[str]  # what was not answered
    images: dict[str, bool]  # did it load?
    texts: int  # how many pieces of text there are to read
    faint: dict[str, list[str]]  # by palette: text with too little contrast
    cut_off: list[str]  # on a phone
    scrolling_codes: int  # on a phone


def find_browser() -> tuple[str, str] | None:
    """Give the paths of browser and driver. None is downloaded, as selenium would."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def start_browser(found: tuple[str, str], profile: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location, driver = found
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def resize(chrome: Chrome, size: tuple[int, int]) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(chrome: Chrome, scheme: str) -> None:
    """Set what the reader's system prefers: light or dark."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    # The page hears of it between two frames.
    chrome.execute_async_script(
        "const [done] = arguments; requestAnimationFrame(() => requestAnimationFrame(done))"
    )


def palette(chrome: Chrome) -> str:
    return chrome.execute_script("return document.body.getAttribute('data-md-color-scheme')")


def visit(chrome: Chrome, address: str) -> Findings:
    """Open a page and look at it on a desktop, in both palettes, and on a phone."""
    for log in ("browser", "performance"):
        drain(chrome, log)  # of what the page before left
    resize(chrome, DESKTOP)
    chrome.get(address)
    links = chrome.execute_script(NAVIGATION)
    navigation = {link.partition("#")[0] for link in links}
    still = "document.head.append(Object.assign(document.createElement('style'), {textContent: "
    chrome.execute_script(still + "'* { transition: none !important }'}))")
    faint = {}
    for preferred in ("light", "dark"):
        prefer(chrome, preferred)
        texts, faint[palette(chrome)] = chrome.execute_script(CONTRAST, LEAST_CONTRAST)
    images = dict(chrome.execute_script(IMAGES))
    resize(chrome, PHONE)
    cut_off, scrolling = chrome.execute_script(CUT_OFF)
    requests, failed = network(chrome)
    return Findings(
        chrome.title,
        navigation,
        [entry["message"] for entry in drain(chrome, "browser")],
        requests,
        failed,
        images,
        texts,
        faint,
        cut_off,
        scrolling,
    )


def drain(chrome: Chrome, log: str) -> list[dict[str, Any]]:
    return chrome.get_log(log)  # which empties it


def network(chrome: Chrome) -> tuple[set[str], list[str]]:
    addresses, failed = {}, []
    for entry in drain(chrome, "performance"):
        event = json.loads(entry["message"])["message"]
        params = event["params"]
        match event["method"]:
            case "Network.requestWillBeSent":
                addresses[params["requestId"]] = params["request"]["url"]
            case "Network.loadingFailed" if not params.get("canceled"):  # as by leaving a page
                address = addresses.get(params["requestId"], "?")
                failed.append(f"{address}: {params['errorText']}")
            case "Network.responseReceived" if params["response"]["status"] >= 400:
                failed.append(f"{params['response']['url']}: {params['response']['status']}")
    return set(addresses.values()), failed
