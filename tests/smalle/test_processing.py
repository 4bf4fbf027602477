"""Processor: text as the tokenizer knows it, voices, clones, codes to audio, storage, and what is refused."""

import copy
import io
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smalle.train.data.batching import Collator
from smalle.train.data.dataset import Sample
from transformers.utils import logging as transformers_logging

from smalle import SmallEProcessor
from smalle.voices_smalle import Voice, load_voice, save_voice


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def row(inputs, index):
    """One row of a batch without its padding."""
    text, audio = inputs["attention_mask"][index].bool(), inputs["audio_attention_mask"][index].bool()
    return inputs["input_ids"][index][text], inputs["audio_codes"][index][audio]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Hello world", "Hello world."),
        ("Is it?", "Is it?"),
        ("It costs $1,234 now", "It costs one thousand two hundred and thirty-four dollars now."),
        ("Tom & Jerry, 5%", "Tom and Jerry, five percent."),
        ("snow \u2603 \u4f60\u597d man", "snow man."),
        ("[EOS] a", "EOS a."),
    ],
)
def test_normalized(processor, text, expected):
    assert processor.normalize(text) == expected


def test_text_may_be_left_as_it_is(processor, record, tmp_path):
    text, off = "Mr fox, over the  dog", {"normalize_text": False}
    processor.default_voice = None
    assert processor(text, **off)["input_ids"][0].tolist() == processor.tokenizer(text)["input_ids"]
    assert_equal(processor(text, text_kwargs=off), processor(text, **off))
    assert not torch.equal(processor(text, **off)["input_ids"], processor(text)["input_ids"])
    wave = record(tmp_path / "voice.wav")
    said = processor.encode_voice(wave, "Mr fox", 24000, normalize_text=False).text
    assert said == "Mr fox"


@pytest.mark.parametrize("text", ["Caf\u00e9", "5 dogs", "[EOS] a", "", " \n", "a \u2603"])
def test_what_the_tokenizer_does_not_know_is_refused_where_texts_are_left_as_they_are(processor, text):
    with pytest.raises(ValueError, match="expected something to speak, .*normalize_text on"):
        processor(text, normalize_text=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text("abXY 0123456789.,!?'[]-\u00e9\u00bd\u00b2\u0665&%\n", max_size=60))
def test_any_text_gives_known_tokens_or_a_value_error(processor, text):
    try:
        inputs = processor(text)
    except ValueError:
        return
    assert processor.tokenizer.unk_token_id not in inputs["input_ids"]


def test_batch_is_left_padded_and_equals_single_texts(processor):
    texts = ["Hi.", "This one is quite a bit longer."]
    batch = processor(texts)
    assert (batch["attention_mask"].diff(dim=1) >= 0).all() and batch["attention_mask"][:, -1].all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == processor.tokenizer.pad_token_id).all()
    for index, text in enumerate(texts):
        alone = processor(text)
        assert torch.equal(row(batch, index)[0], alone["input_ids"][0])


def test_settings_of_the_tokenizer_come_flat_or_as_text_kwargs(processor):
    texts = ["Hi.", "This one is quite a bit longer."]
    right = processor(texts, text_kwargs={"padding_side": "right"})
    assert right["attention_mask"][:, 0].all() and not right["attention_mask"][:, -1].all()
    assert_equal(processor(texts, padding_side="right"), right)
    assert processor(texts, pad_to_multiple_of=64)["input_ids"].shape[1] % 64 == 0
    with pytest.raises(ValueError, match="padding_side"):
        processor(texts, padding_side="left", text_kwargs={"padding_side": "right"})


def test_sampling_rate_may_stand_in_audio_kwargs(processor, record, tmp_path):
    clone = {"audio": record(tmp_path / "voice.wav", sampling_rate=44100), "audio_text": "I said so."}
    wanted = processor("Hello.", **clone, sampling_rate=44100)
    assert_equal(processor("Hello.", **clone, audio_kwargs={"sampling_rate": 44100}), wanted)


def test_each_text_may_have_its_own_voice(processor):
    batch = processor(["One.", "Two, three."], voice=["ben", "anna"])
    for index, (text, voice) in enumerate((("One.", "ben"), ("Two, three.", "anna"))):
        for ours, alone in zip(row(batch, index), row(processor(text, voice=voice), 0)):
            assert torch.equal(ours, alone)


def test_default_voice_speaks_when_none_is_named(processor):
    assert_equal(processor("Hello."), processor("Hello.", voice="anna"))
    assert not torch.equal(processor("Hello.")["audio_codes"], processor("Hello.", voice="ben")["audio_codes"])


def test_prompt_text_stands_before_the_text(processor):
    codes, said, *_ = load_voice(f"{processor.source}/voices/ben.safetensors")
    inputs = processor("Hello.", voice="ben")
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(f"{said} Hello.")["input_ids"]
    assert torch.equal(inputs["audio_codes"][0], codes)


def test_without_any_voice_there_is_no_prompt(processor):
    processor.default_voice = None
    assert set(processor("Hello.")) == {"input_ids", "attention_mask", "piece_ids"}


def test_voice_may_be_an_encoded_recording(processor, record, tmp_path):
    record(tmp_path / "ben.wav", 0.3, 100)
    voice = processor.encode_voice(tmp_path / "ben.wav", "Nobody asked!")
    by_name, given = processor(["a", "b"], voice="ben"), processor(["a", "b"], voice=voice)
    assert all(torch.equal(by_name[name], given[name]) for name in by_name) and by_name.keys() == given.keys()
    with pytest.raises(ValueError, match="another"):
        processor("a", voice=voice._replace(codec="another"))


def test_voice_may_be_a_file(processor, tmp_path):
    codes, text = torch.randint(20, (7, 3)), "So it is."
    save_voice(tmp_path / "own.safetensors", codes, text)
    inputs = processor("Hello.", voice=str(tmp_path / "own.safetensors"))
    assert torch.equal(inputs["audio_codes"][0], codes)
    assert inputs["input_ids"][0].tolist() == processor.tokenizer("So it is. Hello.")["input_ids"]
    named = f"{processor.source}/voices/ben.safetensors"
    assert_equal(processor("Hello.", voice=named), processor("Hello.", voice="ben"))


@pytest.mark.parametrize("sampling_rate", [24000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_clone_from_array_equals_clone_from_file(processor, record, tmp_path, sampling_rate, channels):
    wave = record(tmp_path / "voice.wav", 0.4, 150, sampling_rate, channels)
    said = "I said so."
    of_file = processor("Hello.", audio=str(tmp_path / "voice.wav"), audio_text=said)
    assert of_file["audio_codes"].shape == (1, 20, 3) and of_file["audio_attention_mask"].all()
    assert_equal(processor("Hello.", audio=tmp_path / "voice.wav", audio_text=said), of_file)
    assert_equal(processor("Hello.", audio=wave, audio_text=said, sampling_rate=sampling_rate), of_file)
    if channels == 2:
        assert_equal(processor("Hello.", audio=wave[0], audio_text=said, sampling_rate=sampling_rate), of_file)


def test_clone_in_every_form_that_recordings_come_in(processor, record, tmp_path):
    path, said = tmp_path / "voice.wav", {"audio_text": "I said so."}
    samples = record(path, 0.4, 150, 44100)[0]
    wanted, content = processor("Hello.", audio=path, **said), path.read_bytes()
    rows = {"bytes": content, "path": None}, {"path": str(path)}, {"array": samples, "sampling_rate": 44100}
    for audio in (content, bytearray(content), io.BytesIO(content), *rows):
        assert_equal(processor("Hello.", audio=audio, **said), wanted)
    tensor = torch.tensor(samples, requires_grad=True)
    for audio in (tensor, samples.tolist(), samples.astype(np.float64), tensor[None], np.stack([samples, samples])):
        assert_equal(processor("Hello.", audio=audio, sampling_rate=44100, **said), wanted)
    assert_equal(processor("Hello.", audio=[path], audio_text=[said["audio_text"]]), wanted)


def test_channels_are_averaged(processor, record, tmp_path):
    left, right = (record(tmp_path / "voice.wav", 0.4, pitch)[0] for pitch in (150, 220))
    said = {"audio_text": "I said so.", "sampling_rate": 24000}
    stereo = processor("Hello.", audio=np.stack([left, right]), **said)
    assert_equal(stereo, processor("Hello.", audio=(left + right) / 2, **said))
    assert not torch.equal(stereo["audio_codes"], processor("Hello.", audio=left, **said)["audio_codes"])


def test_each_text_may_have_its_own_recording(processor, record, tmp_path):
    waves = [record(tmp_path / f"{n}.wav", 0.2 + 0.1 * n, 100 + 50 * n)[0] for n in range(2)]
    texts, said = ["One.", "Two, three."], ["I said so.", "So did I."]
    batch = processor(texts, audio=[waves[0], tmp_path / "1.wav"], audio_text=said, sampling_rate=24000)
    for index in range(2):
        alone = processor(texts[index], audio=waves[index], audio_text=said[index], sampling_rate=24000)
        for ours, expected in zip(row(batch, index), row(alone, 0)):
            assert torch.equal(ours, expected)


def test_clone_of_a_presets_recording_is_the_preset(processor):
    clone = processor("Hello.", audio=f"{processor.source}/../anna.wav", audio_text="It is a door.")
    assert_equal(clone, processor("Hello.", voice="anna"))


def test_one_clone_speaks_all_texts(processor, record, tmp_path):
    wave = record(tmp_path / "voice.wav")
    clone = {"audio": wave, "audio_text": "I said so.", "sampling_rate": 24000}
    batch = processor(["One.", "Two, three."], **clone)
    for index, text in enumerate(("One.", "Two, three.")):
        for ours, alone in zip(row(batch, index), row(processor(text, **clone), 0)):
            assert torch.equal(ours, alone)


def test_decoded_batch_equals_single_rows(processor):
    codes, lengths = torch.randint(20, (3, 9, 3)), [9, 4, 0]
    for index, length in enumerate(lengths):
        codes[index, length:] = -1
    waves = processor.decode(codes)
    for wave, row_codes, length in zip(waves, codes, lengths):
        assert wave.shape == (480 * length,) and wave.dtype == torch.float32 and wave.device.type == "cpu"
        if length:
            assert torch.equal(wave, processor.decode(row_codes[:length])[0])
            assert torch.equal(wave, processor.codec.decode(row_codes[:length].T[None])[0])


def test_same_after_save_and_load(processor, record, tmp_path):
    processor.save_pretrained(tmp_path / "saved")
    loaded = SmallEProcessor.from_pretrained(tmp_path / "saved")
    wave, codes = record(tmp_path / "voice.wav"), torch.randint(20, (1, 5, 3))
    clone = {"audio": wave, "audio_text": "I said so.", "sampling_rate": 24000}
    assert (loaded.voices, loaded.default_voice) == (processor.voices, processor.default_voice)
    for asked in ({}, {"voice": "ben"}, {"voice": "anna"}, clone):
        assert_equal(loaded(["One.", "Two, three."], **asked), processor(["One.", "Two, three."], **asked))
    assert torch.equal(loaded.decode(codes)[0], processor.decode(codes)[0])


def test_a_relative_path_is_found_from_another_folder(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_checkpoint.parent)
    processor = SmallEProcessor.from_pretrained(tiny_checkpoint.name)
    monkeypatch.chdir(tmp_path)
    assert processor("Hello.", voice="ben")["audio_codes"].any() and processor.codec.num_codebooks == 3


def test_a_voice_that_is_added_speaks_and_is_saved(processor, tmp_path):
    voice = Voice(torch.randint(20, (7, 3)), "So it is.", codec=processor.codec_id)
    processor.add_voice("carl", voice)
    processor.default_voice = "carl"
    wanted = processor("Hello.")
    processor.save_pretrained(tmp_path / "saved")
    loaded = SmallEProcessor.from_pretrained(tmp_path / "saved")
    assert_equal(loaded("Hello."), wanted)
    assert_equal(pickle.loads(pickle.dumps(processor))("Hello."), wanted)
    with pytest.raises(ValueError, match="'nobody'"):
        processor.default_voice = "nobody"
    for name, wrong, message in (("../carl", voice, "plain name"), ("dan", voice._replace(codec="0" * 16), "codec 0")):
        with pytest.raises(ValueError, match=message):
            processor.add_voice(name, wrong)


def test_a_voice_file_is_read_again_when_it_changes(processor, tmp_path):
    path = str(tmp_path / "own.safetensors")
    for codes in torch.randint(20, (2, 7, 3)):
        save_voice(path, codes, "So it is.")
        assert torch.equal(processor("Hello.", voice=path)["audio_codes"][0], codes)


def test_an_assigned_codec_replaces_that_of_the_checkpoint(processor, tiny_codec, tmp_path):
    processor("Hello.", voice="anna")
    other = copy.deepcopy(tiny_codec)
    torch.nn.init.normal_(other.quantizer.codebooks)
    processor.codec = other
    assert processor.codec is other and processor.codec_id == other.identity
    with pytest.raises(ValueError, match="'anna' was made with the codec"):
        processor("Hello.", voice="anna")
    with pytest.raises(ValueError, match="codec is str: expected a codec of 24000 Hz"):
        processor.codec = "codec"


def test_voices_stay_usable_when_the_codec_is_converted(processor):
    processor.codec.to(torch.bfloat16)
    processor("Hello.", voice="anna")


@pytest.mark.parametrize(
    "key, value",
    [
        ("codec", ".."),
        ("codec", "../../codec"),
        ("codec", "owner/.."),
        ("codec", "/codec"),
        ("codec", ""),
        ("codec", 5),
        ("voices", ["../../victim"]),
        ("voices", ["anna", ".."]),
        ("voices", ["a\\b"]),
        ("voices", 5),
        ("voices", [5]),
        ("default_voice", "../anna"),
        ("sampling_rate", 0),
        ("sampling_rate", "24000"),
    ],
)
def test_a_checkpoint_whose_names_are_paths_is_refused(tiny_checkpoint, tmp_path, key, value):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    path = folder / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=key):
        SmallEProcessor.from_pretrained(folder)


def test_training_batches_equal_those_of_the_training_collator(processor, tiny_model, record, tmp_path):
    texts = ["It is late.", "We go home to the open door."]
    waves = [record(tmp_path / f"{n}.wav", 0.2 + 0.1 * n, 100 + 50 * n)[0] for n in range(2)]
    batch = processor(texts, audio=waves, sampling_rate=24000, output_labels=True)
    codes = [processor.encode_voice(wave, None, 24000).codes for wave in waves]
    samples = [Sample(text, one, np.full((len(text.split()), 2), np.nan)) for text, one in zip(texts, codes)]
    collated = Collator(processor.tokenizer, 3, 50.0)(samples)
    for name in ("decoder_input_ids", "decoder_attention_mask", "labels"):
        assert torch.equal(batch[name], collated[name])
    collated.pop("token_windows")
    torch.testing.assert_close(tiny_model(**batch).loss, tiny_model(**collated).loss)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({}, "1 texts"),
        ({"audio": [[0.1] * 4800] * 2}, "1 texts with output_labels"),
        ({"audio": [0.1] * 4800, "voice": "anna"}, "does not take voice"),
        ({"audio": [0.1] * 4800, "audio_text": "Hello."}, "or audio_text"),
    ],
)
def test_wrong_training_batches_are_refused(processor, asked, message):
    with pytest.raises(ValueError, match=message):
        processor("Hello.", sampling_rate=24000, output_labels=True, **asked)


def test_pickled_without_its_codec(processor):
    codes = torch.randint(20, (1, 5, 3))
    wave = processor.decode(codes)[0]
    loaded = pickle.loads(pickle.dumps(processor))
    assert loaded._codec is None
    assert_equal(loaded("Hello.", voice="ben"), processor("Hello.", voice="ben"))
    assert torch.equal(loaded.decode(codes)[0], wave)


WAVE = np.full(4800, 0.1, np.float32)
SAID = {"audio_text": "So.", "sampling_rate": 24000}


@pytest.mark.parametrize(
    "text, asked, message",
    [
        ("Hello.", {"voice": "carl"}, r"'carl'.*'anna', 'ben'"),
        ("Hello.", {"voice": ["anna", "ben"]}, "2 voices for 1 texts"),
        (["Hello.", "You."], {"voice": ["anna"]}, "1 voices for 2 texts"),
        ("", {}, "letter"),
        ("  \n", {}, "letter"),
        ("!!! ...", {}, "letter"),
        ("\u4f60\u597d", {}, "letter"),
        (["Hello.", ""], {}, r"text\[1\]='' has nothing to speak"),
        ([], {}, "list of strings"),
        (None, {}, "list of strings"),
        (["Hello.", 5], {}, "list of strings"),
        ("Hello.", {"return_tensors": "np"}, "'np'"),
        ("Hello.", {"speaker": "anna"}, "speaker"),
        ("Hello.", {"audio": WAVE, **SAID, "audio_text": "?!"}, "letter"),
        ("Hello.", {"audio": WAVE, "audio_text": "So."}, "sampling_rate"),
        ("Hello.", {"audio": WAVE, **SAID, "sampling_rate": 0}, "sampling_rate=0"),
        ("Hello.", {"audio": WAVE, **SAID, "voice": "anna"}, "not both"),
        ("Hello.", {"audio": "nowhere.wav", "audio_text": "So."}, "nowhere.wav"),
        ("Hello.", {"audio": __file__, "audio_text": "So."}, "sound file"),
        ("Hello.", {"audio": WAVE[:0], **SAID}, "shape .0,.: expected"),
        ("Hello.", {"audio": WAVE * np.nan, **SAID}, "NaN"),
        ("Hello.", {"audio": WAVE.astype(np.int16), **SAID}, "32768"),
        ("Hello.", {"audio": WAVE.reshape(-1, 2), **SAID}, "channels"),
        ("Hello.", {"audio": WAVE.reshape(1, 1, -1), **SAID}, "channels"),
        ("Hello.", {"voice": __file__}, "voice file"),
        ("Hello.", {"voice": 0}, "voice=0"),
        ("Hello.", {"voice": ""}, "not known"),
        ("Hello.", {"voice": [["anna"]]}, "name of a preset"),
        ("Hello.", {"audio": WAVE, **SAID, "sampling_rate": 24}, "1000 to"),
        ("Hello.", {"audio": WAVE, **SAID, "sampling_rate": np.nan}, "sampling_rate=nan"),
        ("Hello.", {"audio": WAVE + 20000, **SAID}, "reaches 20000"),
        ("Hello.", {"audio": b"RIFF", "audio_text": "So."}, "4 bytes, cannot be read"),
        ("Hello.", {"audio": {"path": None}, "audio_text": "So."}, "without samples"),
        ("Hello.", {"audio": [[0.0], [0.0, 1.0]], **SAID}, "2 recordings"),
        ("Hello.", {"audio": (WAVE, 24000), "audio_text": "So."}, "pair of samples"),
        ("Hello.", {"audio": (24000, WAVE), "audio_text": "So."}, "pair of samples"),
        ("Hello.", {"audio": WAVE * 0, **SAID}, "silent"),
        ("Hello.", {"audio": WAVE[:1] * 1e-3, **SAID}, "silent"),
        ("Hello.", {"audio": np.stack([WAVE, -WAVE]), **SAID}, "silent"),
        ("Hello.", {"audio": WAVE[:1], **SAID, "sampling_rate": 1000000}, "too short"),
        (["Hello.", "You."], {"audio": [WAVE, WAVE], **SAID}, "2 recordings .* 1 transcripts"),
        ("Hello.", {"audio": WAVE, **SAID, "audio_text": 5}, "audio_text"),
    ],
)
def test_wrong_inputs_are_refused(processor, text, asked, message):
    with pytest.raises(ValueError, match=message):
        processor(text, **asked)


def test_default_voice_must_be_one_of_the_voices(tiny_tokenizer):
    with pytest.raises(ValueError, match="'carl'"):
        SmallEProcessor(tiny_tokenizer, voices=["anna"], default_voice="carl")


def test_a_checkpoint_of_a_relative_path_works_in_another_folder(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_checkpoint.parent)
    processor = SmallEProcessor.from_pretrained(tiny_checkpoint.name)
    monkeypatch.chdir(tmp_path)
    assert processor("Hi.", voice="anna")["audio_codes"].shape[1] > 0
    assert len(processor.decode(torch.zeros(1, 4, 3, dtype=torch.long))[0]) == 4 * 480


def speech_of(seconds, rate=24000):
    """Four phrases of a hum, with pauses of a fifth of a second, as samples (L,)."""
    time = torch.arange(int(seconds * rate)) / rate
    part = seconds / 4
    return (0.3 * torch.sin(760 * time) * (time % part < part - 0.2)).numpy()


SAID = "It was a dog. Nobody knew it. Why was it so? It is a door."


def test_a_long_recording_is_cut_with_its_transcript(processor, caplog):
    transformers_logging.enable_propagation()
    voice = processor.encode_voice(speech_of(16), SAID, 24000)
    transformers_logging.disable_propagation()
    assert voice.text == "It was a dog. Nobody knew it." and 7.5 < len(voice.codes) / 50 < 8.2
    assert "16 s long" in caplog.text
    whole = processor.encode_voice(speech_of(12), SAID, 24000)
    assert whole.text == SAID and len(whole.codes) == 600


@pytest.mark.parametrize(
    "wave, said, match",
    [
        (speech_of(16), "It was a dog and nobody knew it", "16 s long"),
        (speech_of(16)[9:10], SAID, "s long"),
        (np.zeros(96000, np.float32), SAID, "silent"),
    ],
    ids=["nowhere to cut", "one sample", "silence"],
)
def test_a_recording_that_cannot_be_a_prompt_is_refused(processor, wave, said, match):
    with pytest.raises(ValueError, match=match):
        processor("Hi.", audio=wave, audio_text=said, sampling_rate=24000)
