"""OpenAI's own Python client works unchanged against a running server."""

import base64
import http.client
import io
import json
import threading
import urllib.parse

import numpy as np
import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")

from smalle.audio_smalle import pcm16  # noqa: E402

SENTENCE = "Good morning, dear listeners."
LONG = "The old man went down to the river and looked at the water for a long time. " * 20


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture(scope="module")
def wave(engine):
    """What the engine says without a server (L,)."""
    parts = engine.speak(SENTENCE, "heart", 0, False, threading.Event())
    return np.concatenate([part.samples for part in parts])


def speak(client, **changes):
    arguments = {"model": "tts-1", "voice": "heart", "input": SENTENCE, **changes}
    with client.audio.speech.with_streaming_response.create(**arguments) as response:
        return response.headers["content-type"], b"".join(response.iter_bytes())


def events(client, **changes):
    _, data = speak(client, stream_format="sse", **changes)
    return [json.loads(line.removeprefix("data: ")) for line in data.decode().split("\n\n") if line]


def test_pcm_and_wav_are_the_samples_of_the_engine(client, wave):
    assert speak(client, response_format="pcm") == ("audio/pcm", pcm16(wave))
    kind, data = speak(client, response_format="wav")
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert (kind, rate) == ("audio/wav", 24000) and samples.tobytes() == pcm16(wave)


@pytest.mark.parametrize("format, kind", [("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("flac", "audio/flac")])
def test_compressed_speech_is_the_same_speech(client, wave, format, kind):
    given, data = speak(client, response_format=format)
    with av.open(io.BytesIO(data)) as file:  # soundfile cannot read a flac that does not say its length
        frames = list(file.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])[:: frames[0].sample_rate // 24000]
    assert given == kind and 0 <= len(samples) - len(wave) < 3000  # padding of mp3
    spectra = [np.abs(np.fft.rfft(x, 1 << 18))[:40000] for x in (samples, wave)]
    assert np.corrcoef(*spectra)[0, 1] > 0.98


@pytest.mark.parametrize("format", ["wav", "flac"])
def test_a_whole_file_names_its_length_and_holds_the_samples(client, wave, format):
    arguments = {"model": "tts-1", "voice": "heart", "input": SENTENCE, "response_format": format}
    with client.audio.speech.with_streaming_response.create(**arguments, extra_body={"stream": False}) as response:
        length, data = int(response.headers["content-length"]), response.read()
    samples, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    assert length == len(data) and samples.tobytes() == pcm16(wave)


def test_first_bytes_come_while_the_speech_is_made(client, server):
    arguments = {"model": "tts-1", "voice": "heart", "input": LONG, "response_format": "mp3"}
    with client.audio.speech.with_streaming_response.create(**arguments) as response:
        assert next(response.iter_bytes(chunk_size=1024)) and server.service.pool.running == 1
    server.wait_until_idle()


def test_events_carry_the_same_bytes_and_the_times_of_words(client, wave):
    received = events(client, response_format="pcm", extra_body={"timestamp_granularities": ["word"]})
    audio = b"".join(base64.b64decode(x["audio"]) for x in received if x["type"] == "speech.audio.delta")
    words = [word for x in received if x["type"] == "speech.words" for word in x["words"]]
    assert audio == pcm16(wave) and received[-1]["type"] == "speech.audio.done"
    assert [word["word"] for word in words] == ["Good", "morning", "dear", "listeners"]
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[-1] <= len(wave) / 24000


def test_speed_changes_the_length_and_the_times_of_words(client, wave):
    timed = {"response_format": "pcm", "extra_body": {"timestamp_granularities": ["word"]}}
    slow, fast = (events(client, speed=speed, **timed) for speed in (0.5, 2.0))
    sizes = [sum(len(base64.b64decode(x["audio"])) for x in y if "audio" in x) // 2 for y in (slow, fast)]
    assert sizes == [len(wave) * 2, len(wave) // 2]
    last = [[x for x in y if "words" in x][-1]["words"][-1]["end"] for y in (slow, fast)]
    assert last[0] == pytest.approx(4 * last[1])


def test_pauses_in_the_text_are_kept_and_what_follows_is_said(client, wave):
    timed = {"response_format": "pcm", "extra_body": {"timestamp_granularities": ["word"]}}
    received = events(client, input=f"{SENTENCE} [pause 2s] {SENTENCE}", **timed)
    words = [word for x in received if "words" in x for word in x["words"]]
    assert [word["word"] for word in words] == ["Good", "morning", "dear", "listeners"] * 2
    assert words[4]["start"] >= words[3]["end"] + 2


def test_seed_changes_the_reading(client):
    one, again, other = (speak(client, response_format="pcm", extra_body={"seed": seed}) for seed in (0, 0, 1))
    assert one == again != other


def test_models_and_voices_are_listed(client, server, engine):
    names = [model.id for model in client.models.list()]
    assert names[0] == engine.name == "smalle-mini" and "tts-1" in names
    assert client.models.retrieve("smalle-mini").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/model")


def test_voices_of_openai_stand_for_presets(client):
    assert speak(client, voice="alloy") == speak(client, voice="heart") != speak(client, voice="onyx")


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"voice": "nobody"}, "nobody"),
        ({"voice": {"id": "voice_" + "0" * 24}}, "not known"),
        ({"voice": "../../etc/passwd"}, "not known"),
        ({"model": "other"}, "smalle-mini"),
        ({"response_format": "aac"}, "mp3"),
        ({"response_format": "xyz"}, "response_format"),
        ({"speed": 5}, "speed"),
        ({"input": ""}, "no words"),
        ({"input": "。。。"}, "no words"),
        ({"input": "a" * 4097}, "4096"),
        ({"extra_body": {"timestamp_granularities": ["word"]}}, "sse"),
        ({"extra_body": {"seed": -1}}, "seed"),
    ],
)
def test_wrong_requests_get_an_error_of_openai(client, changes, part):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        speak(client, **changes)
    assert part in caught.value.body["message"] and caught.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", ["", "{", "[]", "5", '{"model": "tts-1", "voice": "heart", "input": "\\ud800"}'])
def test_what_is_no_request_is_refused(server, body):
    status, _, answer = get(server.url, "/v1/audio/speech", "POST", body, content_type="application/json")
    assert status == 400 and json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_pauses_cannot_make_a_speech_endless(serve):
    with serve(max_seconds=90) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        received = events(client, input="[pause 60s] Hello. [pause 60s] Goodbye.")
        assert received[-1]["type"] == "error" and "90 s" in received[-1]["error"]["message"]


def test_a_full_queue_answers_429_and_says_when_to_come_back(serve):
    with serve(streams=1, queue=0) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        arguments = {"model": "tts-1", "voice": "heart", "input": LONG, "response_format": "pcm"}
        with client.audio.speech.with_streaming_response.create(**arguments):
            with pytest.raises(openai.RateLimitError) as caught:
                speak(client)
            assert int(caught.value.response.headers["retry-after"]) >= 1
        server.wait_until_idle()
        assert speak(client)[1]


def test_keys_are_asked_for(serve):
    with serve(api_keys=("s3cret", "other")) as server:
        clients = [openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in ("s3cret", "no")]
        assert speak(clients[0], response_format="pcm")[1]
        for call in (clients[1].models.list, lambda: speak(clients[1])):
            with pytest.raises(openai.AuthenticationError) as caught:
                call()
            assert caught.value.code == "invalid_api_key"
        status = {path: get(server.url, path)[0] for path in ("/", "/health", "/metrics", "/v1/audio/voices")}
        assert status == {"/": 200, "/health": 200, "/metrics": 401, "/v1/audio/voices": 401}


def get(url, path, method="GET", body=None, **headers):
    """Status, headers and body of a plain request."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return answer


def test_pages_of_other_sites_are_kept_out(server):
    body = json.dumps({"model": "tts-1", "voice": "heart", "input": SENTENCE, "response_format": "pcm"})
    host = urllib.parse.urlsplit(server.url).netloc
    json_body = {"content_type": "application/json"}
    post = [server.url, "/v1/audio/speech", "POST", body]
    assert get(*post, **json_body, origin=f"http://{host}")[0] == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        status, headers, _ = get(*post, **json_body, origin=origin)
        assert status == 403 and "access-control-allow-origin" not in {name.lower() for name in headers}
    assert get(server.url, "/health", host="evil.example")[0] == 400  # its name points here: DNS rebinding
    assert get(*post, content_type="text/plain")[0] == 400  # the type that a form of any site may send


def test_health_metrics_and_policy_of_the_page(client, server):
    speak(client)
    text = get(server.url, "/metrics")[2].decode()
    done = next(line for line in text.splitlines() if line.startswith('smalle_speeches_total{outcome="done"}'))
    assert float(done.split()[-1]) >= 1 and "smalle_first_audio_seconds_bucket" in text and "smalle_waiting 0.0" in text
    assert json.loads(get(server.url, "/health")[2])["status"] == "ok"
    assert "default-src 'self'" in get(server.url, "/")[1]["content-security-policy"]
    assert get(server.url, "/static/../app.py")[0] == 404
