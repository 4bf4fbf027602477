"""The application on Ray Serve, on a cluster of two nodes of one core each."""

import concurrent.futures
import http.client
import json
import socket
import time
import urllib.request

import pytest

ray = pytest.importorskip("ray")
serve = pytest.importorskip("ray.serve")

from smalle.serving.ray import app  # noqa: E402

LONG = "The old man went down to the river and looked at the water for a long time. " * 3


def test_arguments_become_settings_and_the_number_of_replicas(tmp_path):
    deployment = app({"max_replicas": "3", "voices": str(tmp_path)})._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    assert deployment.ray_actor_options["num_cpus"] == 1
    for wrong, message in (({"voice": "/x"}, "voice='/x': expected one of"), ({"max_characters": "many"}, "integer")):
        with pytest.raises(ValueError, match=message):
            app(wrong)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80 << 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        for patience in ("raylet_start_wait_time_s", "SERVE_PROXY_READY_CHECK_TIMEOUT_S"):  # on a busy machine
            patch.setenv(f"RAY_{patience}", "300")
        cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
        cluster.add_node(**options)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield cluster
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def url(cluster, tmp_path_factory):
    """Of two replicas, which share the folder of voices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    serve.run(app({"min_replicas": 2, "max_replicas": 2, "voices": str(tmp_path_factory.mktemp("voices"))}))
    return f"http://127.0.0.1:{port}"


def speech(url, text, voice="heart", started=lambda: None):
    """The samples of a speech; calls `started` when the first ones are there."""
    body = json.dumps({"model": "tts-1", "voice": voice, "input": text, "response_format": "pcm"}).encode()
    request = urllib.request.Request(f"{url}/v1/audio/speech", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        data = response.read(2)
        started()
        return data + response.read()


def replicas():
    """The names of the replicas that live."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in actors if actor["name"].startswith("SERVE_REPLICA")}


def running():
    """How many replicas are in each state, which lags behind a kill."""
    return serve.status().applications["default"].deployments["smalle"].replica_states


def wait_until_one_is_replaced(before, seconds=300):
    deadline = time.monotonic() + seconds
    while not replicas() - before or running() != {"RUNNING": 2}:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def streams(url, texts, **options):
    """Futures of speeches of which all have begun."""
    pool = concurrent.futures.ThreadPoolExecutor(len(texts))
    begun = []
    futures = [pool.submit(speech, url, text, started=lambda: begun.append(1), **options) for text in texts]
    while len(begun) < len(texts) and not any(future.done() for future in futures):
        time.sleep(0.02)
    assert len(begun) == len(texts), "they do not speak at once"
    return futures


@pytest.mark.slow
def test_a_replica_that_is_killed_ends_its_own_stream_only_and_comes_back(url):
    whole = speech(url, LONG)
    before = replicas()
    one, other = streams(url, [LONG, LONG])
    ray.kill(ray.get_actor(sorted(before)[0], namespace="serve"), no_restart=False)
    broken = [future for future in (one, other) if isinstance(future.exception(300), http.client.HTTPException)]
    assert len(broken) == 1
    assert [future.result() for future in (one, other) if future not in broken] == [whole]
    wait_until_one_is_replaced(before)
    assert [future.result(300) for future in streams(url, [LONG, LONG])] == [whole, whole]


@pytest.mark.slow
def test_a_voice_that_one_replica_made_is_known_to_both(url, recording):
    parts = {"name": "Anna", "consent": "yes"}
    lines = [f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in parts.items()]
    head = '--x\r\nContent-Disposition: form-data; name="audio_sample"; filename="a.wav"\r\n\r\n'
    body = ("".join(lines) + head).encode() + recording + b"\r\n--x--\r\n"
    request = urllib.request.Request(
        f"{url}/v1/audio/voices", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    urllib.request.urlopen(request, timeout=300).close()
    one, other = streams(url, [LONG, LONG], voice="Anna")
    assert one.result(300) == other.result(300) != speech(url, LONG)


@pytest.mark.slow
def test_clients_that_leave_free_their_replicas(url):
    def leave():
        raise ConnectionError("left")

    begun = time.monotonic()
    speech(url, LONG)
    seconds = time.monotonic() - begun
    for _ in range(2):
        with pytest.raises(ConnectionError, match="left"):
            speech(url, LONG * 15, started=leave)
    begun = time.monotonic()
    speech(url, "Hello.")
    assert time.monotonic() - begun < 5 * seconds  # not after one of the long texts
