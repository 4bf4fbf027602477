"""README's Python examples run, one after the other, on a tiny checkpoint in place of the embedded default."""

import pathlib
import re

import torch

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def test_python_examples_run(tiny_checkpoint, record, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    record("me.wav", 0.5, 150)
    played = []
    names = {"play": played.append}
    for block in blocks:
        exec(block.replace("checkpoints/smalle-mini", str(tiny_checkpoint)), names)  # noqa: S102
    assert names["speech"]["sampling_rate"] == 24000 and len(names["waves"]) == 2
    assert all(torch.is_tensor(wave) for wave in names["waves"])
    assert [word["word"] for word in names["words"][0]] == ["Text"]
    assert played and all(torch.is_tensor(wave) for wave in played)
    assert list(tmp_path.rglob("speech*.wav"))
