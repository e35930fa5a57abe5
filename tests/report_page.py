"""The report in a browser, for tests: what its reader sees and does. Imports selenium."""

import json

import pytest
from report_logs import MODELS
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

# Texts whose colour stands out from their ground by less than WCAG's 4.5 to 1.
CONTRASTS = """
const part = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const parse = (css) => css.match(/[\\d.]+/g).map(Number);
const ground = (e) => {  // half transparent colours lie over what is behind them
  if (!e) return [255, 255, 255];
  const c = parse(getComputedStyle(e).backgroundColor), alpha = c[3] ?? 1;
  if (alpha === 1) return c;
  const behind = ground(e.parentElement);
  return alpha === 0 ? behind : [0, 1, 2].map((n) => alpha * c[n] + (1 - alpha) * behind[n]);
};
const poor = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !e.getClientRects().length || e.closest("script, option, .skip")) continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 40), ratio.toFixed(2)]);
}
return poor;
"""


class Page:
    """The open report, as its reader sees it."""

    def __init__(self, driver, address: str, fragment: str = ""):
        self.driver = driver
        driver.get("about:blank")
        for kind in ("browser", "performance"):
            driver.get_log(kind)
        driver.get(address + fragment)
        WebDriverWait(driver, 10).until(lambda d: d.find_element(By.CSS_SELECTOR, "#detail .answers"))

    def all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.driver.execute_script(script, selector)

    def classes(self, panel) -> list[str]:
        """What the tokens of a panel are coloured by."""
        return [t.get_attribute("class").removeprefix("tk ") for t in panel.find_elements(By.CLASS_NAME, "tk")]

    @property
    def count(self) -> str:
        return self.one("#count").text

    @property
    def shown(self) -> list[int]:
        """Places of the items whose rows are in the page, from top to bottom."""
        script = """return [...document.querySelectorAll("#list .row")]
            .sort((a, b) => a.getAttribute("aria-posinset") - b.getAttribute("aria-posinset"))
            .map((row) => Number(row.id.slice(4)))"""
        return self.driver.execute_script(script)

    @property
    def chosen(self) -> int:
        (row,) = self.all("#list [aria-selected=true]")
        assert self.one("#list").get_attribute("aria-activedescendant") == row.get_attribute("id")
        return int(row.get_attribute("id")[4:])

    def filter(self, value: str) -> "Page":
        Select(self.one("#filter")).select_by_value(value)
        return self

    def sort(self, value: str) -> "Page":
        Select(self.one("#sort")).select_by_value(value)
        return self

    def pick(self, side: str, model: str) -> "Page":
        """`side`: a or b."""
        Select(self.one(f"#{side}")).select_by_value(model)
        return self

    def follow(self, fragment: str) -> "Page":
        """What a link to a place in the page does."""
        self.driver.execute_script("location.hash = arguments[0]", fragment)
        self.driver.execute_async_script("setTimeout(arguments[0], 50)")
        return self

    def search(self, text: str) -> "Page":
        self.one("#search").clear()
        self.one("#search").send_keys(text)
        return self

    def press(self, *keys: str) -> "Page":
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)
        return self

    def card(self, model: str):
        return self.all("#detail .answer")[MODELS.index(model)]

    def unharmed(self) -> None:
        """Nothing foreign ran, no window popped up, no address but our own file was asked for, no error was logged."""
        with pytest.raises(NoAlertPresentException):
            self.driver.switch_to.alert  # noqa: B018 - looking for it is the test
        assert self.driver.execute_script("return window.owned") is None
        assert self.driver.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
        assert all(url.startswith(("file:", "data:", "about:")) for url in asked), asked
