"""The page in a real browser, headless: sliders move bars, keys and addresses work, nothing breaks.

Needs Chromium: `apt install chromium`, or CHROMIUM=/path/to/it.
"""

import os
import shutil

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install it, or set CHROMIUM to its path"
)

BARS = "Bokeh.documents[0].get_model_by_name('{}').data.top"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def visit(browser, address):
    """Open the page at a setting; what went wrong or over the network fails the test."""
    tabs, troubles = [], []

    def open_at(setting="", **options):
        tab = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
        tabs.append(tab)
        tab.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        tab.on(
            "console",
            lambda said: said.type in ("error", "warning") and troubles.append(said.text),
        )
        tab.on(
            "request",
            lambda asked: (
                asked.url.startswith(("file:", "data:", "blob:"))
                or troubles.append(f"request: {asked.url}")
            ),
        )
        tab.goto(f"{address}#{setting}")
        tab.wait_for_function("document.body.dataset.ready === 'true'")
        return tab

    yield open_at
    for tab in tabs:
        tab.close()
    assert troubles == []


def bars(tab, name="policy_bars"):
    return np.array(list(tab.evaluate(f"Array.from({BARS.format(name)})")), float)


def setting(tab):
    return dict(part.split("=") for part in tab.evaluate("location.hash.slice(1)").split("&"))


def picture(tab):
    tab.wait_for_timeout(150)  # Bokeh paints in the next frames
    return tab.locator("figure").first.screenshot()


def test_bars_are_the_policies_of_the_sweep_wherever_the_sliders_stand(visit, dataset):
    tab = visit()
    for chosen in (
        {"loss": "dpo", "centre": 5.0, "coverage": 0.5, "step_size": 1.0, "step": 100},
        {"loss": "reverse_kl", "centre": 8.0, "coverage": 1.0, "step_size": 30.0, "step": 1},
        {"loss": "best_of_n", "centre": 2.0, "coverage": 0.5, "step_size": 1.0, "step": 10},
    ):
        tab.evaluate(f"location.hash = '{'&'.join(f'{k}={v}' for k, v in chosen.items())}'")
        tab.wait_for_function(f"document.getElementById('loss').value === '{chosen['loss']}'")
        one = dataset.sel(**chosen)
        np.testing.assert_allclose(np.sqrt(bars(tab)), np.sqrt(one["policy"]), atol=3e-3)
        share = one["push"] / np.abs(one["push"]).max()
        np.testing.assert_allclose(bars(tab, "push_bars"), share, atol=5e-3)
        most = float(tab.locator("#pushed").inner_text().split()[3])
        assert most == pytest.approx(chosen["step_size"] * float(abs(one["push"]).max()), rel=0.05)
        said = f"{round(100 * float(one['reward']))}% of the largest reward"
        assert said in tab.locator("#said").inner_text()


@pytest.mark.parametrize("name", ["centre", "coverage", "step_size", "step"])
def test_every_slider_moves_with_the_keyboard_and_repaints_the_bars(visit, name):
    start = "loss=dpo&centre=5&coverage=0.5&step_size=1&step=10"
    tab = visit(start)
    before, seen = bars(tab), picture(tab)
    tab.locator(f"#{name}").focus()
    tab.keyboard.press("ArrowRight")
    assert np.abs(bars(tab) - before).max() > 1e-4
    assert picture(tab) != seen
    assert setting(tab)[name] != dict(part.split("=") for part in start.split("&"))[name]
    tab.keyboard.press("ArrowLeft")
    np.testing.assert_array_equal(bars(tab), before)
    assert "&".join(f"{k}={v}" for k, v in setting(tab).items()) == start


def test_the_menu_changes_the_method_its_colour_and_its_formula(visit):
    tab = visit("loss=dpo&step=100")
    before = bars(tab)
    tab.locator("#loss").select_option("reverse_kl")
    assert np.abs(bars(tab) - before).max() > 1e-3
    assert tab.locator("#formula").inner_text().startswith("reverse KL minimises")
    assert tab.locator("#coverage").is_disabled()
    assert "not in the data" not in tab.locator("#said").inner_text()
    tab.locator("#loss").select_option("ipo")
    assert tab.locator("#coverage").is_enabled()


def test_play_runs_to_the_last_step_and_stops_and_space_does_the_same(visit):
    tab = visit("loss=reverse_kl&step=0&step_size=1")
    tab.locator("#play").click()
    assert tab.locator("#play").inner_text() == "Stop"
    tab.wait_for_function("document.getElementById('play').textContent === 'Play'")
    assert setting(tab)["step"] == "100"
    tab.locator("#start").click()
    assert setting(tab)["step"] == "0"
    tab.locator("#step").focus()
    tab.keyboard.press("Space")
    tab.wait_for_function("location.hash.includes('step=2')")
    tab.keyboard.press("Space")
    assert tab.locator("#play").inner_text() == "Play"


def test_an_address_of_another_page_opens_at_the_nearest_setting(visit):
    tab = visit("loss=nonsense&centre=7.4&coverage=&step_size=abc&step=1e9")
    assert tab.locator("#loss").input_value() == "dpo"
    tab.locator("#step").focus()
    tab.keyboard.press("Home")
    assert setting(tab)["centre"] == "8"
    assert setting(tab)["coverage"] == "0.5"
    assert setting(tab)["step"] == "0"


def test_a_run_that_diverged_says_so_and_shows_no_bars(visit):
    tab = visit("loss=ipo&step_size=30&step=100")
    assert "diverged after" in tab.locator("#said").inner_text()
    assert np.isnan(bars(tab)).all()


@pytest.mark.parametrize("width", [360, 390])
def test_on_a_phone_nothing_is_cut_off_and_the_bars_stay_beside_the_sliders(visit, width):
    tab = visit("loss=dpo&step=10", viewport={"width": width, "height": 844}, has_touch=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    plot = tab.locator("figure").first.bounding_box()
    controls = tab.locator("#controls").bounding_box()
    assert plot["y"] + plot["height"] <= controls["y"]
    assert controls["y"] + controls["height"] <= 844 + 1
    for part in tab.locator("figure, .legend, .control, button, canvas").all():
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_every_control_has_a_name_and_its_label_leads_to_it(visit):
    tab = visit()
    for name in ("Reward centre (C1)", "Coverage (C2)", "Step size", "Training step"):
        slider = tab.get_by_role("slider", name=name)
        assert slider.count() == 1
        tab.get_by_text(name, exact=True).click()
        assert slider.evaluate("slider => slider === document.activeElement")
    assert tab.get_by_role("combobox", name="Method").count() == 1


def test_without_what_it_needs_it_says_so(browser, address):
    tab = browser.new_page()
    tab.add_init_script("delete window.DecompressionStream")
    tab.goto(address)
    tab.wait_for_function("document.getElementById('said').textContent.includes('cannot show')")
    tab.close()
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(address)
    assert "needs JavaScript" in tab.locator("#said").inner_text()
    context.close()


def test_a_method_that_rests_pushes_nobody(visit, dataset):
    one = dataset["push"].sel(loss="reverse_kl", centre=5, coverage=1.0, step_size=1.0)
    tab = visit("loss=reverse_kl&centre=5&coverage=1&step_size=1&step=100")
    if float(abs(one.sel(step=100)).max()) < 1e-3 * float(abs(one).max()):
        assert not bars(tab, "push_bars").any()
        assert tab.locator("#pushed").inner_text() == "nobody"
    else:
        assert np.abs(bars(tab, "push_bars")).max() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("scheme", "paper"), [("light", 255), ("dark", 22)])
def test_it_follows_the_system_in_light_and_dark_until_told_otherwise(visit, scheme, paper):
    tab = visit("loss=dpo", color_scheme=scheme)

    def background():
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    assert background().startswith(f"rgb({paper},")
    other = {"light": "dark", "dark": "light"}[scheme]
    tab.emulate_media(color_scheme=other)
    tab.wait_for_function(
        f"document.getElementById('theme').textContent.toLowerCase() === '{scheme}'"
    )
    assert not background().startswith(f"rgb({paper},")
    tab.locator("#theme").click()
    assert background().startswith(f"rgb({paper},")
    assert setting(tab)["theme"] == scheme
