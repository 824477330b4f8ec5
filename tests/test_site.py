"""The site builds without a warning, and a real browser finds nothing wrong with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
from built_site import Server, broken_links, serve
from headless import (
    DESKTOP,
    PHONE,
    Findings,
    palette,
    prefer,
    resize,
    visit,
)
from PIL import Image
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import iivcl

ROOT = Path(__file__).parents[1]
HEADLINES = [n for n in iivcl.__all__ if not isinstance(getattr(iivcl, n), ModuleType | str)]

UNREADY = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    StaleElementReferenceException,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Server]:
    with serve(site) as server:
        yield server


@pytest.fixture(scope="module")
def findings(browser: Chrome, server: Server) -> dict[str, Findings]:
    """Visit the first page, and all that its navigation leads to."""
    first = visit(browser, server.address)
    return {address: visit(browser, address) for address in sorted(first.navigation)}


def wait(browser: Chrome, condition: Callable[[Chrome], object]) -> None:
    """Wait until it holds; on the way the page may replace or cover what is looked at."""
    patient = WebDriverWait(browser, 10, poll_frequency=0.05, ignored_exceptions=UNREADY)
    patient.until(condition)


def click(browser: Chrome, selector: str) -> None:
    """Click the first element of that kind that can be seen, as soon as there is one."""

    def try_to(browser: Chrome) -> bool:
        elements = browser.find_elements(By.CSS_SELECTOR, selector)
        element = next((element for element in elements if element.is_displayed()), None)
        if element is not None:
            element.click()
        return element is not None

    wait(browser, try_to)


def test_reference_shows_docstrings_with_their_examples(site: Path) -> None:
    page = (site / "reference" / "momentum" / "index.html").read_text()
    assert "momentum_update_" in page
    assert "&gt;&gt;&gt;" in page or ">>>" in page


def test_long_signatures_are_wrapped(site: Path) -> None:
    page = (site / "reference" / "losses" / "index.html").read_text()
    signature = page.partition('id="iivcl.losses.IIVCLLoss"')[2].partition("<code>")[2]
    lines = re.sub("<[^>]*>", "", signature.partition("</code>")[0]).splitlines()
    assert len(lines) > 4  # one argument a line
    assert max(map(len, lines)) <= 76


def test_formulas_are_typeset_without_a_script(site: Path) -> None:
    page = (site / "explanation" / "method" / "index.html").read_text()
    assert page.count('<div class="formula"><math') == 4
    assert "```math" not in page
    for name, formulas in {"losses": 3, "momentum": 2, "data": 1, "diagnostics": 1}.items():
        page = (site / "reference" / name / "index.html").read_text()
        assert page.count('<div class="formula"><math') == formulas, name
        assert ".. math" not in page


def test_addresses_come_from_one_place(site: Path) -> None:
    """What a page leaves open is put in from mkdocs.yml, which alone names the placeholders."""
    home = (site / "index.html").read_text()
    assert f"iivcl {iivcl.__version__}" in home
    assert "git clone https://example.org/iivcl" in re.sub("<[^>]*>", "", home)
    assert [
        page for page in site.rglob("*.html") if re.search(r"\{\{ \w+ \}\}", page.read_text())
    ] == []
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "mkdocs.yml")]
    files = [*top, *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py")]
    assert [file.name for file in files if "example.org" in file.read_text()] == ["mkdocs.yml"]


def test_the_moving_picture_is_small_enough_for_a_phone(site: Path) -> None:
    picture = site / "assets" / "neighbors.webp"
    assert picture.stat().st_size < 1_000_000
    with Image.open(picture) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == ("WEBP", 24, 0)


def test_every_link_and_anchor_within_the_site_exists(site: Path) -> None:
    assert broken_links(site) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text('<h1 id="here">Page</h1><a href="#gone">-</a>')
    (tmp_path / "index.html").write_text(
        '<a href="page/">-</a> <a href="page/#here">-</a> <a href="/page/index.html">-</a>'
        '<a href="page/#there">-</a> <a href="../outside.html">-</a> <img src="missing.png">'
    )
    assert sorted(broken_links(tmp_path)) == [
        "index.html: ../outside.html",
        "index.html: missing.png",
        "index.html: page/#there",
        "page/index.html: #gone",
    ]


@pytest.mark.slow
def test_navigation_leads_to_every_page(findings: dict[str, Findings], site: Path) -> None:
    pages = {path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")}
    visited = {urlsplit(address).path.strip("/") or "." for address in findings}
    assert visited == pages
    assert all(found.title.endswith("iivcl") for found in findings.values())


@pytest.mark.slow
def test_console_has_nothing_to_say(findings: dict[str, Findings]) -> None:
    assert {address: found.console for address, found in findings.items() if found.console} == {}


@pytest.mark.slow
def test_every_request_is_answered_and_none_leaves_the_site(
    findings: dict[str, Findings], server: Server
) -> None:
    for address, found in findings.items():
        assert address in found.requests
        assert outside(found, server) == set(), address
        assert found.failed == [], address
    assert server.failed == []


def outside(found: Findings, server: Server) -> set[str]:
    inner = (server.address, "data:", "blob:", "chrome:")
    return {address for address in found.requests if not address.startswith(inner)}


@pytest.mark.slow
def test_every_image_has_loaded(findings: dict[str, Findings]) -> None:
    images = {source: ok for found in findings.values() for source, ok in found.images.items()}
    assert images  # the logo at least
    assert all(images.values()), images


@pytest.mark.slow
def test_text_has_contrast_in_both_palettes(findings: dict[str, Findings]) -> None:
    for address, found in findings.items():
        assert found.texts > 20, address
        assert found.faint == {"default": [], "slate": []}, address


@pytest.mark.slow
def test_pages_fit_a_phone_and_code_scrolls_in_its_block(findings: dict[str, Findings]) -> None:
    for address, found in findings.items():
        assert found.cut_off == [], address
    assert any(found.scrolling_codes for found in findings.values())  # there is code that wide


def test_faults_of_a_page_are_found(browser: Chrome, tmp_path: Path) -> None:
    """The checks above can fail: each sees its fault on a page that has all of them."""
    (tmp_path / "index.html").write_text(
        """<!doctype html><title>Faulty</title>
        <meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
        <style>@media (prefers-color-scheme: dark) { body { background: #777 } }</style>
        <body data-md-color-scheme="light">
        <script>
          console.error("loud");
          const follow = ({matches}) =>
              document.body.setAttribute("data-md-color-scheme", matches ? "dark" : "light");
          matchMedia("(prefers-color-scheme: dark)").addEventListener("change", follow);
        </script>
        <script src="http://elsewhere.example/script.js"></script>
        <main class="md-container"><div class="md-content">
        <p style="color: #777">4.48 on white, 1 on itself</p>
        <p style="color: #767676">4.54 on white, so not faint</p>
        <p style="color: black; opacity: 0.4">transparent</p>
        <pre><code style="display: block; overflow: auto">scrolls {0}</code></pre>
        <p id="wide" style="width: 500px">wide</p>
        <img src="missing.png">
        </div></main>""".replace("{0}", "-" * 200)
    )
    with serve(tmp_path) as server:
        found = visit(browser, server.address)
    assert outside(found, server) == {"http://elsewhere.example/script.js"}
    assert len(found.failed) == 2
    assert server.failed == ["/missing.png: 404"]
    assert found.images == {"missing.png": False}
    assert "loud" in "".join(found.console)
    ratios = {name: [text[:4] for text in faint] for name, faint in found.faint.items()}
    assert ratios == {"light": ["4.48", "2.85"], "dark": ["1.00", "1.01", "2.06"]}
    assert [text[:13] for text in found.cut_off] == ['<p id="wide" ', "the page is 5"]
    assert found.scrolling_codes == 1


@pytest.mark.parametrize("name", HEADLINES)
def test_search_leads_to_a_public_name(browser: Chrome, server: Server, name: str) -> None:
    resize(browser, DESKTOP)
    browser.get(server.address)
    click(browser, "[data-md-component=search-query]")
    browser.switch_to.active_element.send_keys(name)
    click(browser, f".md-search-result__link[href$='.{name}']")
    wait(browser, lambda browser: browser.current_url.endswith(f".{name}"))
    anchor = urlsplit(browser.current_url).fragment
    wait(browser, lambda browser: in_view(browser, anchor))


def in_view(browser: Chrome, anchor: str) -> bool:
    script = """
    const heading = document.getElementById(arguments[0]);
    const top = heading ? heading.getBoundingClientRect().top : -1;
    return 0 <= top && top < window.innerHeight;
    """
    return browser.execute_script(script, anchor)


def test_drawer_of_a_phone_opens_and_leads_to_a_page(browser: Chrome, server: Server) -> None:
    resize(browser, PHONE)
    browser.get(server.address)
    link = "document.querySelector('.md-nav--primary a[href$=\"changelog/\"]')"
    left = f"return {link}.getBoundingClientRect().left"
    assert browser.execute_script(left) < 0  # the drawer is closed
    click(browser, ".md-header label[for=__drawer]")
    wait(browser, lambda browser: browser.execute_script(left) >= 0)
    click(browser, ".md-nav--primary a[href$='changelog/']")
    wait(browser, lambda browser: browser.current_url == f"{server.address}changelog/")


def test_pictures_of_one_palette_show_in_that_alone(browser: Chrome, server: Server) -> None:
    browser.get(f"{server.address}gallery/")
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    for system in ("light", "dark"):
        prefer(browser, system)
        images = "[...document.querySelectorAll('img[src*=\"#only-\"]')]"
        shown = f"return {images}.filter(i => i.checkVisibility()).map(i => i.src.split('#')[1])"
        assert browser.execute_script(shown) == [f"only-{system}"]


@pytest.mark.parametrize(("system", "start"), [("light", "default"), ("dark", "slate")])
def test_palette_follows_the_system_until_the_reader_chooses(
    browser: Chrome, server: Server, system: str, start: str
) -> None:
    resize(browser, DESKTOP)
    prefer(browser, system)
    browser.get(server.address)
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    wait(browser, lambda browser: palette(browser) == start)
    background = "return getComputedStyle(document.body).backgroundColor"
    seen = set()
    for expected in ("default", "slate"):
        click(browser, "label[for^=__palette]")
        wait(browser, lambda browser, expected=expected: palette(browser) == expected)
        seen.add(browser.execute_script(background))
    assert len(seen) == 2
    browser.get(f"{server.address}changelog/")
    assert palette(browser) == "slate"  # the choice is kept
