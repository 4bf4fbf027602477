"""Conversations: the last message is spoken in the voice of those before it, as a plain call would have it."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import pipeline

SAID = "I said so."


def turn(*content):
    return {"role": "user", "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture
def wave(record, tmp_path):
    """Path of a recording; its samples."""
    return str(tmp_path / "voice.wav"), record(tmp_path / "voice.wav", 0.3, 150, 44100)[0]


def inputs(processor, chat, **settings):
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, **settings)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_text_alone_is_spoken_by_the_default_voice_or_a_named_one(processor):
    for content in ("Hello.", [text("Hello.")]):
        assert_equal(inputs(processor, [{"role": "user", "content": content}]), processor("Hello."))
    named = inputs(processor, [turn(text("Hello."))], processor_kwargs={"voice": "ben", "unprompted": True})
    assert_equal(named, processor("Hello.", voice="ben", unprompted=True))


def test_recording_and_what_it_says_are_the_voice(processor, wave):
    path, samples = wave
    wanted = processor("Hello.", audio=path, audio_text=SAID)
    row = {"array": samples, "sampling_rate": 44100}
    for source in ({"path": path}, {"url": path}, {"audio": path}, {"audio": row}):
        audio = {"type": "audio", **source}
        assert_equal(inputs(processor, [turn(text(SAID), audio), turn(text("Hello."))]), wanted)
        assert_equal(inputs(processor, [turn(audio, text(SAID)), {"role": "0", "content": "Hello."}]), wanted)
    given_rate = {"processor_kwargs": {"sampling_rate": 44100}}
    chat = [turn(text(SAID), {"type": "audio", "audio": samples}), turn(text("Hello."))]
    assert_equal(inputs(processor, chat, **given_rate), wanted)


def test_recordings_are_one_prompt_after_the_other(processor, wave):
    turns = [turn(text(said), {"type": "audio", "path": wave[0]}) for said in ("One.", "Two.")]
    alone = processor("Hello.", audio=wave[0], audio_text=SAID)["audio_codes"]
    both = inputs(processor, [*turns, turn(text("Hello."))])
    assert torch.equal(both["audio_codes"], torch.cat((alone, alone), 1))
    assert both["input_ids"][0].tolist() == processor.tokenizer("One. Two. Hello.")["input_ids"]


def test_batch_of_conversations_equals_single_ones(processor, wave):
    chats = [
        [turn(text("Hello."))],
        [turn(text(SAID), {"type": "audio", "path": wave[0]}), turn(text("It is a longer text."))],
    ]
    batch = inputs(processor, chats)
    for row, chat in enumerate(chats):
        alone = inputs(processor, chat)
        kept, frames = batch["attention_mask"][row].bool(), batch["audio_attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][kept], alone["input_ids"][0])
        assert torch.equal(batch["audio_codes"][row][frames], alone["audio_codes"][0])
    assert torch.equal(processor.apply_chat_template(chats, tokenize=True), batch["input_ids"])
    read = processor.apply_chat_template(chats)
    assert read == ["It is a door. Hello.", f"{SAID} It is a longer text."]
    assert processor.apply_chat_template(chats[1]) == read[1]


def test_a_recording_alone_tells_who_speaks(processor, wave):
    heard = inputs(processor, [turn({"type": "audio", "path": wave[0]}), turn(text("Hello."))])
    wanted = processor("Hello.", audio=wave[0])
    assert heard.keys() == wanted.keys() and all(torch.equal(heard[name], wanted[name]) for name in wanted)


def test_pipeline_takes_conversations(tiny_checkpoint, wave):
    speak = pipeline("text-to-speech", model=str(tiny_checkpoint))
    length = {"generate_kwargs": {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}}
    plain = speak("Hello.", **length)["audio"]
    assert (speak([turn(text("Hello."))], **length)["audio"] == plain).all()
    cloned = speak([turn(text(SAID), {"type": "audio", "path": wave[0]}), turn(text("Hello."))], **length)["audio"]
    assert not (cloned == plain).all()


@pytest.mark.parametrize("chat, message", [
    ([], "list of messages"), ("Hello.", "list of messages"), ([turn()], "expected content"),
    ([{"role": "user"}], "expected content"), ([{"role": "user", "content": 5}], "expected content"),
    ([turn({"type": "image", "path": "a.png"})], "type 'image'"), ([turn({"type": "text"})], "with text"),
    ([turn({"type": "audio"})], "path or url"),
    ([turn(text("Hello."), {"type": "audio", "path": "a.wav"})], "before it"),
    ([turn(text("One.")), turn(text("Two."))], "0 recordings"), ([turn(text("!?"))], "letter"),
    ([turn({"type": "audio", "path": "a.wav"})] * 2 + [turn(text("Two."))], "1 recordings and the text ''"),
    ([turn({"type": "audio", "path": "a.wav"}, text("One.")), turn(text("Two."))], "no such file"),
    ([turn({"type": "audio", "audio": np.zeros(900)}, text("One.")), turn(text("Two."))], "sampling_rate"),
])  # fmt: skip
def test_wrong_conversations_are_refused(processor, chat, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(chat, tokenize=True)


def test_wrong_settings_are_refused(processor, wave):
    chat = [turn(text(SAID), {"type": "audio", "path": wave[0]}), turn(text("Hello."))]
    with pytest.raises(ValueError, match="not both"):
        inputs(processor, chat, voice="ben")
    with pytest.raises(ValueError, match="tools"):
        inputs(processor, chat, tools=[])


words = st.none() | st.text(max_size=3) | st.sampled_from(["text", "audio"])
blocks = st.dictionaries(st.sampled_from(["type", "text", "audio", "path"]), words)
content = st.none() | st.text(max_size=5) | st.integers() | st.lists(blocks, max_size=2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=st.recursive(st.none() | st.fixed_dictionaries({"content": content}), st.lists, max_leaves=4))
def test_any_conversation_gives_text_or_a_value_error(processor, chat):
    try:
        read = processor.apply_chat_template(chat)
    except ValueError as error:
        assert "expected" in str(error) or "put a recording" in str(error)
    else:
        assert read and isinstance(read, (str, list))
