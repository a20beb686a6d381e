"""The served pages in a real browser: clicked through, by keyboard too, in light and dark, on a phone; screenshots are kept.

Needs Playwright (`pip install playwright`) and a Chromium: `playwright install chromium`, or one of the system's. The
pictures lie in pytest's folder for the module (`--basetemp DIR` says where).
"""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs starlette and uvicorn: pip install 'softshard[inspect]'")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs a browser's driver: pip install playwright"
)
from inspected_sets import options  # noqa: E402
from served_pages import served  # noqa: E402

from softshard.loaders import Augment, CutMix  # noqa: E402


def find_chromium(driver) -> str | None:
    """A Chromium of the system, or the one that `playwright install chromium` fetched."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if (found := shutil.which(name)) is not None:
            return found
    own = driver.chromium.executable_path
    return own if Path(own).exists() else None


@pytest.fixture(autouse=True)
def no_threads_left():
    """In place of the check after every test: the module's server has threads until its end."""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        executable = find_chromium(driver)
        if executable is None:
            pytest.skip("needs Chromium: playwright install chromium, or apt-get install chromium")
        # Containers run as root, where Chromium's own sandbox does not start.
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def client(packed, tmp_path_factory, browser):
    file = tmp_path_factory.mktemp("bad") / "bad_samples.jsonl"
    file.write_text(
        json.dumps({"shard": "a.tar", "key": "<b>k</b>", "reason": "r" * 900, "sample": 3}) + "\n"
    )
    with served(packed, options(augment=Augment(size=64, cutmix=CutMix(1.0))), file) as client:
        yield client


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp("screenshots")


@pytest.fixture
def open_page(browser, client):
    """A function that opens a page; nothing on it may be blocked, fail or run."""
    contexts, said = [], []

    def open_at(path, *, width=1200, dark=False):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: said.extend([] if is_own(request.url) else [request.url]))
        page.goto(client.address + path)
        return page

    def is_own(url):
        return url.startswith((client.address, "data:"))

    yield open_at
    for context in contexts:
        context.close()
    # Chromium asks for an icon by itself.
    assert [text for text in said if "favicon" not in text and "404" not in text] == []


def keep(page, pictures, name):
    file = pictures / f"{name}.png"
    page.screenshot(path=file, full_page=True)
    assert file.stat().st_size > 5000
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_from_the_overview_to_a_sample_and_its_class(open_page, pictures):
    page = open_page("/")
    keep(page, pictures, "overview")
    page.click("nav >> text=Shards")
    page.click("text=train-000001.tar")
    assert page.locator("h1").inner_text() == "Shard train-000001.tar"
    keep(page, pictures, "shard")
    page.locator("figure.card a").nth(4).click()
    key = page.locator("h1").inner_text()
    assert all(page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)"))
    assert page.evaluate("getComputedStyle(document.querySelector('.card')).borderRadius") == "8px"  # styled
    keep(page, pictures, "sample")
    page.click("dd >> nth=1 >> a")
    assert page.locator("h1").inner_text().startswith("Class ")
    assert key in page.content()
    keep(page, pictures, "class")


def test_a_form_asks_for_other_crops_and_another_step(open_page, pictures):
    page = open_page("/sample/5")
    page.fill("input[name=epoch]", "7")
    page.fill("input[name=crops]", "4")
    page.click("text=Show")
    assert page.locator("figcaption", has_text="epoch 10").count() == 1
    page.click("nav >> text=Batches")
    page.fill("input[name=step]", "2")
    page.fill("input[name=batch]", "16")
    page.press("input[name=batch]", "Enter")
    assert page.locator("h1").inner_text() == "Epoch 0, step 2"
    assert page.locator("figcaption", has_text="Slot 15:").count() == 1
    keep(page, pictures, "step")


def test_search_and_everything_else_work_by_keyboard(open_page, pictures):
    page = open_page("/")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "q":
            break
    page.keyboard.type("cat")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?q=cat")
    assert page.evaluate("document.querySelector('h1').innerText") == "Search"
    keep(page, pictures, "search")
    page.keyboard.press("Tab")
    focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert focused == "solid"


@pytest.mark.parametrize("path", ["/", "/sample/5", "/step?batch=8", "/bad", "/classes", "/shards", "/tree"])
@pytest.mark.parametrize(("name", "width", "dark"), [("dark", 1200, True), ("phone", 390, False)])
def test_pages_fit_a_phone_and_the_dark(open_page, pictures, path, name, width, dark):
    page = open_page(path, width=width, dark=dark)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(25, 25, 24)" if dark else "rgb(252, 252, 251)")
    keep(page, pictures, f"{name}{path.partition('?')[0].replace('/', '-')}")


def test_every_control_has_a_name(open_page):
    for path in ("/", "/sample/5", "/step?batch=8", "/search", "/shard/0"):
        page = open_page(path)
        unnamed = page.evaluate(
            """[...document.querySelectorAll('a,input,button')].filter(each => !(each.innerText.trim()
            || (each.labels && each.labels.length)
            || each.querySelector('img[alt]:not([alt=""]),svg[aria-label]'))).length"""
        )
        assert unnamed == 0, path
