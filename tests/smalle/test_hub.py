"""What goes to the Hub is whole; a folder stands for the Hub here."""

import pathlib
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi, ModelCard

import smalle
from smalle import SmallEForTextToSpeech, SmallEProcessor, processing_smalle

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
