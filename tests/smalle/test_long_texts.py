"""Texts of any length by generate(): pieces = single runs, one speech of them; readings that are stopped and read
again; names of a lexicon."""

import logging
import pathlib

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from smalle import SmallEForTextToSpeech, SmallEProcessor
from smalle.alignment_smalle import Reading
from smalle.cli import main as cli
from smalle.configuration_smalle import AUDIO_EOS
from smalle.voices_smalle import Voice

CHECKPOINT = pathlib.Path(__file__).parents[2] / "checkpoints" / "smalle-mini"
SHORT = "Good morning, how are you today?"
LONG = (
    "The old house stood at the end of a long road. Nobody had lived there for many years. Children said that a light "
    "moved in the windows at night. One morning a young woman came with two heavy bags. She opened the door and looked "
    "into the dark hall. Dust lay on every chair and on the broken clock. She smiled, put down her bags, and opened "
    "all the windows. By evening the kitchen was warm, and soup was on the stove."
)


# How a reading goes


def finish(positions, first=2, last=20, may_stop=True, frame_rate=50.0):
    reading = Reading(first, last)
    for position in positions:
        reading = reading.follow(position, frame_rate, may_stop)
        if reading.finish:
            return reading
    return reading.end()


STEADY = [2 + n / 8 for n in range(145)]  # 8 frames for each of 18 tokens


def test_a_steady_reading_ends_by_itself():
    assert finish(STEADY) == finish(STEADY)._replace(finish="stop", skipped=0, moved_back=0)


WRONG = {
    "looped": STEADY[:100] + STEADY,
    "stalled": STEADY[:60] + [STEADY[60]] * 200,
    "text_end": [*STEADY, *[19.5] * 200],
    "too_long": [2 + n / 80 for n in range(1450)],
    "skipped": STEADY[:40] + STEADY[100:],
    "incomplete": STEADY[:100],
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_reading_that_fails_says_how(reason):
    reading = finish(WRONG[reason])
    assert reading.finish == reason and reading.failed == (reason != "text_end")
    assert not reading.failed or reading.score < finish(STEADY).score
    if reason not in ("skipped", "incomplete"):  # these end by themselves
        assert reading.frames < len(WRONG[reason]) and finish(WRONG[reason], may_stop=False).frames > reading.frames


def test_the_score_counts_tokens_that_were_read_again_passed_or_left():
    parts = {}, {"furthest": 19.0}, {"skipped": 0.5}, {"moved_back": 2.0}, {"furthest": 18.0, "skipped": 1.5}
    scores = [Reading(0, 20, **{"furthest": 20.0, **part}).score for part in parts]
    assert scores == [(True, 0), (True, -1), (True, -0.5), (True, -2), (True, -3.5)]
    assert Reading(0, 20, furthest=20.0, finish="looped").score == (False, 0)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=2000), st.sampled_from([12.5, 50.0, 75.0]))
def test_no_reading_is_longer_than_its_text(positions, frame_rate):
    reading = finish(positions * 20, frame_rate=frame_rate)
    assert reading.frames <= (0.5 * 19 + 2) * frame_rate + 1


def test_without_an_alignment_only_the_time_is_watched():
    assert finish([None] * 10).finish == "stop" and finish([None] * 999).finish == "too_long"


def test_a_reading_is_stopped_at_the_frame_that_is_too_much():
    back = finish(STEADY[:100] + [STEADY[99] - 5] * 50)
    assert back.finish == "looped" and back.frames == 100 + 0.1 * 50
    long = finish([None] * 999, first=2, last=20)
    assert long.frames == (0.5 * 19 + 2) * 50


# Pieces


@pytest.fixture
def tiny(make_tiny):
    model = make_tiny()
    model.step_runtime = "torch"
    return model


STORY = "Nobody knew why. " * 12
GREEDY = dict(do_sample=False, min_new_tokens=9, output_alignments=True, return_dict_in_generate=True)


def limited(model, frames):
    """The model, every piece of which has so many frames."""
    model.generation_config.max_new_tokens = frames
    return model


def test_the_pieces_of_a_batch_equal_single_runs(processor, tiny):
    model, texts, voices = limited(tiny, 9), [STORY, "It was a dog."], ["anna", "ben"]
    inputs = processor(texts, voice=voices)
    output = model.generate(**inputs, **GREEDY)
    pieces = processor.split_text(STORY, processor.get_voice("anna"))
    assert len(pieces) > 1 and " ".join(pieces) == processor.normalize(STORY)
    alone = [model.generate(**processor(piece, voice="anna"), **GREEDY) for piece in pieces]
    assert output.lengths.tolist() == [9 * len(pieces), 9] and output.finish_reason == ["length"] * 2
    assert torch.equal(output.sequences[0], torch.cat([one.sequences[0] for one in alone]))
    short = model.generate(**processor(texts[1], voice="ben"), **GREEDY)
    assert torch.equal(output.sequences[1, :9], short.sequences[0]) and (output.sequences[1, 9:] == -1).all()
    assert output.alignments.shape == (2, 9 * len(pieces), inputs["input_ids"].shape[1]) and output.cache is None
    for number, one in enumerate(alone):  # each piece reads its own tokens and those of the prompt
        part = output.alignments[0, 9 * number : 9 * number + 9]
        read = (inputs["piece_ids"][0] == number + 1) | (inputs["piece_ids"][0] == 0) & inputs["attention_mask"][
            0
        ].bool()
        torch.testing.assert_close(part[:, read], one.alignments[0])
        assert (part[:, ~read] == 0).all()


@pytest.mark.parametrize("voice", ["ben", None])
def test_pieces_are_the_same_by_generate_and_by_streams(processor, tiny, voice):
    processor.default_voice = None
    model, way = limited(tiny, 12), dict(seed=3, min_new_tokens=12, temperature=2.0)
    inputs = processor(STORY, voice=voice)
    codes = model.generate(**inputs, **way)
    parts = [x.sequences[0, : x.lengths[0]] for x in model.stream(**inputs, **way, chunk_frames=5)]
    assert torch.equal(torch.cat(parts), codes[0])
    wave = torch.cat(list(processor.stream(model, STORY, voice=voice, **way)))
    torch.testing.assert_close(wave, processor.decode(codes)[0], atol=1e-4, rtol=0)


def test_a_limit_that_is_given_is_that_of_all_pieces(processor, tiny):
    inputs = processor([STORY, "It was a dog."])
    output = limited(tiny, 9).generate(**inputs, **GREEDY, max_new_tokens=13)
    assert output.lengths.tolist() == [13, 13] and output.finish_reason == ["length"] * 2
    several = tiny.generate(**inputs, **GREEDY, num_return_sequences=2)
    assert several.lengths.tolist() == [9 * int(inputs["piece_ids"].max())] * 2 + [9, 9]


def test_wrong_pieces_are_refused(processor, tiny):
    inputs = processor(STORY)
    for wrong in (inputs["piece_ids"][:, 1:], inputs["piece_ids"] * 0, -inputs["piece_ids"], inputs["piece_ids"] * 2):
        with pytest.raises(ValueError, match="piece_ids"):
            tiny.generate(**{**inputs, "piece_ids": wrong})


@pytest.mark.parametrize("text", ["One.", STORY])
def test_every_token_of_a_text_has_its_piece(processor, text):
    (prompt,) = processor.prompts(1, "anna")
    pieces = processor.split_text(text, prompt)
    inputs = processor([text, "Mr dog."], voice="anna")
    ids, numbers = inputs["input_ids"][0], inputs["piece_ids"][0]
    for number, piece in enumerate(pieces, 1):
        assert processor.tokenizer.decode(ids[numbers == number]).strip() == piece.lower()
    assert processor.tokenizer.decode(ids[numbers == 0], skip_special_tokens=True).strip() == prompt.text.lower()


# The embedded checkpoint


@pytest.fixture(scope="module")
def checkpoint():
    torch.manual_seed(0)
    return SmallEProcessor.from_pretrained(CHECKPOINT), SmallEForTextToSpeech.from_pretrained(CHECKPOINT).eval()


def test_a_long_text_and_a_short_one_are_spoken_whole(checkpoint):
    processor, model = checkpoint
    inputs = processor([SHORT, LONG])
    output = model.generate(**inputs, seed=1, output_alignments=True, return_dict_in_generate=True)
    short, long = (output.lengths / model.config.frame_rate).tolist()
    assert 1 < short < 4 and 18 < long < 35 and output.finish_reason == ["stop", "stop"]
    words = processor.timestamps(output, [SHORT, LONG])[1]
    assert " ".join(word["word"] for word in words) == "".join(c for c in LONG if c not in ".,")
    assert all(0 < word["end"] - word["start"] < 1.2 for word in words)


def test_every_door_speaks_the_same(checkpoint, tmp_path):
    processor, model = checkpoint
    text, way = f"On May 5 & 6, 2026: {LONG[:110]}", dict(seed=5, max_retries=2)
    (generated,) = processor.decode(model.generate(**processor(text), **way))
    piped = pipeline("text-to-speech", model=str(CHECKPOINT))(text, generate_kwargs=way)["audio"].squeeze()
    streamed = torch.cat(list(processor.stream(model, text, **way)))
    assert cli.main(["say", text, "--model", str(CHECKPOINT), "--seed", "5", "-o", str(tmp_path / "a.wav")]) == 0
    said, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert 6 < len(said) / 24000 < 14
    for wave in piped, streamed, said:
        torch.testing.assert_close(torch.as_tensor(wave), generated, atol=1e-4, rtol=0)


@pytest.fixture
def warnings(caplog):
    """Messages of the library."""
    transformers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    transformers_logging.disable_propagation()


def without_end(ids, scores):
    scores[:, AUDIO_EOS] = -torch.inf
    return scores


@pytest.mark.parametrize("runtime", ["torch", "native"])
def test_a_reading_that_does_not_end_is_ended_after_its_last_word(checkpoint, warnings, runtime):
    processor, model = checkpoint
    model.step_runtime = runtime
    way = dict(seed=1, logits_processor=[without_end], return_dict_in_generate=True)
    try:
        output = model.generate(**processor([SHORT, "Yes."]), **way)
    finally:
        model.step_runtime = "auto"
    assert output.finish_reason[0] in ("text_end", "looped") and output.lengths.max() < 6 * 50
    assert "Text 0" in warnings.text and "Text 1" in warnings.text


def test_a_text_that_is_not_cut_loops_is_stopped_and_is_read_again(checkpoint, warnings):
    processor, model = checkpoint
    inputs = processor(LONG)
    inputs["piece_ids"] = inputs["piece_ids"].clamp(max=1)
    once = model.generate(**inputs, seed=0, max_retries=0, return_dict_in_generate=True)
    assert (
        once.finish_reason == ["looped"]
        and once.lengths[0] < 30 * 50
        and "Text 0: the reading went back" in warnings.text
    )
    again = model.generate(**inputs, seed=0, max_retries=1, return_dict_in_generate=True)
    assert again.cache.readings[0].score >= once.cache.readings[0].score


@pytest.mark.parametrize("runtime", ["torch", "native"])
def test_a_transcript_that_goes_on_after_its_recording_is_not_spoken(checkpoint, runtime):
    processor, model = checkpoint
    (wave,) = processor.decode(model.generate(**processor(SHORT), seed=1))
    said = {"audio": wave, "sampling_rate": 24000}
    model.step_runtime = runtime
    try:
        right = model.generate(**processor("Yes, I am.", audio_text=SHORT, **said), seed=1)
        assert right.shape[1] < 3 * 50
        more = f"{SHORT} The train to London leaves at noon."
        inputs = processor("Yes, I am.", audio_text=more, **said)
        if processor.clones_by_reference:  # a transcript is not needed, and passed over
            assert torch.equal(model.generate(**inputs, seed=1), right)
        else:
            with pytest.raises(ValueError, match="audio_text"):
                model.generate(**inputs, seed=1)
    finally:
        model.step_runtime = "auto"


# Names


def test_a_lexicon_respells_whole_words(processor, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("# names\nNguyen = win\nNguyen Street = win road\n\n")
    for lexicon in ({"Nguyen": "win", "Nguyen Street": "win road"}, str(file), file):
        inputs = processor("nguyen's dog in NGUYEN STREET, Nguyens", voice="anna", lexicon=lexicon)
        same = processor("win's dog in win road, Nguyens", voice="anna")
        assert torch.equal(inputs["input_ids"], same["input_ids"])
    assert torch.equal(processor("Hi.", lexicon={})["input_ids"], processor("Hi.")["input_ids"])


def test_a_wrong_lexicon_is_refused(processor, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("Nguyen: win\n")
    for wrong in (file, tmp_path / "missing", {"a": 5}, 5, {"": "x"}):
        with pytest.raises(ValueError, match="expected"):
            processor("Hi.", lexicon=wrong)


def test_emoji_are_said_on_demand(processor):
    said = processor("A dog \U0001f415.", voice="anna", emoji=True)["input_ids"]
    assert torch.equal(said, processor("A dog dog.", voice="anna")["input_ids"])
    assert torch.equal(processor("A dog \U0001f415.")["input_ids"], processor("A dog.")["input_ids"])


def test_a_stream_takes_the_lexicon_too(processor, tiny):
    way = dict(seed=1, max_new_tokens=20, voice="anna")
    first = torch.cat(list(processor.stream(tiny, "Nguyen.", lexicon={"Nguyen": "win"}, **way)))
    assert torch.equal(first, torch.cat(list(processor.stream(tiny, "win.", **way))))
    assert len(processor.split_text("One. Two.", Voice())) == 1
