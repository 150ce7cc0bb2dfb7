"""The page in a real browser without a network: drawn, sorted, searched, hovered, saved, harmless."""

from __future__ import annotations

from pathlib import Path

import pytest

from pl_prefopt.cli.report import write_report
from tests.report.folders import ranked_rows, write_run
from tests.support import NO_BROWSER, find_browser

pytestmark = pytest.mark.browser

PATIENCE = 120_000  # milliseconds; a busy machine is slow and not wrong


COVERED = """[...document.querySelectorAll('.figure')].filter(figure => {
    const [legend, bar] = ['.legend', '.modebar'].map(
        name => figure.querySelector(name)?.getBoundingClientRect());
    return legend && bar && legend.right > bar.left && legend.bottom > bar.top && bar.bottom > legend.top;
}).map(figure => figure.dataset.figure)"""
"""The figures whose toolbar covers the legend."""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chrome = find_browser() or pytest.skip(NO_BROWSER)
    with playwright.sync_playwright() as driver:
        # As root, Chromium starts only without its own sandbox.
        launched = driver.chromium.launch(executable_path=chrome, args=["--no-sandbox"], timeout=PATIENCE)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        write_run(folder / "<img src=x onerror='window.hurt = 3'>", ranked_rows(skill=-1)),
        write_run(folder / "other", ranked_rows(seed=1)),
    ]
    return write_report(runs, folder / "report.html")


class Opened:
    """A page, and what it complained about or asked for."""

    def __init__(self, browser, report, *, width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, accept_downloads=True
        )
        context.set_default_timeout(PATIENCE)
        self.page = context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("html[data-ready=true]", state="attached")

    def column(self, table, number):
        return self.page.locator(f"{table} tr.summary td:nth-child({number})").all_inner_texts()


def test_it_is_drawn_sorted_searched_and_hovered(browser, report):
    opened = Opened(browser, report)
    page = opened.page
    assert page.locator(".figure .main-svg").count() >= 8
    titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(e => e.dataset.title)")
    assert set(titles) == {"Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}, "none that sends data"
    assert page.evaluate(COVERED) == []

    by_margin = [float(text) for text in opened.column(".cases", 2)]
    assert by_margin == sorted(by_margin)
    page.locator(".cases thead button").nth(1).click()
    assert [float(text) for text in opened.column(".cases", 2)] == sorted(by_margin, reverse=True)

    page.fill("#search", "7 * 7")
    assert 0 < page.locator(".cases tbody:visible").count() < len(by_margin)
    first = page.locator(".cases tbody:visible").first
    first.locator(".summary").click()
    assert "window.hurt = 1" in first.locator(".detail").inner_text()

    point = page.locator("#margin_gap .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    page.wait_for_selector("#margin_gap .hovertext", state="attached")
    # The hostile prompt, shown letter by letter; again, should a late answer to the mouse have hidden it.
    page.wait_for_function(
        """() => {
            const figure = document.querySelector("#margin_gap .figure");
            Plotly.Fx.hover(figure, [{curveNumber: 0, pointNumber: 0}]);
            const label = document.querySelector("#margin_gap .hovertext");
            return label && label.textContent.includes("</script><script>window.hurt");
        }"""
    )

    with page.expect_download() as download:
        page.locator("#margin_gap [data-save=svg]").click()
    assert "<svg" in Path(download.value.path()).read_text()[:200]
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]
    assert page.evaluate("window.hurt") is None


def test_a_script_that_got_in_would_not_run(browser, report):
    opened = Opened(browser, report)
    opened.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.hurt = 1";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.hurt = 2'>");
            fetch("https://example.org/").catch(() => {});
        }"""
    )
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("window.hurt") is None
    blocked = " ".join(text for text in opened.complaints if "Content Security Policy" in text)
    assert all(what in blocked for what in ("inline script", "inline event handler", "example.org"))


def test_a_phone_in_the_dark_shows_all_of_it(browser, report):
    opened = Opened(browser, report, width=390, scheme="dark")
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    widths = page.evaluate("[...document.querySelectorAll('.figure .main-svg')].map(e => e.clientWidth)")
    assert max(widths) <= 390
    assert page.locator(".modebar-btn").count() == 0
    colour = page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
    assert min(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(",")) > 150
    assert opened.complaints == []
