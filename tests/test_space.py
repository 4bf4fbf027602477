"""The Gradio demo answers its client, and speaks in a real Chromium."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("gradio")
client_library = pytest.importorskip("gradio_client")

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SENTENCE = "Good morning, dear listeners."
WAIT = 600  # seconds; machines that run tests may be busy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url():
    """Of a running demo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"SMALLE_MODEL": ROOT / "checkpoints" / "smalle-mini", "GRADIO_SERVER_PORT": port, "HF_HUB_OFFLINE": 1}
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", **{name: str(x) for name, x in settings.items()}}
    process = subprocess.Popen([sys.executable, ROOT / "space" / "app.py"], env=environment)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + WAIT
    try:
        while True:
            assert process.poll() is None and time.monotonic() < end
            try:
                urllib.request.urlopen(url)
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def ask(url):
    """Asks the demo: text, voice, recording, consent, seed -> the sound file of its answer."""
    client = client_library.Client(url, verbose=False)
    return lambda *arguments: client.predict(*arguments, api_name="/speak")


@pytest.fixture(scope="module")
def recording(ask):
    """The file of some seconds of speech."""
    return ask("The river was wide, and nobody knew how deep it was.", "fenrir", None, False, 0)


def test_voices_speak(ask):
    files = [ask(SENTENCE, voice, None, False, seed) for voice, seed in [("heart", 0), ("daniel", 0), ("heart", None)]]
    assert all(1 < soundfile.info(file).duration < 4 for file in files)
    assert Path(files[0]).read_bytes() == Path(files[2]).read_bytes() != Path(files[1]).read_bytes()


def test_a_recording_is_cloned_with_consent_and_a_bad_one_gets_a_clear_message(ask, recording, tmp_path):
    (tmp_path / "bad.wav").write_text("This is no sound.")
    bad, good = (client_library.handle_file(str(path)) for path in (tmp_path / "bad.wav", recording))
    with pytest.raises(Exception, match="Tick the box below the recording"):
        ask(SENTENCE, "heart", good, False, 0)
    with pytest.raises(Exception, match="^audio=bad.wav cannot be read as a sound file: expected wav"):
        ask(SENTENCE, "heart", bad, True, 0)
    cloned = ask(SENTENCE, "heart", good, True, 0)
    assert 1 < soundfile.info(cloned).duration < 4
    assert Path(cloned).read_bytes() != Path(ask(SENTENCE, "heart", None, False, 0)).read_bytes()


def test_the_page_speaks_in_chromium(url, recording, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no chromium")
    (tmp_path / "bad.wav").write_text("This is no sound.")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--mute-audio"])
        page = browser.new_page()
        page.set_default_timeout(1000 * WAIT)
        page.goto(url)
        page.get_by_label("Text").fill(SENTENCE)
        page.get_by_label("Voice", exact=True).click()
        page.get_by_role("option", name="daniel").click()
        page.get_by_role("button", name="Speak", exact=True).click()
        with page.expect_download() as download:
            page.get_by_label("Download").click()
        download.value.save_as(tmp_path / "said.wav")
        assert 1 < soundfile.info(tmp_path / "said.wav").duration < 4
        page.get_by_text("Your own voice").click()
        page.locator("input[type=file]").first.set_input_files(tmp_path / "bad.wav")
        page.get_by_role("button", name="Speak", exact=True).click()
        page.wait_for_selector("text=Tick the box below the recording")
        page.get_by_label("I am the speaker").check()
        page.get_by_role("button", name="Speak", exact=True).click()
        page.wait_for_selector("text=bad.wav cannot be read as a sound file")
        browser.close()
