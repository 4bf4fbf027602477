"""`smalle say` with marks, captions, a lexicon and the formats that people play."""

import pytest
import soundfile

from smalle.cli import main as cli


@pytest.fixture
def say(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main(["say", *map(str, arguments), "--model", str(tiny_checkpoint)])
        return code, *capsys.readouterr()

    return run


def test_captions_lie_beside_the_sound(say, tmp_path):
    assert say("Mr. Fox asked [pause 0.2s] 2 dogs.", "-o", "a.mp3", "--srt", "--vtt", "--textgrid")[0] == 0
    assert soundfile.info(tmp_path / "a.mp3").format == "MP3"
    assert "Mr. Fox asked 2 dogs.\n" in (tmp_path / "a.srt").read_text()
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT")
    assert 'class = "IntervalTier"' in (tmp_path / "a.TextGrid").read_text()


@pytest.mark.parametrize("name, format", [("a.flac", "FLAC"), ("a.opus", "OGG"), ("a.wav", "WAV"), ("a", "WAV")])
def test_the_suffix_is_the_format(say, tmp_path, name, format):
    assert say("Hi.", "-o", name)[0] == 0
    assert soundfile.info(tmp_path / name).format == format


def test_marks_change_the_speech(say, tmp_path):
    lengths = {}
    calls = {
        "plain": ["The fox."],
        "pause": ["The fox. [pause 1s]"],
        "ssml": ["<speak>The fox.<break time='1s'/></speak>", "--ssml"],
        "fast": ["The fox.", "--speed", 2],
    }
    for name, arguments in calls.items():
        assert say(*arguments, "-o", f"{name}.wav")[0] == 0
        lengths[name] = soundfile.info(tmp_path / f"{name}.wav").frames
    assert lengths["pause"] == lengths["ssml"] == lengths["plain"] + 24000
    assert lengths["fast"] == pytest.approx(lengths["plain"] / 2, abs=2)


def test_a_lexicon_is_heard_and_not_seen(say, tmp_path):
    (tmp_path / "names.txt").write_text("fox = dog\n")
    assert say("The fox.", "--lexicon", "names.txt", "-o", "a.wav", "--srt")[0] == 0
    assert say("The dog.", "-o", "b.wav")[0] == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert "The fox." in (tmp_path / "a.srt").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["Hi.", "-o", "a.aac"], "expected a file whose name ends with .mp3, .opus, .flac, .wav"),
        (["Hi.", "--stream", "--srt"], "--stream cannot write captions"),
        (["[pause 99s] Hi."], "expected at most 60 s"),
        (["<speak>x<emphasis>y</emphasis></speak>"], "<emphasis> is not supported"),
        (["Hi.", "--ssml"], "The SSML is damaged"),
        (["Hi.", "--speed", "9"], "rate=9: expected 0.25 to 4"),
        (["Hi.", "--lexicon", "missing"], "The lexicon missing cannot be read"),
    ],
)
def test_wrong_input_is_refused_without_a_file(say, tmp_path, arguments, message):
    code, _, err = say(*arguments)
    assert code == 2 and message in err and not list(tmp_path.iterdir())
