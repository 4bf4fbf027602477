"""A checkpoint folder alone, in a Python without the package: it loads and speaks as remote code."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, pathlib, sys

class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("smalle", "train"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoPackage())
from transformers import AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor, AutoTokenizer, pipeline

path, facts = sys.argv[1], {}
autos = AutoConfig, AutoModel, AutoModelForTextToWaveform, AutoProcessor, AutoTokenizer
for auto in autos:
    facts[auto.__name__] = type(auto.from_pretrained(path, trust_remote_code=True)).__name__
facts["dtype"] = str(AutoModelForTextToWaveform.from_pretrained(path, trust_remote_code=True).dtype)
speak = pipeline("text-to-speech", model=path, trust_remote_code=True)

def shape(speech):
    samples, = speech["audio"] if speech["audio"].ndim == 2 else [speech["audio"]]
    return [len(samples), speech["sampling_rate"], bool(abs(samples).max() < 10)]

AutoModelForTextToWaveform.from_pretrained(path, trust_remote_code=True).save_pretrained("again")
AutoProcessor.from_pretrained(path, trust_remote_code=True).save_pretrained("again")
facts["files"] = [sorted(p.relative_to(top).as_posix() for p in pathlib.Path(top).rglob("*") if p.is_file() and
                         "__pycache__" not in p.parts) for top in (path, "again")]
facts["again"] = [type(auto.from_pretrained("again", trust_remote_code=True)).__name__ for auto in autos]

length = {"max_new_tokens": 12, "min_new_tokens": 12}
facts["one"] = shape(speak("Hello.", generate_kwargs=length))
texts = ["One.", "Two, three, four and five.", "Six."]
facts["many"] = [shape(speech) for speech in speak(texts, batch_size=2, generate_kwargs=length)]
facts["long"] = shape(speak("Hello.", generate_kwargs={"max_new_tokens": 320, "min_new_tokens": 320}))
facts["default"] = shape(speak("Hello.", generate_kwargs={"min_new_tokens": 300}))

from peft import LoraConfig, get_peft_model

model = AutoModelForTextToWaveform.from_pretrained(path, trust_remote_code=True)
get_peft_model(model, LoraConfig(r=1)).save_pretrained("adapter")
speak = pipeline("text-to-speech", model="adapter", trust_remote_code=True)
facts["adapted"] = [bool(speak.model.peft_config), *shape(speak("Hello.", generate_kwargs=length))]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "HF_MODULES_CACHE": str(folder / "modules")}
    command = [sys.executable, "-I", "-c", PROGRAM, str(tiny_checkpoint)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_auto_class_finds_its_class(facts):
    assert facts["AutoConfig"] == "SmallEConfig"
    assert facts["AutoModel"] == "SmallEModel"
    assert facts["AutoModelForTextToWaveform"] == "SmallEForTextToSpeech"
    assert facts["AutoProcessor"] == "SmallEProcessor"
    assert "Tokenizer" in facts["AutoTokenizer"]


def test_saved_again_it_is_whole_again(facts):
    before, after = facts["files"]
    assert before == after
    assert facts["again"][:4] == ["SmallEConfig", "SmallEModel", "SmallEForTextToSpeech", "SmallEProcessor"]


def test_half_precision_weights_load_as_float32(facts):
    assert facts["dtype"] == "torch.float32"


def test_pipeline_speaks_one_text(facts):
    assert facts["one"] == [12 * 480, 24000, True]


def test_pipeline_speaks_texts_in_batches(facts):
    assert facts["many"] == [[12 * 480, 24000, True]] * 3


def test_long_speech_is_not_cut(facts):
    assert facts["long"] == [320 * 480, 24000, True]
    assert facts["default"] == [300 * 480, 24000, True]  # the checkpoint's own limit, not the pipeline's 256 frames


def test_pipeline_speaks_through_an_adapter_folder(facts):
    assert facts["adapted"] == [True, 12 * 480, 24000, True]
