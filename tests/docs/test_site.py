"""The built site: strict, complete, and without anything from elsewhere."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name_of
from tests.support import NO_BROWSER, find_browser

pytest.importorskip("material")

# Each has a page of the API reference.
ROOMS = [
    "benchmarks",
    "callbacks",
    "data",
    "data.transforms",
    "functional",
    "generation",
    "heads",
    "judges",
    "metrics",
    "modules",
    "objectives",
    "planning",
    "policies",
    "references",
    "report",
    "rewards",
    "rounds",
    "scoring",
    "sweeps",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    return folder


class Fetched(HTMLParser):
    """The addresses that a browser fetches by itself, which a link's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.addresses.append(given["href"])
        elif tag != "a":
            self.addresses += [given[key] for key in ("src", "srcset", "data") if given.get(key)]


def pages_of(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def test_every_page_of_the_repository_is_on_the_site(site):
    for page in PAGES:
        target = name_of(page).removeprefix("docs/").replace("README", "index")
        assert (site / target).with_suffix(".html").is_file(), target


def test_no_page_fetches_anything_from_elsewhere(site):
    for page in pages_of(site):
        reader = Fetched()
        reader.feed(page.read_text(encoding="utf-8"))
        assert len(reader.addresses) > 2
        outside = [address for address in reader.addresses if re.match(r"(https?:)?//", address)]
        assert not outside, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?https?:", sheet.read_text(encoding="utf-8")), sheet


def test_every_formula_is_mathml(site):
    formulae = 0
    for page in pages_of(site):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text
        assert "$$" not in text
        for formula in re.findall(r"<math.*?</math>", text, flags=re.DOTALL):
            formulae += 1
            assert "\\" not in formula, f"{page.name}: a command that was not understood: {formula}"
    assert formulae > 40


def test_the_picture_of_a_step_takes_the_pages_colours(site):
    for page in ("index.html", "concepts.html"):
        assert '<svg class="step-picture"' in (site / page).read_text(encoding="utf-8")


def test_every_public_name_is_in_the_api_reference_and_the_search(site):
    documented = {
        name
        for page in (site / "api").glob("*.html")
        for name in re.findall(r'id="(pl_prefopt[\w.]+)"', page.read_text(encoding="utf-8"))
    }
    for room in ROOMS:
        module = importlib.import_module(f"pl_prefopt.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            paths = {f"pl_prefopt.{room}.{name}", f"{getattr(thing, '__module__', '')}.{name}"}
            assert paths & documented or not callable(thing), f"pl_prefopt.{room}.{name}"
    found = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    assert any(entry["location"] == "api/objectives.html#pl_prefopt.objectives.DPO" for entry in found)


@pytest.mark.browser
def test_pages_opened_from_a_folder_can_be_searched(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chrome = find_browser() or pytest.skip(NO_BROWSER)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chrome, args=["--no-sandbox"], timeout=120_000)
        page = browser.new_context(offline=True).new_page()
        page.goto(f"{(site / 'methods/dpo.html').as_uri()}?q=PrecomputedTable")
        page.wait_for_selector(".md-search-result__link", state="attached", timeout=120_000)
        found = [link.get_attribute("href") for link in page.locator(".md-search-result__link").all()]
        browser.close()
    assert any("/api/references.html" in link for link in found)


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("https://github.com/owner/name.git", "https://github.com/owner/name"),
        ("git@github.com:owner/name.git", "https://github.com/owner/name"),
        ("ssh://git@example.org/owner/name", "https://example.org/owner/name"),
        ("ssh://git@example.org:2222/owner/name.git", "https://example.org/owner/name"),
        ("https://oauth2:TOKEN@example.org/owner/name.git/", "https://example.org/owner/name"),
        ("https://TOKEN@example.org:8443/owner/name.git", "https://example.org:8443/owner/name"),
        ("https://example.org:port/owner/name.git", None),
        ("http://user:TOKEN@example.org/owner/name.git", None),
        ("https://example.org", None),
        ("file:///srv/git/name.git", None),
        ("/srv/git/name.git", None),
        ("", None),
    ],
)
def test_the_site_links_to_the_repository_that_it_was_cloned_from(origin, address):
    from scripts.site.hooks import web_address

    assert web_address(origin) == address
