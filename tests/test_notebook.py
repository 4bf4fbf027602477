"""The notebook for fine-tuning one's own voice runs from its first cell to its last."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_tunes_a_voice_and_speaks_with_it(tmp_path, monkeypatch):
    for name, value in {
        "RECORDINGS": tmp_path / "me",
        "WORK": tmp_path / "work",
        "STEPS": 2,
        "HF_HUB_OFFLINE": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(ROOT / "notebooks" / "finetune_voice.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    played = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(played) == 3 and all("<audio" in html for html in played)  # a recording, before, after
    assert len(set(played)) == 3
    assert (tmp_path / "work" / "checkpoint" / "model.safetensors").exists()
