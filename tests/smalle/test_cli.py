"""smalle say writes a wav or streams it; wrong input gives one line, exit code 2 and no file."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
import wave

import pytest
import soundfile
import torch

from smalle.cli import main as cli
from smalle.cli import say as say_command

REPORT = r"{}: [0-9.]+ s of speech in [0-9.]+ s \([0-9.]+ s with loading\)\n"


@pytest.fixture
def say(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs `smalle say` in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=tiny_checkpoint):
        try:
            code = cli.main(["say", *map(str, arguments), "--model", str(model)])
        except SystemExit as stopped:  # argparse
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def read(path):
    with wave.open(str(path)) as file:
        return file.getframerate(), file.getsampwidth(), file.getnchannels(), file.readframes(file.getnframes())


def test_writes_a_wav_and_reports_times(say, tmp_path):
    code, out, err = say("Hello you.", "-o", "hello.wav")
    assert code == 0 and re.fullmatch(REPORT.format(r"hello\.wav"), out)
    rate, width, channels, samples = read(tmp_path / "hello.wav")
    assert (rate, width, channels) == (24000, 2, 1) and len(samples) > 0 and len(samples) % (2 * 480) == 0
    assert any(samples) and "speaking" in err
    assert [path.name for path in tmp_path.iterdir()] == ["hello.wav"]


def test_output_is_smalle_wav_unless_named(say, tmp_path):
    assert say("Hello.")[0] == 0
    assert (tmp_path / "smalle.wav").is_file()


def test_a_seed_gives_the_same_file_and_another_seed_another(say, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert say("Hello.", "-o", name, "--seed", seed)[0] == 0
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_a_link_is_followed(say, tmp_path):
    (tmp_path / "link.wav").symlink_to(tmp_path / "a.wav")
    assert say("Hello you.", "-o", str(tmp_path / "link.wav"))[0] == 0
    assert (tmp_path / "link.wav").is_symlink() and (tmp_path / "a.wav").stat().st_size > 44


def test_text_from_standard_input(say, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello you.\n"))
    assert say("-", "-o", "piped.wav")[0] == 0
    assert say("Hello you.", "-o", "typed.wav")[0] == 0
    assert read(tmp_path / "piped.wav") == read(tmp_path / "typed.wav")


def test_voices_and_clones(say, tmp_path, record):
    record(tmp_path / "me.wav", 0.5, 170, 16000, 2)
    assert say("Hello.", "-o", "default.wav")[0] == 0
    assert say("Hello.", "-o", "anna.wav", "--voice", "anna")[0] == 0
    assert say("Hello.", "-o", "ben.wav", "--voice", "ben")[0] == 0
    assert say("Hello.", "-o", "clone.wav", "--clone", "me.wav", "--clone-text", "I said so.")[0] == 0
    code, out, err = say("Hello.", "-o", "refused.wav", "--clone", "me.wav")  # this model has no speaker encoder
    assert code == 2 and "--clone-text" in err and not (tmp_path / "refused.wav").exists()
    default, anna, ben, clone = (read(tmp_path / f"{name}.wav") for name in ("default", "anna", "ben", "clone"))
    assert default == anna and len({anna, ben, clone}) == 3


def test_a_stream_has_the_samples_of_the_file(tiny_checkpoint, tmp_path, capsysbinary):
    text = ["say", "Nobody asked! It is a door.", "--model", str(tiny_checkpoint)]
    assert cli.main([*text, "-o", str(tmp_path / "a.wav")]) == 0
    assert re.fullmatch(REPORT.format(".*a.wav"), capsysbinary.readouterr().out.decode())
    assert cli.main([*text, "--stream"]) == 0
    out, err = capsysbinary.readouterr()
    assert out[44:] == read(tmp_path / "a.wav")[3] and re.search(REPORT.format("stream"), err.decode())
    assert soundfile.info(io.BytesIO(out)).samplerate == 24000


def test_a_closed_pipe_ends_the_synthesis(say, monkeypatch):
    class Closed(io.BytesIO):
        def write(self, data):
            raise BrokenPipeError

    steps = []
    chunks = (steps.append(1) or torch.zeros(480) for _ in range(100))
    monkeypatch.setattr(say_command, "stream_target", lambda: contextlib.nullcontext(Closed()))
    assert say_command.write_stream(chunks, 24000) == 0 and len(steps) <= 1
    assert list(chunks) == []


WRONG = {
    "stream and file": (["Hi.", "--stream", "-o", "a.wav"], "cannot be combined"),
    "empty text": ([""], "text is empty"),
    "blank text": ([" \n"], "text is empty"),
    "no letters": (["!!!"], "'!!!'"),
    "unknown voice": (["Hi.", "--voice", "carl"], "'carl'"),
    "not a voice file": (["Hi.", "--voice", "notes.txt"], "notes.txt"),
    "output's folder missing": (["Hi.", "-o", "nowhere/a.wav"], "nowhere/a.wav"),
    "output's folder is a file": (["Hi.", "-o", "notes.txt/a.wav"], "notes.txt/a.wav"),
    "output is a folder": (["Hi.", "-o", "folder"], "folder"),
    "output is a device": (["Hi.", "-o", "/dev/null"], "--stream"),
    "output is empty": (["Hi.", "-o", ""], "cannot be written"),
    "text without clone": (["Hi.", "--clone-text", "Hi."], "--clone"),
    "clone and voice": (["Hi.", "--clone", "notes.txt", "--clone-text", "Hi.", "--voice", "ben"], "--voice"),
    "clone missing": (["Hi.", "--clone", "nowhere.wav", "--clone-text", "Hi."], "nowhere.wav"),
    "clone is not a sound file": (["Hi.", "--clone", "notes.txt", "--clone-text", "Hi."], "notes.txt"),
    "transcript is empty": (["Hi.", "--clone", "notes.txt", "--clone-text", ""], "audio_text"),
}


def assert_refused(result, folder, message):
    code, out, err = result
    assert code == 2 and out == ""
    line = err.rpartition("\r")[2]  # what remains of a progress bar that had begun
    assert re.fullmatch(r"smalle: .{20,}\n", line) and message in line and "\n" not in err[: -len(line)]
    assert sorted(path.name for path in folder.rglob("*")) == ["folder", "notes.txt"]


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG)
def test_wrong_input_gives_one_line_and_no_file(say, tmp_path, arguments, message):
    (tmp_path / "notes.txt").write_text("These are notes, and no recording.")
    (tmp_path / "folder").mkdir()
    assert_refused(say(*arguments), tmp_path, message)


@pytest.mark.parametrize("model", ["nowhere", "folder", "./no/where", "nobody/nothing"])
def test_missing_checkpoint_gives_one_line_and_no_file(say, tmp_path, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    assert_refused(say("Hi.", model=model), tmp_path, model)


@pytest.mark.parametrize("part", ["tokenizer.json", "model.safetensors", "voices/anna.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_broken_checkpoint_gives_one_line_and_no_file(say, tmp_path, tiny_checkpoint, part, damage):
    shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    if damage == "missing":
        (tmp_path / "broken" / part).unlink()
    else:
        (tmp_path / "broken" / part).write_bytes((tiny_checkpoint / part).read_bytes()[:100])
    code, out, err = say("Hi.", model=tmp_path / "broken")
    assert code == 2 and out == "" and re.fullmatch(r"smalle: .{20,}\n", err) and "broken" in err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_refused(say, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = say("Hi.", "-o", "locked/a.wav")
    assert code == 2 and err.startswith("smalle: ") and "locked/a.wav" in err


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_failing_while_writing_leaves_what_was_there(say, tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    (tmp_path / "smalle.wav").write_bytes(b"older")
    monkeypatch.setattr(os, "replace", fail)
    code, _, err = say("Hello.")
    assert code == (130 if isinstance(failure, KeyboardInterrupt) else 2) and "smalle: " in err
    assert [path.name for path in tmp_path.iterdir()] == ["smalle.wav"]
    assert (tmp_path / "smalle.wav").read_bytes() == b"older"


def test_as_a_program(tiny_checkpoint, tmp_path):
    output = tmp_path / "hello.wav"
    command = [sys.executable, "-m", "smalle", "say", "-", "--model", str(tiny_checkpoint), "-o", str(output)]
    done = subprocess.run(command, input="Hello you.\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and re.fullmatch(REPORT.format(re.escape(str(output))), done.stdout), done.stderr
    bars = [line for line in done.stderr.split("\n")[1:-1] if "the reading" not in line]  # a warning of it
    assert all(line.startswith("speaking: ") for line in bars)
    assert read(output)[:3] == (24000, 2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["hello.wav"]


def test_terminating_leaves_no_file(tiny_checkpoint, tmp_path):
    command = [sys.executable, "-m", "smalle", "say", "-", "--model", str(tiny_checkpoint), "-o", "long.wav"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdin.write("Nobody asked! " * 500)
    process.stdin.close()
    while not list(tmp_path.iterdir()):  # until it writes
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 130 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_describes_itself(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    assert "usage: " in capsys.readouterr().out


def test_a_missing_package_is_named_with_its_extra(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets")

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    assert cli.main(["train", "recipe.yaml"]) == 2
    assert "smalle[train]" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["read", "book.txt"], ["say", "Hello.", "--srt"]])
def test_what_needs_pytorch_says_so_where_there_is_none(tmp_path, arguments):
    (tmp_path / "book.txt").write_text("Hello.")
    program = f"import sys; sys.modules['torch'] = None; import smalle.cli.main as cli; sys.exit(cli.main({arguments}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    message = f"smalle: `smalle {arguments[0]}` needs the package torch for this: run pip install 'smalle'."
    assert done.stderr.splitlines()[-1:] == [message] and "Traceback" not in done.stderr
