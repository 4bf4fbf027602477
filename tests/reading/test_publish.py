"""`smalle publish` makes a whole repository with a sample of each voice, and uploads it as one commit."""

import shutil
from types import SimpleNamespace

import pytest
import soundfile
from huggingface_hub import HfApi
from transformers import AutoProcessor

from smalle.cli import main as cli

NAME = "someone/tiny"


def publish(tiny_checkpoint, *arguments):
    return cli.main(["publish", NAME, "--model", str(tiny_checkpoint), "--sample", "Why?", *map(str, arguments)])


def test_a_folder_holds_what_would_be_uploaded(tiny_checkpoint, tmp_path):
    folder = tmp_path / "repository"
    assert publish(tiny_checkpoint, "--to", folder) == 0
    assert {path.name for path in folder.iterdir()} > {"model.safetensors", "codec", "voices", "modeling_smalle.py"}
    assert AutoProcessor.from_pretrained(folder, trust_remote_code=True).voices == ["anna", "ben"]
    card = (folder / "README.md").read_text()
    for voice in ("anna", "ben"):
        assert soundfile.info(folder / f"samples/{voice}.mp3").format == "MP3"
        assert f"https://huggingface.co/{NAME}/resolve/main/samples/{voice}.mp3" in card
    assert publish(folder, "--to", tmp_path / "again") == 0
    assert (tmp_path / "again" / "README.md").read_text() == card  # the section is not doubled


@pytest.mark.parametrize("has_card", [False, True])
def test_an_upload_is_one_commit_and_keeps_a_card(tiny_checkpoint, tmp_path, monkeypatch, capsys, has_card):
    calls = []
    created = SimpleNamespace(repo_id=NAME)

    def upload(self, repo_id, folder_path, commit_message):
        calls.append(("upload", repo_id))
        shutil.copytree(folder_path, tmp_path / "hub")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, *x, **y: (calls.append((*x, y)), created)[1])
    monkeypatch.setattr(HfApi, "file_exists", lambda self, repo_id, filename: has_card)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert publish(tiny_checkpoint, "--private") == 0
    assert calls == [(NAME, {"private": True, "exist_ok": True}), ("upload", NAME)]
    assert (tmp_path / "hub" / "README.md").exists() != has_card
    assert (tmp_path / "hub" / "samples" / "anna.mp3").exists()


def test_wrong_names_and_folders_are_refused_at_once(tmp_path, capsys):
    assert cli.main(["publish", "tiny"]) == 2
    assert "expected OWNER/NAME" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.main(["publish", NAME, "--to", str(tmp_path)]) == 2
    assert "is not empty: expected a new folder" in capsys.readouterr().err
