"""The report in a real browser: what a hand, a keyboard and an eye find there. Chromium without a window, over chromedriver."""

import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from diffode.errors import InputError
from experiments.comparison import report
from experiments.comparison.browser import chromium, resize, save_screenshot
from experiments.comparison.ranking import pareto
from tests.fabricated import ABOUT, BUDGETS, REFERENCE, SEEDS, SHADE, adaptive, comparison, fixed, grey, mixed
from tests.test_report import HOSTILE

ENTER, TAB, LEFT, RIGHT, DOWN, BACKSPACE = "\ue007", "\ue004", "\ue012", "\ue014", "\ue015", "\ue003"  # of WebDriver
PANEL = ".comparison:not([hidden]) "
MANY = {f"solver-of-a-long-name-{i}(start=single)": 1 + i % 3 for i in range(40)}


@pytest.fixture(scope="module")
def driver():
    """One window for all tests; skipped where there is no Chromium, but not in CI."""
    try:
        with chromium(1200, 900) as found:
            yield found
    except InputError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The address of a page: of two comparisons, of forty solvers, of a hostile one."""
    folder = tmp_path_factory.mktemp("report")
    two = [comparison(folder / "fashion", mixed()), comparison(folder / "mixture", fixed(), model="mixture")]
    many = [comparison(folder / "many", fixed(MANY, budgets=(5, 10)))]
    hostile = [comparison(folder / "hostile", fixed({HOSTILE: 1, "ddim": 1}), pictures=False, model=HOSTILE, labels=HOSTILE)]
    for name, folders in (("two", two), ("many", many), ("hostile", hostile)):
        report.write_report(folders, folder / f"{name}.html")
    return lambda name: (folder / f"{name}.html").as_uri()


@pytest.fixture
def page(driver, pages):
    """The page of two comparisons, afresh; at the end nothing was complained of in the console."""
    opened(driver, pages("two"))
    yield Page(driver)
    assert complaints(driver) == []


def opened(driver, address):
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    resize(driver, 1200, 900)
    driver.get("about:blank")  # a fragment alone does not load a page again
    driver.get(address)


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser")]


class Page:
    """What a test does with the shown comparison."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, selector):
        return self.driver.find_elements("css selector", PANEL + selector)

    def one(self, selector):
        (found,) = self.all(selector)
        return found

    def js(self, code, *arguments):
        """What the code returns, in which all(selector) are the elements of the shown comparison."""
        found = f"const all = (selector) => [...document.querySelectorAll({PANEL!r} + selector)];"
        return self.driver.execute_script(found + code, *arguments)

    def hands(self):
        """What presses keys and moves the pointer."""
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver)

    def press(self, *keys):
        self.hands().send_keys(*keys).perform()

    def click(self, element):
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def choose(self, selector, value):
        from selenium.webdriver.support.select import Select

        Select(self.one(selector)).select_by_value(value)  # which tells the page of a change alone, not of input

    def column(self, key):
        """The texts of a column as the rows stand, None for a row without results."""
        return self.js(
            """
            const at = all(".rows thead button").findIndex((button) => button.dataset.key === arguments[0]);
            const whole = all(".rows thead th").length, rows = all(".rows tbody tr").filter((row) => !row.hidden);
            return rows.map(({ cells }) => (cells.length === whole ? cells[at].textContent : null));
            """,
            key,
        )

    def marks(self):
        """The labels of the points drawn."""
        return [mark.get_attribute("aria-label") for mark in self.all(".plot .mark")]

    def wall(self, row=0):
        """Solver -> grey of its picture in a row as it is seen, in the middle; None where there is none."""
        found = self.js(
            """
            all(".pictures")[0].scrollIntoView({ block: "center" });
            const names = all(".pictures thead strong"), row = all(".pictures tbody tr")[arguments[0]];
            return [...row.querySelectorAll(".picture")].map((cell, i) => {
              const { x, y, width, height } = cell.getBoundingClientRect();
              return [names[i].textContent, cell.classList.contains("there") ? [x + width / 2, y + height / 2] : null];
            });
            """,
            row,
        )
        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as image:
            seen = image.convert("L")
            return {name: seen.getpixel((int(at[0]), int(at[1]))) if at else None for name, at in found}


def expected(solver, nfe, grids=("logsnr", "time")):
    """The grey of the best of a solver's rows at a budget."""
    rows = [(row, index) for index, row in enumerate(mixed()) if row["solver"] == solver and row["nfe"] == nfe]
    return grey(min((row["rmse"], index) for row, index in rows if row["grid"] in grids and "spent" in row)[1])


def test_a_click_sorts_by_number_and_another_backwards(page):
    (button,) = page.all('.rows [data-key="rmse"]')
    for direction, backwards in (("ascending", False), ("descending", True)):
        page.click(button)
        assert page.one(".rows [aria-sort]").get_attribute("aria-sort") == direction
        texts = page.column("rmse")
        numbers = [float(text) for text in texts if text not in (None, "inf")]
        assert numbers == sorted(numbers, reverse=backwards)
        assert len(numbers) == len([row for row in mixed() if isinstance(row.get("rmse"), float)])
        assert texts[-3:] == ["inf", None, None]  # what has no number is last either way


def test_enter_sorts_names(page):
    (button,) = page.all('.rows [data-key="solver"]')
    button.send_keys(ENTER)
    names = [cell.text for cell in page.all(".rows tbody th")]
    with_result = [row["solver"] for row in mixed() if "spent" in row]
    assert names[: len(with_result)] == sorted(with_result)


def test_the_filter_takes_parts_of_names_and_budgets(page):
    box = page.one(".rows input")
    box.send_keys("unipc logsnr 10")
    assert page.column("spent") == ["10"]
    assert page.one(".rows output").text == f"1 of {len(mixed())} cells"
    for text, rows in (("front", pareto(mixed())), ("", mixed()), ("0.03", [row for row in mixed() if row["rtol"] == 0.03])):
        box.clear()
        box.send_keys(text or "x", "" if text else BACKSPACE)
        assert len(page.column("spent")) == len(rows)


def test_arrow_keys_move_the_slider_and_pictures_follow(page):
    slider = page.one(".wall input[type=range]")
    assert page.one(".wall output").text == "10"
    for key, nfe in ((LEFT, 5), (RIGHT, 10), (RIGHT, 20), (RIGHT, 20)):
        slider.send_keys(key)
        assert page.one(".wall output").text == str(nfe)
        assert slider.get_attribute("aria-valuetext") == f"{nfe} evaluations"
        shown = page.wall()
        assert shown["reference"] == REFERENCE
        for solver in ("ddim", "dpmpp2m", "unipc3"):
            assert shown[solver] == expected(solver, nfe)


def test_a_row_is_a_seed(page):
    first = page.wall()
    for row in range(SEEDS):
        assert page.all(".pictures tbody th")[row].text == str(ABOUT["seed"] + row)
        assert page.wall(row) == {name: value and value + row * SHADE for name, value in first.items()}


def test_a_cell_without_picture_says_why(page):
    def said(nfe):
        slider = page.one(".wall input[type=range]")
        page.js(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', { bubbles: true }));",
            slider,
            BUDGETS.index(nfe),
        )
        names = [head.text for head in page.all(".pictures thead strong")]
        return dict(zip(names, [cell.text for cell in page.all(".pictures tbody tr:first-child .picture")], strict=True))

    assert said(5)["heun"] == "cannot take 5"
    assert said(5)["dpm23"] == "nothing within 5"
    assert said(10)["heun"] == said(10)["dpm23"] == ""
    assert said(20)["heun"] == "failed at 20"
    heads = {head.find_element("css selector", "strong").text: head.text for head in page.all(".pictures thead th")[1:]}
    assert heads["dpm23"].split("\n") == ["dpm23", "rtol 0.03", "14.5 NFE", "0.0300"]


def test_the_grid_of_the_wall(page):
    for grid in ("time", "logsnr"):
        page.choose(".wall [name=grid]", grid)
        assert page.wall()["unipc3"] == expected("unipc3", 10, [grid])


def test_best_first(page):
    page.click(page.one(".wall [name=first]"))
    names = [head.text for head in page.all(".pictures thead strong")]
    assert names == ["reference", "unipc3", "dpmpp2m", "dpm23", "ddim", "heun", "lms"]
    assert page.wall()["unipc3"] == expected("unipc3", 10)


@pytest.mark.parametrize("gain", [1, 2])
def test_the_difference_is_that_of_the_pixels(page, gain):
    before = page.wall()
    page.choose(".wall [name=gain]", str(gain))
    assert page.wall() == before
    page.click(page.one(".wall [name=difference]"))
    after = page.wall()
    assert after.pop("reference") == REFERENCE
    for solver, value in after.items():
        if value is not None:
            assert abs(value - min(255, gain * abs(before[solver] - REFERENCE))) <= 1
    page.click(page.one(".wall [name=difference]"))
    assert page.wall() == before


def test_a_solver_is_hidden_and_shown(page):
    keys = {key.text: key for key in page.all(".keys button")}
    assert list(keys) == ["ddim", "dpmpp2m", "unipc3", "dpm23", "heun", "lms"]
    whole = page.marks()
    page.click(keys["unipc3"])
    assert keys["unipc3"].get_attribute("aria-pressed") == "false"
    assert page.marks()
    assert not any("unipc3" in label for label in page.marks())
    page.click(keys["unipc3"])
    assert keys["unipc3"].get_attribute("aria-pressed") == "true"
    assert sorted(page.marks()) == sorted(whole)
    page.click(page.one('[data-show="none"]'))
    assert page.marks() == []
    assert "Nothing to show" in page.one(".plot svg").text
    page.click(page.one('[data-show="all"]'))
    assert sorted(page.marks()) == sorted(whole)


@pytest.mark.parametrize("cost", ["spent", "seconds"])
def test_the_curves_are_the_rows_and_their_front_is_the_front(page, cost):
    page.choose(".curves [name=grid]", "all")
    page.click(page.one(f".curves [value={cost}]"))
    rows = [row for row in mixed() if isinstance(row.get("rmse"), float)]

    def label(row):
        where, spent = (row["grid"], f"{row['nfe']}") if row["nfe"] else (f"rtol {row['rtol']}", f"{row['spent']:.1f}")
        return f"{row['solver']}, {where}, {spent} NFE"

    def found(labels):
        return sorted(any(mine.startswith(label(row)) for mine in labels) for row in rows)

    labels = page.marks()
    assert len(labels) == len(rows)
    assert all(found(labels))
    on_it = [mine for mine in labels if mine.endswith("on the Pareto front")]
    front = pareto(rows, cost)
    assert len(on_it) == len(front) == len(page.all(".plot .ring"))
    assert all(any(mine.startswith(label(row)) for mine in on_it) for row in front)


def test_the_front_of_any_points_is_that_of_the_answer(page):
    """On few values, so that many are equal."""
    points = np.random.default_rng(0).integers(1, 7, (20, 30, 2)).tolist()
    found = page.js(
        "return arguments[0].map((points) => pareto(points.map(([x, y]) => ({ x, y }))).map(({ x, y }) => [x, y]));", points
    )
    for each, front in zip(points, found, strict=True):
        expected = pareto([{"spent": x, "rmse": y} for x, y in each])
        assert front == [[row["spent"], row["rmse"]] for row in expected]


def test_points_are_where_logarithms_say(page):
    page.choose(".curves [name=grid]", "logsnr")
    places = page.js(
        "return all('[data-solver=ddim] .mark').map((m) => m.transform.baseVal[0].matrix).map((at) => [at.e, at.f]);"
    )
    rows = [row for row in mixed() if row["solver"] == "ddim" and row["grid"] == "logsnr"]
    for axis, name in ((0, "spent"), (1, "rmse")):
        logs, pixels = np.log([row[name] for row in rows]), np.array([place[axis] for place in places])
        slope = (pixels[-1] - pixels[0]) / (logs[-1] - logs[0])
        np.testing.assert_allclose(pixels - pixels[0], slope * (logs - logs[0]), atol=0.01)
        assert abs(slope) > 50


def test_another_measure_and_the_best_grid(page):
    assert len(page.marks()) == 3 * 3 + 3 + 1  # a point a solver and budget
    assert all("time" not in label for label in page.marks() if label.startswith(("ddim", "dpmpp", "unipc")))
    page.choose(".curves [name=measure]", "worst")
    assert all("error of the worst sample" in label for label in page.marks())


def test_points_are_reached_by_keys_and_say_what_they_are(page):
    first = page.one('.plot .mark[tabindex="0"]')
    page.js("arguments[0].focus()", first)
    tip = page.one(".tip")
    assert tip.is_displayed()
    assert tip.text.startswith("ddim, logsnr")
    before = tip.text
    page.press(RIGHT)
    assert tip.text != before
    assert "10 NFE" in tip.text
    page.press(DOWN)
    assert tip.text.startswith("dpmpp2m, logsnr")
    assert "10 NFE" in tip.text
    assert [g.get_attribute("data-solver") for g in page.all(".dimmed .lit")] == ["dpmpp2m"]
    assert len(page.all('.plot .mark[tabindex="0"]')) == 1


def test_the_pointer_shows_the_nearest_point(page):
    mark = page.all('[data-solver="unipc3"] .mark')[-1]
    page.js("arguments[0].scrollIntoView({block: 'center'})", mark)
    page.hands().move_to_element_with_offset(mark, 5, 5).perform()
    assert page.one(".tip").text.startswith("unipc3")
    page.hands().move_to_element(page.one("h3[id$=provenance]")).perform()
    assert not page.one(".tip").is_displayed()


def soon(holds):
    """What the browser is told arrives within two seconds."""
    end = time.monotonic() + 2
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def background(page):
    red, green, blue = page.js("return getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")
    return int(red) + int(green) + int(blue)


def test_dark_where_the_system_is_and_by_the_button(page):
    button = page.driver.find_element("id", "theme")
    for system, bright, other in (("light", True, "Dark"), ("dark", False, "Light")):
        media = {"features": [{"name": "prefers-color-scheme", "value": system}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        soon(lambda bright=bright, other=other: (background(page) > 600) == bright and button.text == other)
    assert background(page) < 120
    page.click(button)
    assert background(page) > 600
    assert button.text == "Dark"
    page.click(button)
    assert background(page) < 120


@pytest.mark.parametrize("name", ["two", "many", "hostile"])
def test_no_page_scrolls_sideways(driver, pages, name):
    opened(driver, pages(name))
    page = Page(driver)
    for tab in page.driver.find_elements("css selector", "[role=tab]") or [None]:
        if tab:
            page.click(tab)
        for width in (320, 360, 800, 970):
            resize(driver, width, 740)
            assert page.js("return innerWidth") == width  # which is larger where a page does not fit
            assert page.js("return document.documentElement.scrollWidth") <= width
    assert complaints(driver) == []


def test_tabs_change_the_comparison_and_the_address_keeps_it(page):
    page.click(page.driver.find_elements("css selector", "[role=tab]")[1])
    assert page.one("h2").text == "mixture"
    assert len(page.all(".rows tbody tr")) == len(fixed())
    assert page.marks()
    page.press(LEFT)
    assert page.one("h2").text == "fashion"
    page.press(RIGHT)
    page.driver.refresh()
    assert page.one("h2").text == "mixture"


def test_the_tab_key_reaches_every_control_and_leaves(page):
    seen = []
    for _ in range(80):
        page.press(TAB)
        seen.append(
            page.js(
                """
                const { name, dataset, id, textContent, className } = document.activeElement;
                if (document.activeElement === document.body) return "end";
                return name || dataset.key || id || dataset.show || textContent.trim() || className.baseVal || className;
                """
            )
        )
        if seen[-1] == "end":
            break
    assert seen[0] == "Skip to the results"
    assert seen[-1] == "end"
    assert {"theme", "tab-comparison-1", "cost", "measure", "grid", "all", "none", "unipc3"} <= set(seen)
    assert {"nfe", "first", "difference", "gain", "filter", "rmse"} <= set(seen)
    assert "tab-comparison-2" not in seen  # arrow keys go there
    assert seen.count("mark") == 1  # and to the other points


def test_focus_is_seen(page):
    page.press(TAB)
    skip = page.driver.switch_to.active_element
    assert skip.rect["x"] >= 0
    assert page.js("return getComputedStyle(arguments[0]).outlineStyle", skip) == "solid"
    skip.send_keys(ENTER)
    assert page.js("return document.activeElement.id") == "main"


def test_less_motion_where_that_is_preferred(page):
    moving = "return getComputedStyle(document.querySelector('.series')).transitionDuration"
    assert page.js(moving) != "0s"
    media = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    assert page.js(moving) == "0s"


def test_nothing_is_loaded_and_nothing_can_be(page):
    names = page.js("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith("blob:") for name in names)
    page.js(
        """
        const [script, image] = ["script", "img"].map((tag) => document.createElement(tag));
        window.stolen = 0;
        script.textContent = "window.stolen = 1";
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(script, image);
        """
    )
    time.sleep(0.1)
    assert page.js("return window.stolen") == 0
    refused = complaints(page.driver)
    assert len(refused) == 2
    assert all("Content Security Policy" in message for message in refused)


def test_what_is_hostile_is_shown_and_does_nothing(driver, pages):
    opened(driver, pages("hostile"))
    page = Page(driver)
    assert page.js("return window.stolen") is None
    assert page.one("h2").text == HOSTILE
    assert HOSTILE in page.driver.title
    assert HOSTILE in [key.text for key in page.all(".keys button")]
    page.click(page.all(".keys button")[1])
    page.js("arguments[0].focus()", page.one('.plot .mark[tabindex="0"]'))
    assert page.one(".tip").text.startswith(HOSTILE)
    assert page.js("return window.stolen") is None
    assert complaints(driver) == []


def test_adaptive_solvers_alone_have_no_slider_and_their_pictures(driver, tmp_path):
    report.write_report([comparison(tmp_path / "x", adaptive())], tmp_path / "x.html")
    opened(driver, (tmp_path / "x.html").as_uri())
    page = Page(driver)
    assert page.all(".wall input[type=range]") == []
    assert page.wall() == {"reference": REFERENCE, "dpm23": grey(2)}
    assert len(page.marks()) == 3
    assert complaints(driver) == []


def test_forty_solvers_are_drawn_apart(driver, pages):
    opened(driver, pages("many"))
    page = Page(driver)
    looks = page.js("return all('.keys g').map((g) => g.style.getPropertyValue('--colour') + g.lastChild.getAttribute('d'));")
    assert len(looks) == len(set(looks)) == 40
    assert complaints(driver) == []


def test_the_screenshot_is_of_the_top_of_the_page(driver, pages, tmp_path):
    from pathlib import Path
    from urllib.parse import unquote, urlparse

    save_screenshot(Path(unquote(urlparse(pages("two")).path)), tmp_path / "p.png", width=500, height=400)
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (500, 400)
        assert len(np.unique(image.convert("L"))) > 20
