"""The report in a real browser, used as a reader does. Skips where there is no chromium or no playwright.

$REPORT_SCREENSHOTS names a folder that pictures of the page are written to.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from tests.leaderboard.synthetic import fail, write_results

pytest.importorskip("altair", reason="pip install 'dskd-harness[report]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'dskd-harness[browser]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")
CATEGORIES = ("cloth", "metal", "wood", "stone", "tile", "grid")
INTERACTIVE_MS = 2000


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    base = tmp_path_factory.mktemp("browser")
    results = write_results(base / "demo", categories=CATEGORIES, maps=4)
    fail(results)
    path = base / "report.html"
    done = CliRunner().invoke(
        app, ["report", str(results.folder), "--out", str(path), "--metric", "image_auroc,pixel_auroc"]
    )
    assert done.exit_code == 0, done.output
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture
def open_page(browser: "playwright.Browser", page_url: str) -> Iterator:
    """Opens the page; at the end there were no errors, and no request but for the page itself."""
    noise: list[str] = []
    contexts = []

    def make(width: int = 1280, scheme: str = "light") -> "playwright.Page":
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("console", lambda message: noise.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda request: noise.append(request.url) if not request.url.startswith("data:") else None)
        page.goto(page_url)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield make
    for context in contexts:
        context.close()
    assert set(noise) == {page_url}


def shot(page: "playwright.Page", name: str) -> None:
    folder = os.environ.get("REPORT_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png")


def shown(page: "playwright.Page", selector: str) -> int:
    return page.locator(f"{selector}:visible").count()


def test_interactive_soon(open_page) -> None:
    page = open_page()
    spent = page.evaluate("performance.getEntriesByType('navigation')[0].domInteractive")
    assert spent < INTERACTIVE_MS * (5 if os.environ.get("CI") else 1)


def test_sort(open_page) -> None:
    page = open_page()
    table = page.locator('table[data-table="scores"]')
    head = table.locator("th", has_text="image AUROC")

    def column() -> list[float]:
        return [float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]

    head.click()
    page.wait_for_function("document.querySelector('[data-table=scores] th[aria-sort=descending]')")
    page.wait_for_timeout(50)
    down = column()
    assert down == sorted(down, reverse=True)
    head.focus()
    page.keyboard.press("Enter")  # by keyboard too
    page.wait_for_function("document.querySelector('[data-table=scores] th[aria-sort=ascending]')")
    page.wait_for_timeout(50)
    assert column() == sorted(down)
    shot(page, "sorted")


def test_filter(open_page) -> None:
    page = open_page()
    assert shown(page, '[data-table="scores"] tbody tr') == 3
    page.fill("#filter", "STFPM")
    assert shown(page, '[data-table="scores"] tbody tr') == 1
    assert shown(page, '[data-table="categories"] tbody tr') == len(CATEGORIES)
    page.fill("#filter", "stfpm wood")
    assert shown(page, '[data-table="categories"] tbody tr') == 1
    page.fill("#filter", "")
    assert shown(page, '[data-table="categories"] tbody tr') == 3 * len(CATEGORIES)


def test_click_a_category(open_page) -> None:
    page = open_page()
    page.locator("#heatmap-0").scroll_into_view_if_needed()
    cell = page.locator("#heatmap-0 svg .mark-text text").first
    cell.wait_for()
    cell.click()
    chosen = page.input_value('select[data-state="category"]')
    assert chosen in CATEGORIES
    assert shown(page, '[data-table="categories"] tbody tr') == 3
    texts = page.locator('[data-table="categories"] tbody tr:visible td:nth-child(2)').all_inner_texts()
    assert set(texts) == {chosen}
    cases = page.locator("article.case:visible")
    assert cases.count() > 0
    assert {case.get_attribute("data-category") for case in cases.all()} == {chosen}
    faint = page.locator("#heatmap-0 svg .mark-rect path[opacity='0.25']")
    faint.first.wait_for()
    assert faint.count() == 3 * (len(CATEGORIES) - 1)
    shot(page, "category")
    page.select_option('select[data-state="category"]', "")
    assert shown(page, '[data-table="categories"] tbody tr') == 3 * len(CATEGORIES)


def test_choose_metric_and_cases(open_page) -> None:
    page = open_page()
    page.locator("#scatter-0").scroll_into_view_if_needed()
    label = page.locator("#scatter-0 svg[aria-label], #scatter-0 [aria-label^='image AUROC over throughput']").first
    label.wait_for(state="attached")
    page.select_option('select[data-state="metric"]', "pixel_auroc")
    page.locator("#scatter-0 svg text", has_text="pixel AUROC [%]").wait_for()
    everything = shown(page, "article.case")
    page.select_option("#role", "worst of dskd")
    assert 0 < shown(page, "article.case") < everything


def test_themes_and_phone(open_page) -> None:
    backgrounds = {}
    for name, width, scheme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")):
        page = open_page(width, scheme)
        page.locator("#scatter-0").scroll_into_view_if_needed()
        page.locator("#scatter-0 svg.marks").wait_for()
        page.evaluate("window.scrollTo(0, 0)")
        backgrounds[name] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        shot(page, name)
        for anchor in ("heatmap-0", "gallery"):
            page.locator(f"#{anchor}").scroll_into_view_if_needed()
            page.evaluate(f"document.getElementById('{anchor}').scrollIntoView()")
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            shot(page, f"{name}-{anchor}")
        image = page.locator("article.case img").first
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert backgrounds["light"] == backgrounds["phone"] != backgrounds["dark"]
    page.click("#theme")  # and by hand
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == backgrounds["dark"]


def test_a_picture_is_enlarged_by_click_and_by_key(open_page) -> None:
    page = open_page()
    pictures = page.locator("article.case:visible img")
    pictures.nth(2).scroll_into_view_if_needed()
    small = pictures.nth(2).evaluate("image => image.clientWidth")
    pictures.nth(2).click()
    large = page.locator("#large img")
    large.wait_for()
    assert large.evaluate("image => image.clientWidth") > 2 * small
    assert large.get_attribute("src") == pictures.nth(2).get_attribute("src")
    shot(page, "enlarged")
    page.keyboard.press("ArrowRight")
    assert large.get_attribute("src") == pictures.nth(3).get_attribute("src")
    page.keyboard.press("Escape")
    assert not large.is_visible()
    page.keyboard.press("Enter")  # the picture that was last shown has the focus
    assert large.get_attribute("src") == pictures.nth(3).get_attribute("src")
    large.click()
    assert not large.is_visible()
