"""A document becomes sound files and captions; a reading that is killed goes on and gives the same files."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from smalle.cli import main as cli
from smalle.reading import audiobook
from smalle.reading.audiobook import Reading, file_name, read_aloud
from smalle.reading.documents import Chapter, Document, Paragraph
from smalle.reading.m4b import write_m4b
from smalle.streaming_smalle import TextToSpeechStreamer

BOOK = Document(
    "The Dogs",
    "Nobody",
    [
        Chapter(
            "One: a/b", [Paragraph("One.", True), Paragraph("It is a door. Nobody [pause 1s] asked!"), Paragraph("♦")]
        ),
        Chapter("Two", [Paragraph("Why? [pause 1s]"), Paragraph("[pause 0.2s]"), Paragraph("The dog.")]),
    ],
)


@pytest.fixture
def streamer(tiny_model, processor):
    return TextToSpeechStreamer(tiny_model, processor)


def contents(folder):
    """Digests of the files of a folder by their names."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", ["mp3", "opus", "flac", "wav"])
def test_each_chapter_is_a_sound_file_with_captions(streamer, tmp_path, suffix):
    captions = ("srt", "vtt", "TextGrid")
    paths = list(read_aloud(BOOK, streamer, tmp_path, Reading(suffix, captions, options={"max_new_tokens": 20})))
    assert [path.name for path in paths] == [f"1 One a b.{suffix}", f"2 Two.{suffix}"]
    assert len(contents(tmp_path)) == 9 and not (tmp_path / audiobook.PARTS).exists()
    chapters = json.loads((tmp_path / "book.json").read_text())["chapters"]
    for path, entry in zip(paths, chapters.values()):
        with soundfile.SoundFile(path) as sound:
            assert sound.samplerate in (24000, 48000) and sound.channels == 1
            assert len(sound) / sound.samplerate == pytest.approx(entry["seconds"], abs=0.1)
            assert sound.title == entry["title"] and sound.album == "The Dogs"
    srt = paths[0].with_suffix(".srt").read_text()
    lines = [line for line in srt.split("\n") if re.search("[a-z]", line)]
    assert lines[0] == "One." and " ".join(lines) == "One. It is a door. Nobody asked!"


def test_pauses_are_as_long_as_they_are_asked_for(streamer, tmp_path):
    short, long = (
        Document("", "", [Chapter("", [Paragraph(f"Why? [pause {pause}s] The dog.")])]) for pause in ("0.25", "2")
    )
    lengths = []
    for name, document in {"short": short, "long": long}.items():
        (path,) = read_aloud(document, streamer, tmp_path / name, Reading("wav", options={"max_new_tokens": 20}))
        lengths.append(soundfile.info(path).frames)
    assert lengths[1] - lengths[0] == 1.75 * 24000


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_a_reading_that_fails_goes_on_and_gives_the_same_files(streamer, tmp_path, monkeypatch, stop):
    reading = Reading("mp3", options={"max_new_tokens": 20})
    list(read_aloud(BOOK, streamer, tmp_path / "whole", reading))
    read_paragraph, read = audiobook.Book.read_paragraph, []

    def failing(book, key, paragraph):
        if len(read) == stop:
            raise KeyboardInterrupt
        read.append(paragraph)
        read_paragraph(book, key, paragraph)

    monkeypatch.setattr(audiobook.Book, "read_paragraph", failing)
    with pytest.raises(KeyboardInterrupt):
        list(read_aloud(BOOK, streamer, tmp_path / "stopped", reading))
    monkeypatch.setattr(audiobook.Book, "read_paragraph", lambda *x: (read.append(x[2]), read_paragraph(*x)))
    list(read_aloud(BOOK, streamer, tmp_path / "stopped", reading))
    assert len(read) == 6  # each once
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_only_what_changed_is_read_again(streamer, tmp_path, monkeypatch):
    reading, read = Reading("wav", options={"max_new_tokens": 20}), []
    read_paragraph = audiobook.Book.read_paragraph
    monkeypatch.setattr(audiobook.Book, "read_paragraph", lambda *x: (read.append(x[2].text), read_paragraph(*x)))

    def texts(document, reading=reading):
        read.clear()
        list(read_aloud(document, streamer, tmp_path, reading))
        return list(read)

    assert len(texts(BOOK)) == 6 and texts(BOOK) == []
    changed = BOOK._replace(chapters=[BOOK.chapters[0], Chapter("Two", [Paragraph("A dog.")])])
    assert texts(changed) == ["A dog."]
    assert len(texts(changed, Reading("wav", voice="ben", options={"max_new_tokens": 20}))) == 4
    assert len(texts(changed, Reading("wav", seed=2, options={"max_new_tokens": 20}))) == 4
    (tmp_path / "2 Two.srt").unlink()
    (tmp_path / "book.json").write_text("{")
    assert len(texts(changed)) == 4


def test_another_person_reads_everything_again(streamer):
    keys = set()
    for pitch in (5.0, 5.2):  # two people, of whom only the conversion differs
        voice = streamer.processor.get_voice("anna")._replace(conversion={"pitch": torch.tensor([pitch, 0.2])})
        keys.add(audiobook.identity(streamer.model, Reading(voice=voice)))
    assert len(keys) == 2


def test_a_command_that_is_killed_goes_on_and_gives_the_same_files(tiny_checkpoint, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"Chapter {n}\n\nThe quick brown fox. Nobody knew!" for n in range(1, 9)))

    def command(output):
        arguments = [
            "read",
            str(book),
            "-o",
            str(tmp_path / output),
            "--format",
            "wav",
            "--model",
            str(tiny_checkpoint),
        ]
        return [sys.executable, "-m", "smalle", *arguments]

    assert cli.main(command("whole")[3:]) == 0
    stopped = tmp_path / "stopped"
    with subprocess.Popen(command("stopped"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(stopped.glob("3*.wav")):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert cli.main(command("stopped")[3:]) == 0
    assert contents(stopped) == contents(tmp_path / "whole")


def test_the_command_lists_and_chooses_chapters(tiny_checkpoint, tmp_path, capsys, make_epub):
    book = str(make_epub())
    assert cli.main(["read", book, "--list"]) == 0
    assert "2 Down the Rabbit-Hole (3" in capsys.readouterr().out
    for chapters in ("0", "2-5", "x", "3-2"):
        assert cli.main(["read", book, "--chapters", chapters, "--model", str(tiny_checkpoint)]) == 2
        assert "expected numbers from 1 to 3" in capsys.readouterr().err
    options = ["-o", str(tmp_path / "out"), "--chapters", "1,3", "--model", str(tiny_checkpoint)]
    assert cli.main(["read", book, *options]) == 0
    names = {path.name for path in (tmp_path / "out").glob("*.mp3")}
    assert names == {"1 Alice's Adventures in Wonderland.mp3", "3 The Pool of Tears.mp3"}


def test_wrong_readings_are_refused(streamer, tmp_path):
    with pytest.raises(ValueError, match="no chapter 3: expected 1 to 2"):
        list(read_aloud(BOOK, streamer, tmp_path, chapters=[3]))
    with pytest.raises(ValueError, match="format='aac': expected one of mp3"):
        Reading("aac")
    with pytest.raises(ValueError, match="captions=.'ass'.: expected"):
        Reading(captions=["ass"])
    with pytest.raises(ValueError, match="paragraph_pause=-1: expected 0 to 60 seconds"):
        Reading(paragraph_pause=-1)
    with pytest.raises(ValueError, match="rate=9: expected 0.25 to 4"):
        Reading(speed=9)
    streamer.processor.default_voice = None
    with pytest.raises(ValueError, match="no default voice: give a voice"):
        list(read_aloud(BOOK, streamer, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("title", ["../../x", "a/b\\c:d", "CON?\0\n", "...", "é" * 300, "𝐀" * 300])
def test_titles_become_names_of_files(tmp_path, title):
    name = file_name(title)
    assert len(name.encode()) <= 120 and not re.search(r'[/\\:*?"<>|\0\n]', name) and not name.startswith(".")
    (tmp_path / f"1 {name}.wav").touch()


def test_chapters_become_one_m4b_with_marks(tmp_path):
    av = pytest.importorskip("av")
    chapters = []
    for number in range(1, 4):
        chapters.append((f"Chapter {number}", tmp_path / f"{number}.flac"))
        soundfile.write(chapters[-1][1], 0.1 * np.sin(np.arange(number * 24000) * 0.1), 24000)
    write_m4b(tmp_path / "book.m4b", chapters, "The Dogs", "Nobody")
    with av.open(str(tmp_path / "book.m4b")) as file:
        assert (file.metadata["title"], file.metadata["artist"]) == ("The Dogs", "Nobody")
        marks = [
            (x["metadata"]["title"], x["start"] * x["time_base"], x["end"] * x["time_base"]) for x in file.chapters()
        ]
        assert marks == [("Chapter 1", 0, 1), ("Chapter 2", 1, 3), ("Chapter 3", 3, 6)]
        assert sum(frame.samples for frame in file.decode(audio=0)) == pytest.approx(6 * 24000, abs=4096)
    with pytest.raises(ValueError, match="no chapters"):
        write_m4b(tmp_path / "none.m4b", [], "", "")
