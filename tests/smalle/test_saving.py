"""Saving: atomic writes, and what goes to the Hub, for which a folder stands here."""

import json
import mmap
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import smalle
from smalle import SmallEForTextToSpeech, SmallEProcessor, processing_smalle, saving_smalle, voices_smalle
from smalle.audio_smalle import write_wav
from smalle.saving_smalle import (
    HOST,
    LEFTOVER,
    MappedWeights,
    atomic_folder,
    atomic_write,
    check_file_name,
    clear_leftovers,
    delete_folder,
    write_json,
    write_jsonl,
    write_text,
)
from smalle.voices_smalle import save_voice
from tests.reliability.file_operations import FileOperations

CODE = sorted(pathlib.Path(smalle.__file__).parent.glob("*_smalle.py"))
NAME = "someone/tiny"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folder of the repository NAME; `.calls` of what else was asked of the Hub."""
    folder, calls = tmp_path / "hub", []

    def upload(self, repo_id, folder_path, **options):
        assert repo_id == NAME
        shutil.copytree(folder_path, folder, dirs_exist_ok=True)
        calls.append(("upload", {name: value for name, value in options.items() if value}))

    def create(self, repo_id, **options):
        calls.append(("create", options))
        return SimpleNamespace(repo_id=NAME)

    fakes = {
        "create_repo": create,
        "create_branch": lambda self, repo_id, branch, **options: calls.append(("branch", branch)),
        "file_exists": lambda self, repo_id, filename, **options: (folder / filename).exists(),
        "hf_hub_download": lambda self, repo_id, filename, **options: str(folder / filename),
        "upload_folder": upload,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(HfApi, name, fake)
    return SimpleNamespace(folder=folder, calls=calls)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


MODEL = {"config.json", "generation_config.json", "model.safetensors"}
PROCESSOR = {
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "codec/config.json",
    "codec/model.safetensors",
    "voices/anna.safetensors",
    "voices/ben.safetensors",
}


def test_model_and_processor_together_are_a_whole_repository(hub, tiny_checkpoint):
    SmallEForTextToSpeech.from_pretrained(tiny_checkpoint).push_to_hub(NAME)
    assert MODEL < files(hub.folder)
    SmallEProcessor.from_pretrained(tiny_checkpoint).push_to_hub(NAME)
    assert files(hub.folder) == MODEL | PROCESSOR | {"README.md"} | {path.name for path in CODE}
    for path in CODE:
        assert (hub.folder / path.name).read_bytes() == path.read_bytes()
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-to-speech"
    assert f'model="{NAME}"' in card.text


def test_saving_with_push_uploads_the_same(hub, tiny_checkpoint, tmp_path):
    processor = SmallEProcessor.from_pretrained(tiny_checkpoint)
    processor.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=NAME, private=True)
    assert PROCESSOR < files(hub.folder) == files(tmp_path / "saved")
    assert hub.calls[0] == ("create", {"private": True, "exist_ok": True})


def test_a_card_that_is_there_stays_and_gets_the_tags(hub, tiny_model):
    hub.folder.mkdir()
    (hub.folder / "README.md").write_text("---\ntags: [mine]\nlicense: mit\n---\nMeasured with care.\n")
    tiny_model.push_to_hub(NAME, tags=["mine", "german"])
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.to_dict() == {"tags": ["mine", "german"], "license": "mit"}
    assert card.text.strip() == "Measured with care."


def test_options_of_the_upload_arrive(hub, tiny_model):
    tiny_model.push_to_hub(NAME, revision="next", create_pr=True, commit_message="Better.", max_shard_size="20KB")
    assert ("branch", "next") in hub.calls
    assert hub.calls[-1] == ("upload", {"revision": "next", "create_pr": True, "commit_message": "Better."})
    assert "model.safetensors.index.json" in files(hub.folder)


def test_a_saved_card_is_not_overwritten(tiny_model, tmp_path):
    (tmp_path / "README.md").write_text("Mine.")
    tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "Mine."


def test_voices_and_codec_come_from_the_revision_of_the_processor(tiny_checkpoint, monkeypatch):
    processor, asked = SmallEProcessor.from_pretrained(tiny_checkpoint, revision="v2"), []
    find, load = processing_smalle.cached_file, processing_smalle.load_codec
    monkeypatch.setattr(processing_smalle, "cached_file", lambda *a, **k: asked.append(k) or find(*a, **k))
    monkeypatch.setattr(processing_smalle, "load_codec", lambda *a, **k: asked.append(k) or load(*a, **k))
    processor("Hello.")
    assert processor.codec is not None and asked == [{"revision": "v2"}] * 2


# --- atomic writes


@pytest.fixture
def umask():
    """Sets the umask of a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


WRITERS = {
    "text": lambda path: write_text(path, "Hello."),
    "wav": lambda path: write_wav(path, torch.zeros(9), 24000),
    "voice": lambda path: save_voice(path, torch.zeros(5, 3).long(), "So."),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_permissions_follow_the_umask_and_those_of_the_old_file(write, tmp_path, umask):
    for mask, expected in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        umask(mask)
        path = tmp_path / f"{mask}"
        write(path)
        assert mode(path) == expected
    umask(0o022)
    for kept in (0o600, 0o664):
        path.chmod(kept)
        write(path)
        assert mode(path) == kept
    assert {child.name for child in tmp_path.iterdir()} == {"18", "23", "63"}


def test_saved_checkpoints_are_readable_as_the_umask_says(tiny_model, processor, tmp_path, umask):
    umask(0o022)
    for saved in (tiny_model, processor):
        saved.save_pretrained(tmp_path)
    assert {mode(path) for path in tmp_path.rglob("*") if path.is_file()} == {0o644}
    (tmp_path / "model.safetensors").chmod(0o600)
    tiny_model.save_pretrained(tmp_path)
    assert mode(tmp_path / "model.safetensors") == 0o600


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        assert temporary.parent == tmp_path and path.read_text() == "old"
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_voice_or_a_wav_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        pathlib.Path(path).write_text("half")
        raise OSError("disk full")

    def half_a_wave():
        yield torch.zeros(9)
        raise OSError("disk full")

    path = tmp_path / "a"
    path.write_text("old")
    monkeypatch.setattr(voices_smalle, "save_file", fail)
    for write in (lambda: save_voice(path, torch.zeros(5, 3).long()), lambda: write_wav(path, half_a_wave(), 24000)):
        with pytest.raises(OSError, match="disk full"):
            write()
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
def test_what_writers_raise_on_a_full_disk_names_the_file(tmp_path, write):
    with pytest.raises(OSError, match="/a cannot be written: .*full"), write(tmp_path / "a"):
        raise SafetensorError("no space: full")
    with pytest.raises(RuntimeError, match="another"), write(tmp_path / "a"):
        raise RuntimeError("another")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link_and_a_device_stays_a_device(tmp_path):
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    write_text("/dev/null", "gone")
    assert not pathlib.Path("/dev/null").is_file()


@pytest.mark.parametrize("letter", ["a", "é", "𝐀"])
def test_the_longest_names_can_be_written(tmp_path, letter):
    name = letter * (251 // len(letter.encode())) + ".txt"
    write_text(tmp_path / name, "Hello.")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_json_files_hold_letters_as_they_are(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Zoë"})
    write_jsonl(tmp_path / "a.jsonl", [{"name": "Zoë"}, 2])
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n "name": "Zoë"\n}\n'
    assert (tmp_path / "a.jsonl").read_text("utf-8") == '{"name": "Zoë"}\n2\n'


def test_a_folder_replaces_the_old_one(tmp_path):
    for name in ("a", "b"):
        with atomic_folder(tmp_path / "new" / "out") as folder:
            (folder / name).touch()
    assert files(tmp_path) == {"new/out/b"} and len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_there_whole_wherever_its_writer_is_killed(exchanges, tmp_path, monkeypatch):
    """Each process is killed one operation on files later. Without exchange the next process mends what is left."""

    def write_folder(name):
        with atomic_folder(tmp_path / "out") as folder:
            (folder / name).write_text(name)
            (folder / "both").touch()

    if not exchanges:
        monkeypatch.setattr(saving_smalle, "_exchange", lambda one, other: False)
    found, status = [], -1
    write_folder("old")
    while status:
        if not (child := os.fork()):
            FileOperations(last=len(found))
            write_folder("new")
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if exchanges and sys.platform == "linux":
            assert (tmp_path / "out").is_dir()
        clear_leftovers.cache_clear()
        write_text(tmp_path / "another.txt", "")
        assert files(tmp_path) - {"out/old", "out/new"} == {"another.txt", "out/both"}, "half of a folder is left"
        found.append(next(iter(files(tmp_path) & {"out/old", "out/new"})))
        if found[-1] == "out/new":
            write_folder("old")
    assert len(found) > 5 and {*found[:2]} == {"out/old"} and found[-1] == "out/new"


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    def fail(self, target):
        if self.suffix == ".partial":
            raise OSError("no")
        return rename(self, target)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    rename = pathlib.Path.rename
    monkeypatch.setattr(saving_smalle, "_exchange", lambda one, other: False)
    monkeypatch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(OSError, match="no"), atomic_folder(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert files(tmp_path) == {"out/old"}


def test_what_killed_processes_left_is_cleared_and_nothing_else(tmp_path):
    program = (
        "import os, sys; from smalle.saving_smalle import atomic_write\n"
        "with atomic_write(sys.argv[1]) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "a.txt"])
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.txt.") and left.name.endswith(".partial")
    others = [f".a.txt.elsewhere.{2**22 + 1}.abc.partial", f".a.txt.{HOST}.{os.getppid()}.abc.partial", "b.partial"]
    for name in others:
        (tmp_path / name).touch()
    write_text(tmp_path / "c.txt", "new")
    assert files(tmp_path) == {"c.txt", *others}


def test_a_folder_is_deleted_whole_or_not_at_all(tmp_path, monkeypatch):
    folder, kept = tmp_path / "voice", shutil.rmtree
    folder.mkdir()
    (folder / "about.json").write_text("{}")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if the process were killed there
    delete_folder(folder)
    (rest,) = tmp_path.iterdir()
    assert LEFTOVER.fullmatch(rest.name) and (rest / "about.json").is_file()  # which a later process clears
    monkeypatch.setattr(shutil, "rmtree", kept)
    folder.mkdir()
    delete_folder(folder)
    assert list(tmp_path.iterdir()) == [rest]
    with pytest.raises(FileNotFoundError):
        delete_folder(folder)


def test_concurrent_writers_leave_one_whole_file(tmp_path):
    texts = [letter * 100_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=write_text, args=(tmp_path / "a.txt", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.txt").read_text() in texts and files(tmp_path) == {"a.txt"}


def test_json_files(tmp_path):
    rows = [{"text": "Caf\u00e9"}, {"text": "b"}]
    write_json(tmp_path / "a.json", rows)
    write_jsonl(tmp_path / "a.jsonl", rows)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == rows
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows and "\u00e9" in lines[0]


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\\b", "a\0", None, 5])
def test_paths_are_no_names(name):
    with pytest.raises(ValueError, match="The name .* expected a plain name"):
        check_file_name(name, "The name")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere weights stay in memory")
def test_memory_of_mapped_weights_is_given_back_unless_they_were_written_to(tmp_path):
    def held(x):
        """Bytes of a tensor that are in memory."""
        first, last = x.data_ptr() // mmap.PAGESIZE, (x.data_ptr() + x.nbytes - 1) // mmap.PAGESIZE
        with open("/proc/self/pagemap", "rb") as file:
            file.seek(8 * first)
            pages = torch.frombuffer(bytearray(file.read(8 * (last - first + 1))), dtype=torch.int64)
        return int((pages < 0).sum()) * mmap.PAGESIZE  # bit 63

    kept, written = torch.arange(2**20, dtype=torch.float32), torch.arange(2**20, dtype=torch.float32)
    for name in ("kept", "written"):
        save_file({"weight": kept}, tmp_path / f"{name}.safetensors")
    with (
        safe_open(tmp_path / "kept.safetensors", "pt") as first,
        safe_open(tmp_path / "written.safetensors", "pt") as second,
    ):
        kept, written = first.get_tensor("weight"), second.get_tensor("weight")
    expected = kept.clone()
    written[5] = -1
    mapped = MappedWeights()
    assert held(kept) >= kept.nbytes
    for x in (kept, written, expected):
        mapped.give_back(x)
    assert held(kept) == 0
    assert kept.equal(expected)
    assert written[5] == -1 and written[6:].equal(expected[6:])
