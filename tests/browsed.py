"""A real headless Chromium that looks at the page of a real server; skips where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP, PHONE = ViewportSize(width=1280, height=860), ViewportSize(width=390, height=844)
_FLAGS = [
    "--disable-gpu",
    "--in-process-gpu",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
_SERIOUS = ("serious", "critical")
PATIENCE = 30_000
"""Milliseconds."""
_FORGET = """(key) => new Promise((resolve, reject) => {
    localStorage.clear();
    sessionStorage.clear();
    if (key !== null) sessionStorage.setItem("ayaedge-key", key);
    const forgetting = indexedDB.deleteDatabase("ayaedge");
    forgetting.onsuccess = resolve;
    forgetting.onerror = reject;
})"""
_STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@contextmanager
def browser() -> Iterator[Browser]:
    """Debian's Chromium; nothing is downloaded."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian's package chromium)")
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=[*_FLAGS, *root])
        try:
            yield opened
        finally:
            opened.close()


class Visitor:
    """One page for many tests, because each new one costs a second of work: `visit` begins afresh."""

    def __init__(self, browser: Browser, url: str):
        self.url = url
        context = browser.new_context(
            viewport=DESKTOP,
            locale="en-GB",
            reduced_motion="reduce",
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self._asked: list[str] = []
        self._faults: list[str] = []
        self.page.on("request", lambda request: self._asked.append(request.url))
        self.page.on("pageerror", lambda error: self._faults.append(str(error)))
        self.page.on("console", lambda said: self._faults.append(said.text) if said.type == "error" else None)

    @contextmanager
    def visit(self, key: str | None) -> Iterator[Page]:
        """The page with nothing kept; at the end it has asked nobody else, and broken neither its policy nor itself."""
        page = self.page
        if not page.url.startswith(self.url):
            page.goto(f"{self.url}/static/icon.svg")  # to be of this origin
        page.evaluate(_FORGET, key)
        page.goto(self.url)
        page.locator("body[data-ready]").wait_for()
        try:
            yield page
        finally:
            page.unroute_all()
        assert not [one for one in self._asked if not one.startswith((self.url, "blob:", "data:"))]
        assert not [one for one in self._faults if "Failed to load resource" not in one]


def serious(page: Page) -> list[str]:
    """What axe finds on the page as it is that would keep somebody from using it."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE_FILE_PATH.read_text("utf-8"))
    found = page.evaluate(
        "(runOnly) => axe.run(document, {resultTypes: ['violations'], runOnly})", _STANDARDS
    )
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found["violations"]
        if one["impact"] in _SERIOUS
        for node in one["nodes"]
    ]
