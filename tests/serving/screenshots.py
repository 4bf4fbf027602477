"""Makes the pictures of the page in docs/images: `python tests/serving/screenshots.py http://127.0.0.1:8000`."""

import pathlib
import sys
import time

from playwright.sync_api import sync_playwright

IMAGES = pathlib.Path(__file__).parents[2] / "docs" / "images"
MIDDLE = 2.6  # seconds of the speech, where a word is highlighted


def main(url: str):
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--mute-audio"])
        page = browser.new_page(viewport={"width": 860, "height": 1040}, color_scheme="light")
        page.set_default_timeout(300_000)
        page.goto(url)
        page.wait_for_selector(".voice")
        page.click("#speak")
        page.wait_for_selector("#download-mp3:enabled")
        page.evaluate(f"audio.pause(); audio.currentTime = {MIDDLE}")
        time.sleep(1)
        page.screenshot(path=IMAGES / "page.png", full_page=True)
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 1000})
        page.click("summary")
        page.screenshot(path=IMAGES / "page-phone.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
