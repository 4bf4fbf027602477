"""The benchmarks' own arithmetic; what they measure is not tested here."""

import importlib.util
import json
import xml.etree.ElementTree as ET

import pytest
import torch

from benchmarks import length_scaling, peer_models, peers, timing
from benchmarks.plot import Panel, svg


def test_texts_at_once_count_together_and_first_audio_comes_before_the_rest():
    speed = timing.time_speech(iter([torch.zeros(2, 300), torch.zeros(200)]), 100)
    assert speed["seconds"] == 8.0 and speed["real_time"] > 0
    assert 0 <= speed["first_audio_s"] <= 8.0 / speed["real_time"] + 1e-3


def test_a_stream_is_measured_once_at_each_length():
    class Speaker:
        sampling_rate = 100

        def speak(self, seconds):
            yield from [torch.zeros(70)] * 10

    figures = list(length_scaling.follow(Speaker(), [7, 1, 2.5]))
    assert [figure["seconds"] for figure in figures] == [1, 2.5, 7]
    works = [figure["work_s"] for figure in figures]
    assert works == sorted(works) and all(0 < figure["held_mb"] <= figure["peak_mb"] + 1 for figure in figures)


def test_a_row_has_date_machine_and_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "rows.jsonl")
    for note in (None, "busy"):
        timing.record("speed", note, model="mini")
    rows = [json.loads(line) for line in timing.RESULTS.read_text().splitlines()]
    assert all({"benchmark", "date", "commit", "machine", "torch", "model"} <= row.keys() for row in rows)
    assert "note" not in rows[0] and rows[1]["note"] == "busy"


def test_the_error_of_a_failed_process_is_reported(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nif sys.argv[1] == '1': sys.exit('no memory')\nprint('hello')\nprint('{\"a\": 2}')")
    assert timing.in_own_process(script, 2) == [{"a": 2}]
    with pytest.raises(RuntimeError, match="no memory"):
        timing.in_own_process(script, 1)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["peers.py", "--models", "pocket-tts"])
    peers.main()
    assert "pocket-tts: skipped, not installed: pip install -c constraints.txt pocket-tts" in capsys.readouterr().out


def test_a_picture_has_every_line_inside_of_its_panel():
    lines = {"one <int8>": [(1, 0.05), (600, 30.0)], "other": [(1, 0.4), (600, 200.0)]}
    page = ET.fromstring(
        svg(
            Panel("Time", "s", {1: "1 s", 600: "10 min"}, lines, log=True),
            Panel("Memory", "MB", {1: "1 s"}, {"one": [(1, 500), (600, 517)]}),
        )
    )
    drawn = page.findall(".//{*}polyline")
    assert len(drawn) == 3 and "one <int8>" in [text.text for text in page.findall(".//{*}text")]
    for line in drawn:
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert all(0 <= x <= 440 and 0 <= y <= 280 for x, y in points) and points[0][0] < points[1][0]
        assert points[0][1] > points[1][1]  # more stands higher


def test_a_peer_speaks_for_the_given_time():
    peer = peer_models.Vits()
    for seconds in (0.2, 0.5):
        samples = sum(wave.numel() for wave in peer.speak(seconds, rows=2)) / 2
        assert samples / peer.sampling_rate == pytest.approx(seconds, abs=0.05)
