"""Uploaded voices: made with consent, usable at once, kept or forgotten; a client's names never become paths."""

import io
import json
import pathlib
import re

import numpy as np
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
soundfile = pytest.importorskip("soundfile")

from smalle.serving.voices import LOADED, VoiceStore  # noqa: E402
from smalle.voices_smalle import VoiceConverter  # noqa: E402

SENTENCE = "Good morning, dear listeners."


def connect(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def speak(client, voice):
    return client.audio.speech.create(model="tts-1", voice=voice, input=SENTENCE, response_format="pcm").content


def upload(client, recording, name="Anna", **fields):
    return client.audio.voices.create(name=name, audio_sample=recording, **{"consent": "yes", **fields})


def listed(client):
    return {x["id"]: x["name"] for x in client.get("/audio/voices", cast_to=dict)["data"] if x["type"] != "preset"}


@pytest.fixture
def client(server):
    return connect(server)


def test_a_recording_becomes_a_voice_and_is_deleted(client, recording, monkeypatch):
    network_of, built = VoiceConverter.network_of, []
    monkeypatch.setattr(VoiceConverter, "network_of", lambda *x: (built.append(1), network_of(*x))[1])
    voice = upload(client, recording)
    assert re.fullmatch("voice_[0-9a-f]{24}", voice.id) and listed(client)[voice.id] == "Anna"
    by_id, by_name, other = speak(client, {"id": voice.id}), speak(client, "Anna"), speak(client, "heart")
    assert by_id == by_name != other and len(built) == 1  # the network of a voice is kept
    assert client.audio.voices.delete(voice.id).deleted
    for call in (lambda: client.audio.voices.delete(voice.id), lambda: speak(client, {"id": voice.id})):
        with pytest.raises(openai.NotFoundError):
            call()


def test_marks_in_a_text_may_name_an_uploaded_voice(client, recording):
    voice = upload(client, recording, name="Anna of the river")
    marked = f'<speak><voice name="Anna of the river">{SENTENCE}</voice></speak>'
    arguments = {"model": "tts-1", "voice": "heart", "response_format": "pcm"}
    assert client.audio.speech.create(input=marked, **arguments).content == speak(client, {"id": voice.id})
    client.audio.voices.delete(voice.id)
    with pytest.raises(openai.BadRequestError, match="not known"):
        client.audio.speech.create(input=marked, **arguments)


def test_the_default_checkpoint_needs_no_transcript(client, recording):
    said = "The river was wide, and nobody knew how deep it was."
    voices = [upload(client, recording, extra_body={"transcript": said}), upload(client, recording)]
    speeches = [speak(client, {"id": voice.id}) for voice in voices]
    for voice in voices:
        client.audio.voices.delete(voice.id)
    assert speeches[0] == speeches[1]


def test_voices_on_disk_outlive_the_server_and_others_do_not(serve, recording, tmp_path):
    folder = tmp_path / "voices"
    with serve(voices=str(folder)) as server:
        voice = upload(connect(server), recording)
        speech = speak(connect(server), {"id": voice.id})
    with serve(voices=str(folder)) as server, serve(voices=str(folder)) as another:
        assert speak(connect(server), {"id": voice.id}) == speech
        connect(another).audio.voices.delete(voice.id)
        assert not listed(connect(server)) and not list(folder.iterdir())
    with serve() as server:
        assert not listed(connect(server))


def test_voices_of_a_folder_are_read_when_they_are_used(tmp_path):
    class CountingEngine:
        voices, read = ("heart",), []

        def save_voice(self, path, voice):
            path.write_text(voice)

        def load_voice(self, path):
            self.read.append(path.read_text())
            return self.read[-1]

    one = VoiceStore(CountingEngine(), str(tmp_path), most=2 * LOADED)
    added = [one.add(f"Anna {n}", f"voice {n}") for n in range(2 * LOADED)]
    another, memory = VoiceStore(one.engine, str(tmp_path)), VoiceStore(one.engine)
    kept = memory.add("Anna", "voice")
    unused = next(n for n, voice in enumerate(added) if voice.id not in another._loaded)
    one.engine.read.clear()
    for name in (f"Anna {unused}", added[unused].id):
        assert (another[name], memory["Anna"]) == (f"voice {unused}", "voice")
    assert one.engine.read == [f"voice {unused}"]  # once
    assert [another[x.id] for x in added] == [f"voice {n}" for n in range(2 * LOADED)]
    assert len(another._loaded) == LOADED and kept.id in memory
    assert one.delete(added[0].id) and added[0].id not in another and "Anna 0" not in set(another)
    with pytest.raises(ValueError, match="delete one first"):
        [one.add("Anna", "voice") for _ in range(2)]


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file cannot be written: expected a folder"):
        VoiceStore(None, str(tmp_path / "file"))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match="cannot be written: expected a folder"):
        VoiceStore(None, str(tmp_path))


def test_damaged_and_strange_folders_are_not_voices(serve, recording, tmp_path):
    with serve(voices=str(tmp_path)) as server:
        voice = upload(connect(server), recording)
    (tmp_path / voice.id / "voice.safetensors").write_bytes(b"no")
    for name in ("voice_zz", "notes"):
        (tmp_path / name).mkdir()
    with serve(voices=str(tmp_path)) as server:
        assert not listed(connect(server))
        with pytest.raises(openai.NotFoundError):
            connect(server).audio.voices.delete("notes")
        assert (tmp_path / "notes").is_dir()


@pytest.mark.parametrize("name", ["../../evil", "a/b", "/etc/passwd", "..", "con:", "💡", "a" * 64])
def test_any_name_is_only_a_name(serve, recording, tmp_path, name):
    folder = tmp_path / "inside" / "voices"
    with serve(voices=str(folder)) as server:
        voice = upload(connect(server), recording, name=name)
        assert listed(connect(server)) == {voice.id: name}
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    kept = pathlib.Path("inside", "voices", voice.id)
    assert sorted(files) == [kept / "about.json", kept / "voice.safetensors"]
    assert json.loads((tmp_path / kept / "about.json").read_text())["name"] == name


def wav(seconds, level=0.3, rate=24000, channels=1):
    file, noise = io.BytesIO(), np.random.default_rng(0).normal(size=(int(seconds * rate), channels))
    soundfile.write(file, (level * noise).clip(-1, 1), rate, format="WAV")
    return file.getvalue()


@pytest.mark.parametrize(
    "recording, fields, part",
    [
        (b"This is a text.", {}, "wav, flac, ogg or mp3"),
        (b"", {}, "wav, flac, ogg or mp3"),
        (wav(0.3), {}, "0.3 s"),
        (wav(31, rate=8000), {}, "more than 30 s"),
        (wav(2, level=0), {}, "silent"),
        (wav(2, channels=9), {}, "channels"),
        (wav(2, rate=200_000), {}, "samples a second"),
        (wav(2), {"consent": "no"}, "consent"),
        (wav(2), {"consent": ""}, "consent"),
        (wav(2), {"name": " "}, "name"),
        (wav(2), {"name": "heart"}, "preset"),
        (wav(2), {"name": "a\nb"}, "printable"),
        (wav(2), {}, "steady"),
    ],
)
def test_what_cannot_be_a_voice_is_refused_with_a_reason(client, recording, fields, part):
    with pytest.raises(openai.BadRequestError) as caught:
        upload(client, recording, **fields)
    assert part in caught.value.body["message"] and not listed(client)


def test_headers_that_promise_hours_are_not_believed(client, recording):
    data = bytearray(recording[:96_044])
    data[40:44] = (0x7FFFFFF0).to_bytes(4, "little")  # the size of the samples
    data[4:8] = (0x7FFFFFFF).to_bytes(4, "little")
    voice = upload(client, bytes(data))  # two seconds, whatever the header says
    client.audio.voices.delete(voice.id)


def test_too_much_is_refused(serve, recording):
    with serve(max_upload=len(recording) + 10_000, max_voices=1) as server:
        client = connect(server)
        with pytest.raises(openai.APIStatusError) as caught:
            upload(client, recording + bytes(20_000))
        assert caught.value.status_code == 413 and "too large" in caught.value.body["message"]
        upload(client, recording)
        with pytest.raises(openai.BadRequestError, match="delete one"):
            upload(client, recording)
