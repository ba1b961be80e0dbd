"""A visitor of a page: headless Chromium, driven by selenium. For tests of the demo and for its screenshots."""

import os
import shutil
import tempfile

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
PATIENCE = 60
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Visitor:
    """A browser window on the page."""

    def __init__(self, address, width=1280, height=900, dark=False):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        self.profile = tempfile.mkdtemp(prefix="demo-browser-")
        for switch in (*SWITCHES, f"--user-data-dir={self.profile}", f"--window-size={width},{height}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.resize(width, height)
        self.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        if dark:
            scheme = {"name": "prefers-color-scheme", "value": "dark"}
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.address = address

    def resize(self, width, height):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )

    def open(self):
        self.driver.get(self.address)
        self.wait_for("#vg-run")
        # The built-in model's page opens with an answered example; its controls are ready after that.
        self.wait_until_idle("#vg-guarded .vg-facts")
        return self

    def close(self):
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def until(self, condition, what):
        WebDriverWait(self.driver, PATIENCE, poll_frequency=0.1, ignored_exceptions=None).until(
            lambda driver: condition(), f"waited {PATIENCE} s for {what}"
        )

    def wait_for(self, css):
        self.until(lambda: self.all(css), css)
        return self.one(css)

    def wait_until_idle(self, css):
        self.until(
            lambda: self.all(css) and self.one("#vg-run").is_enabled() and not self.one("#vg-stop").is_enabled(), css
        )

    def text(self, css):
        return self.driver.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", css)

    def press(self, css, number=0):
        element = self.all(css)[number]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def unfold(self, section, inside):
        """Open a folded section and wait for what is inside. A press that the page was too busy to see is repeated."""

        def opened():
            if self.all(inside):
                return True
            if not self.all(f"{section} button.open"):
                self.press(f"{section} button")
            return False

        self.until(opened, f"{inside} in {section}")

    def fill(self, css, text):
        field = self.one(f"{css} textarea, {css} input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        return field

    def errors(self):
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
