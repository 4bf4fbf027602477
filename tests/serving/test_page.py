"""The page in a real Chromium: somebody types, listens, downloads, records, and makes a voice of a file."""

import os
import shutil
import time
import urllib.parse

import pytest

from smalle import voices_smalle

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("there is no chromium", allow_module_level=True)

SENTENCE = "Good morning, dear listeners."
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--mute-audio"]
WAIT = 300_000  # milliseconds; machines that run tests may be busy


@pytest.fixture(scope="module")
def browser(recording, tmp_path_factory):
    """A Chromium whose microphone hears the recording."""
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    data = bytearray(recording)
    data[4:8], data[40:44] = ((len(data) - n).to_bytes(4, "little") for n in (8, 44))  # Chromium wants sizes
    heard.write_bytes(data)
    with playwright.sync_playwright() as tool:
        flags = [*FLAGS, f"--use-file-for-fake-audio-capture={heard}"]
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(permissions=["microphone"], viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.hosts, page.errors = set(), []
    page.on("request", lambda request: page.hosts.add(urllib.parse.urlsplit(request.url).netloc))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server.url)
    page.wait_for_selector(".voice")
    yield page
    assert not page.errors
    assert page.hosts <= {urllib.parse.urlsplit(server.url).netloc, ""}  # "": blob and data URLs
    context.close()


def wait_until(page, condition):
    """Waits for a condition in JavaScript; Playwright's own wait would need the eval that the page forbids."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(f"() => Boolean({condition})"):
        assert time.monotonic() < end, condition
        time.sleep(0.1)


def speak(page, text=SENTENCE):
    page.fill("#text", text)
    page.press("#text", "Control+Enter")


def listen(page):
    """Waits until a speech is complete and was played; its seconds and words."""
    page.wait_for_selector("#download-mp3:enabled")
    wait_until(page, "audio.ended")
    return page.evaluate("audio.duration"), page.inner_text("#words").split()


def test_typed_text_is_heard_and_highlighted_and_saved(page, engine, tmp_path):
    speak(page)
    wait_until(page, "document.querySelector('#words .now')")
    seconds, words = listen(page)
    assert 1 < seconds < 4 and words == SENTENCE.split()
    assert page.inner_text("#status") == "The speech is complete."
    saved = {}
    for format in ("wav", "mp3", "srt"):
        with page.expect_download() as download:
            page.click(f"#download-{format}")
        saved[format] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[format])
    import soundfile

    for format in ("wav", "mp3"):
        info = soundfile.info(saved[format])
        assert info.samplerate == 24000 and info.duration == pytest.approx(seconds, abs=0.2)
    assert saved["srt"].read_text().startswith("1\n00:00:00,") and SENTENCE in saved["srt"].read_text()


def test_captions_end_at_the_ends_of_sentences(page):
    text = "“Hello!” said Dr. J. Smith of London. It was late, and nobody had opened the window for a very long time."
    words = [{"word": word, "start": n, "end": n + 1} for n, word in enumerate(text.split())]
    srt = page.evaluate("async (words) => (await import('./static/captions.js')).toSrt(words)", words)
    captions = [block.splitlines()[2] for block in srt.split("\n\n")]
    assert " ".join(captions) == text and max(map(len, captions)) <= 42
    assert captions[:2] == ["“Hello!”", "said Dr. J. Smith of London."]


def test_a_file_becomes_a_voice_and_a_bad_one_gets_a_clear_message(page, recording, tmp_path, monkeypatch):
    monkeypatch.setattr(voices_smalle, "TUNING_STEPS", 8)  # long enough to be seen
    (tmp_path / "bad.wav").write_text("This is no sound.")
    (tmp_path / "anna.wav").write_bytes(recording)
    page.click("summary")
    page.fill("#name", "Anna")
    page.check("#consent")
    page.click("#clone button[type=submit]")
    assert "choose a file" in page.inner_text("#clone-error")
    page.set_input_files("#file", tmp_path / "bad.wav")
    page.wait_for_selector("text=Recording: bad.wav")
    page.click("#clone button[type=submit]")
    page.wait_for_selector("text=cannot be read as a recording: expected wav, flac, ogg or mp3")
    page.set_input_files("#file", tmp_path / "anna.wav")
    page.wait_for_selector("text=Recording: anna.wav")
    page.click("#clone button[type=submit]")
    page.wait_for_selector("#clone-status:has-text('being prepared')")
    assert page.is_disabled("#create")
    page.wait_for_selector("text=The voice Anna is ready.")
    assert page.is_enabled("#create") and not page.is_visible("#preparing")
    assert page.evaluate("document.querySelector('input[name=voice]:checked').value").startswith("voice_")
    speak(page)
    assert listen(page)[0] > 1
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("[aria-label='Delete Anna']")
    page.wait_for_selector("text=The voice Anna was deleted.")
    assert page.evaluate("document.querySelector('input[name=voice]:checked').value") == "heart"


def test_without_consent_nothing_is_sent(page, server, recording, tmp_path):
    (tmp_path / "anna.wav").write_bytes(recording)
    page.click("summary")
    page.fill("#name", "Anna")
    page.set_input_files("#file", tmp_path / "anna.wav")
    page.wait_for_selector("text=Recording: anna.wav")
    page.click("#clone button[type=submit]")
    assert page.evaluate("document.activeElement.id") == "consent" and not server.service.voices.all()


def test_the_microphone_records_a_voice(page):
    page.click("summary")
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=true]")
    time.sleep(2.5)
    page.click("#record")
    page.wait_for_selector("#preview:visible")
    wait_until(page, "preview.duration > 1")


def test_stop_ends_the_work_of_the_server(page, server):
    speak(page, "The old man went down to the river and looked at the water. " * 20)
    wait_until(page, "audio.currentTime > 0.1")
    page.click("#speak")
    assert page.inner_text("#status") == "Stopped." and page.inner_text("#speak") == "Speak"
    server.wait_until_idle()


def test_errors_of_the_server_are_shown(page):
    speak(page, "。。。")
    page.wait_for_selector("#error:has-text('no words')")
    speak(page, " ")
    assert page.inner_text("#error") == "Type what shall be said."


def test_everything_has_a_name_and_fits_on_a_phone(page):
    page.click("summary")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea")].filter((x) =>
             !(x.getAttribute("aria-label") || x.labels?.length || x.innerText?.trim())).map((x) => x.outerHTML)"""
    )
    assert not unnamed
    for part in ("html", "#voices"):
        assert page.locator(part).evaluate("(part) => part.scrollWidth <= part.clientWidth"), part
    page.focus("#text")
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        order.append(
            page.evaluate("document.activeElement.title || document.activeElement.name || document.activeElement.id")
        )
    assert order[0].startswith("Hear") or order[0] == "voice"  # from the text to the voices, by the keyboard alone


def test_a_server_with_a_key_asks_for_it(browser, serve):
    with serve(api_keys=("s3cret",)) as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#key-form:visible")
        page.fill("#key", "s3cret")
        page.press("#key", "Tab")
        page.wait_for_selector(".voice")
        page.close()
