"""The page in a real browser: what is clicked, painted and uploaded does what the page says.

Chromium and its driver are those of the system, and reach this machine alone.
"""

import base64
import io
import shutil

import numpy as np
import pytest
import torch
from app_fixtures import served
from PIL import Image
from selenium import webdriver
from selenium.common import StaleElementReferenceException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from test_editing import SIDE, make_editor

from scalear.app.playground import Playground
from scalear.draws import SeededDraws
from scalear.evaluation.images import to_uint8
from scalear.guidance import Guidance

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.integration,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="needs Chromium and chromedriver"),
]
MODEL = make_editor().model


class Page:
    """The page as who looks at it has it.

    Args:
        driver: Of a browser.
        address: Of the page.
    """

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.wait(lambda: "32x32 pixels in 4 scales" in self["#model"].text)

    def __getitem__(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition) -> None:
        """Until it holds of what is there then: the page replaces its pictures."""
        WebDriverWait(self.driver, 60, 0.05, [StaleElementReferenceException]).until(lambda _: condition())

    def click(self, selector: str) -> None:
        self[selector].click()

    def type(self, selector: str, text: str) -> None:
        self[selector].clear()
        self[selector].send_keys(text)

    def make(self) -> list[np.ndarray]:
        """Make pictures and return them."""
        self.click("#make")
        return self.made()

    def made(self) -> list[np.ndarray]:
        """The pictures, once all are there."""
        self.wait(lambda: " made in " in self["#status"].text or self["#message"].is_displayed())
        assert not self["#message"].is_displayed(), self["#message"].text
        return self.pictures()

    def pictures(self) -> list[np.ndarray]:
        """Those that are shown now."""
        return [pixels(image) for image in self.all("#pictures img")]

    def message(self) -> str:
        """What the page complains of."""
        self.wait(lambda: self["#message"].is_displayed())
        return self["#message"].text

    def paint(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Drag the brush from one pixel (column, row) of the picture to another."""
        canvas = self["#canvas"]
        scale = canvas.size["width"] / SIDE
        (x_0, y_0), (x_1, y_1) = ((scale * (x - SIDE / 2), scale * (y - SIDE / 2)) for x, y in (start, end))
        chain = ActionChains(self.driver, duration=20).move_to_element_with_offset(canvas, x_0, y_0).click_and_hold()
        chain.move_to_element_with_offset(canvas, x_1, y_1).release().perform()

    def complete(self, button: str = "#complete") -> np.ndarray:
        before = self["#completed"].get_attribute("src")
        self.click(button)
        self.wait(lambda: self["#completed"].get_attribute("src") != before or self["#message"].is_displayed())
        assert not self["#message"].is_displayed(), self["#message"].text
        return pixels(self["#completed"])


def pixels(image) -> np.ndarray:
    """Of an image element, once the browser has decoded it."""
    WebDriverWait(image.parent, 60, 0.05).until(lambda _: int(image.get_property("naturalWidth")) == SIDE)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.get_attribute("src").partition(",")[2]))))


def expected(labels: list[int], seeds: list[int], **how) -> list[np.ndarray]:
    """What the model makes, asked without a page."""
    with torch.no_grad():
        draws = SeededDraws([(0, seed) for seed in seeds])
        return list(to_uint8(MODEL.sample(torch.tensor(labels), draws, **how))[:, 0].numpy())


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1300", only_here):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    names = ["bag", "boot", "coat"]
    with served(Playground(MODEL, class_names=names, title="tiny", precision="32-true")) as server:
        yield Page(browser, server.address)
    assert [entry["message"] for entry in browser.get_log("browser") if "400 (Bad" not in entry["message"]] == []


def test_a_click_makes_the_pictures_of_the_chosen_classes_and_seeds(page):
    page.click("#classes button:nth-child(2)")  # all three are chosen at first
    page.type("#seed", "7")
    made, seeds = page.make(), [7, 7, 8, 8]
    assert np.array_equal(made, expected([0, 2, 0, 2], seeds))
    captions = [caption.text for caption in page.all("#pictures figcaption")]
    assert captions == ["bag, seed 7", "coat, seed 7", "bag, seed 8", "coat, seed 8"]

    page.click("#scales button:first-child")  # the coarsest scale
    with torch.no_grad():
        first = next(MODEL.sample_growing(torch.tensor([0, 2, 0, 2]), SeededDraws([(0, seed) for seed in seeds])))
    assert np.array_equal(page.pictures(), to_uint8(first)[:, 0].numpy())

    page["#sliders input"].send_keys(Keys.HOME)  # guidance to its lowest; pictures follow by themselves
    page.wait(lambda: page["#sliders output"].text == "1" and "made" not in page["#status"].text)
    assert np.array_equal(page.made(), expected([0, 2, 0, 2], seeds, guidance=Guidance(1.0)))
    page.click("#others")
    page.wait(lambda: page["figcaption"].text == "bag, seed 9")
    assert np.array_equal(page.made(), expected([0, 2, 0, 2], [9, 9, 10, 10], guidance=Guidance(1.0)))


def test_a_painted_mask_changes_only_what_it_covers(page):
    given = page.make()[0]
    page.click("#pictures figure:first-child button")
    page.paint((8, 12), (24, 12))
    row, column = np.indices(given.shape) + 0.5
    beside = np.hypot(column - np.clip(column, 8, 24), row - 12) > float(page["#brush"].get_property("value")) + 0.5
    one, other = page.complete(), page.complete("#again")
    assert np.array_equal(one[beside], given[beside]) and (one != given).sum() > 60
    assert np.array_equal(other[beside], given[beside]) and not np.array_equal(other, one)
    assert Select(page["#shows"]).first_selected_option.text == "bag"
    page.click("#keep")
    page.click("#complete")
    assert page.message() == "Paint over what is to be made up first."


def test_an_uploaded_picture_is_completed_and_what_is_none_gives_a_message(page, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    page["#upload"].send_keys(str(tmp_path / "notes.png"))
    assert page.message().startswith("this is no picture that can be read: take one of PNG, JPEG")
    colour = np.random.default_rng(0).integers(0, 256, (SIDE, 2 * SIDE, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "wide.png")
    page["#upload"].send_keys(str(tmp_path / "wide.png"))
    page.wait(lambda: not page["#message"].is_displayed())
    page.paint((16, 16), (16, 16))
    made = page.complete()
    given = np.asarray(Image.fromarray(colour[:, SIDE // 2 : -SIDE // 2]).convert("L"))
    changed = made != given
    assert changed[14:18, 14:18].mean() > 0.8 and not changed[:8].any() and not changed[24:].any()
