"""README's Python examples run, one after the other."""

import pathlib
import re

import torch

from smalle.audio_smalle import write_wav
from smalle.lite import TextToSpeech

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_python_examples_run(tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    speech = TextToSpeech.load().speak("This is how I speak on a good day.", voice="emma", seed=0)
    write_wav("me.wav", torch.from_numpy(speech), 24000)
    played = []
    names = {"play": played.append}
    for block in blocks:
        exec(block.replace("checkpoints/smalle-mini", str(ROOT / "checkpoints" / "smalle-mini")), names)  # noqa: S102
    assert names["speech"]["sampling_rate"] == 24000 and len(names["waves"]) == 2
    assert all(torch.is_tensor(wave) for wave in names["waves"])
    assert [word["word"] for word in names["words"][0]] == ["Text"]
    assert played and all(torch.is_tensor(wave) for wave in played)
    assert list(tmp_path.rglob("speech*.wav"))
