"""Synthesis with Kokoro: plans, speakers, batches, files. Weights are random; nothing is downloaded."""

import json
import wave

import numpy as np
import pytest
import torch
from smalle.corpus.kokoro_model import SAMPLES_PER_FRAME, SAMPLING_RATE, Kokoro, energy
from smalle.corpus.kokoro_weights import checked, lstm_weights, pad_to
from smalle.corpus.speakers import HELD_OUT_VOICES, sample_speakers
from smalle.corpus.synthesize import (
    Sentence,
    decoder_batches,
    read_plan,
    rows_for_voices,
    style_of,
    trim,
    write_metadata,
    write_sentence,
)

ROW = {
    "id": "s1",
    "text": "Hello.",
    "phonemes": "həlˈO.",
    "speaker": "mix",
    "voice": {"a": 1.5, "b": -0.5},
    "speed": 1.0,
}
VOICES = {"a": torch.zeros(510, 256), "b": torch.zeros(510, 256)}


def write_plan(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_voices_take_turns_and_each_reads_its_accent():
    rows = [{**ROW, "id": str(n), "voice": {f"{accent}_x": 1.0}} for n, accent in enumerate("abaabba")]
    rows += [{**ROW, "id": "mixed", "voice": {"a_x": 0.5, "b_x": 0.5}}]
    turns = rows_for_voices(rows, ["am_one", "bf_two", "af_three"])
    assert [(row["speaker"], row["id"]) for row in turns] == [
        ("am_one", "0"),
        ("bf_two", "1"),
        ("af_three", "2"),
        ("am_one", "3"),
        ("bf_two", "4"),
        ("af_three", "6"),
    ]
    assert turns[1]["voice"] == {"bf_two": 1.0}


def test_voices_of_other_languages_read_american_english():
    rows = [{**ROW, "id": str(n), "voice": {f"{accent}_x": 1.0}} for n, accent in enumerate("ba")]
    assert [(row["speaker"], row["id"]) for row in rows_for_voices(rows, ["ef_dora"])] == [("ef_dora", "1")]


def test_sound_and_prosody_may_be_different_blends():
    voices = {name: torch.full((510, 256), value) for name, value in (("a", 1.0), ("b", 2.0))}
    style = style_of({**ROW, "voice": {"a": 1.25, "b": -0.25}, "prosody": {"b": 1.0}}, voices, 5)
    assert style.tolist() == [0.75] * 128 + [2.0] * 128
    assert style_of(ROW, voices, 5).tolist() == [0.5] * 256


NAMES = [f"{accent}{sex}_{name}" for accent in "abez" for sex in "fm" for name in ("one", "two")] + [*HELD_OUT_VOICES]


def test_sampled_speakers_use_no_held_out_voice_and_speak_english():
    rows = [{**ROW, "id": str(n), "text": "x" * (20 + n), "voice": {f"{'ab'[n % 2]}f_one": 1.0}} for n in range(80)]
    turns = sample_speakers(rows, 11, 3, NAMES)  # six whole pairs
    assert turns == sample_speakers(rows, 12, 3, NAMES) != sample_speakers(rows, 12, 3, NAMES, seed=1)
    assert all(30 <= len(row["text"]) <= 80 for row in turns)
    said = {name: [row["id"] for row in turns if row["speaker"] == name] for name in {row["speaker"] for row in turns}}
    pairs = [(ids, said[name[:-1] + "b"]) for name, ids in said.items() if name.endswith("~a")]
    assert len(pairs) == 6 and all(first == second for first, second in pairs)
    assert len({name for first, _ in pairs for name in first}) == len(turns) / 2
    for row in turns:
        sound, prosody = row["voice"], row["prosody"]
        assert not (sound.keys() | prosody.keys()) & set(HELD_OUT_VOICES)
        assert sum(sound.values()) == pytest.approx(1, abs=0.01) and sum(prosody.values()) == pytest.approx(1)
        sexes = [sum(weight for name, weight in sound.items() if name[1] == sex) for sex in "fm"]
        assert sorted(sexes) == pytest.approx([0, 1], abs=0.01)  # every voice's part is its distance from its sex
        assert {name[1] for name in prosody} == {"fm"[sexes[1] > 0.5]}
        assert {name[0] for name in prosody} == {"ab"[int(row["id"]) % 2]}
    alike = [
        {(tuple(row["voice"].items()), str(row["noise"]), row["speed"]) for row in turns if row["speaker"] == name}
        for name in {row["speaker"] for row in turns}
    ]
    assert all(len(one) == 1 for one in alike)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_energy_is_the_sum_of_squares_in_any_dtype(dtype):
    x = 300 * torch.randn(2, 50, 8)
    torch.testing.assert_close(energy(x.to(dtype)), x.square().sum(1, keepdim=True), rtol=2e-2, atol=0)


def test_noise_has_its_length_in_both_halves_and_a_seed_fixes_it():
    noise = {"voice": [3, 0.75], "prosody": [4, 0.35]}
    style = style_of({**ROW, "noise": noise}, VOICES, 3)
    assert style.view(2, 128).norm(dim=1).tolist() == pytest.approx([0.75, 0.35])
    assert torch.equal(style, style_of({**ROW, "noise": noise}, VOICES, 9))
    assert not torch.equal(style, style_of({**ROW, "noise": {**noise, "voice": [4, 0.75]}}, VOICES, 3))
    assert not style_of(ROW, VOICES, 3).any() and not VOICES["a"].any()


def tone(seconds, before=0.0, behind=0.0):
    sound = 0.5 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE)
    return np.pad(sound, (int(before * SAMPLING_RATE), int(behind * SAMPLING_RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Kokoro({"a": 43, "b": 44}).eval()


def test_tokenize_drops_unknown_phonemes(model):
    assert model.tokenize("aXb") == [0, 43, 44, 0]


def test_ragged_plan_matches_batch_of_one(model):
    tokens, styles = torch.randint(1, 178, (2, 9)), torch.randn(2, 256)
    tokens[1, 6:] = 0
    features, durations = model.plan(tokens, torch.tensor([9, 6]), styles, torch.ones(2))
    alone, durations_alone = model.plan(tokens[1:, :6], torch.tensor([6]), styles[1:], torch.ones(1))
    torch.testing.assert_close(features[1, :6], alone[0], atol=1e-4, rtol=1e-3)
    assert durations[1].tolist() == durations_alone[0].tolist() + [0, 0, 0]


def test_ragged_speech_matches_batch_of_one(model):
    features, styles = torch.randn(2, 16, 1152), torch.randn(2, 256)
    both = model.speak(features, torch.tensor([15, 9]), styles, noise=0.0)
    alone = model.speak(features[1:, :10], torch.tensor([9]), styles[1:], noise=0.0)
    end = 9 * SAMPLES_PER_FRAME - 20  # the last window is divided by a smaller sum at the end of an array
    error = (both[1, :end] - alone[0, :end]).abs() / alone.abs().max()
    assert error.quantile(0.99) < 1e-3  # where the source is silent its phase is a matter of rounding


def test_lstm_of_onnx_gate_order():
    lstm = torch.nn.LSTM(3, 2, bidirectional=True)
    state = lstm.state_dict()

    def onnx_order(kind, suffix):
        i, f, c, o = state[f"{kind}_l0{suffix}"].chunk(4)
        return torch.cat([i, o, f, c])

    w, r = (torch.stack([onnx_order(kind, s) for s in ("", "_reverse")]) for kind in ("weight_ih", "weight_hh"))
    b = torch.stack([torch.cat([onnx_order(k, s) for k in ("bias_ih", "bias_hh")]) for s in ("", "_reverse")])
    for name, value in lstm_weights("x", w, r, b).items():
        torch.testing.assert_close(value, state[name.removeprefix("x.")])


def test_a_changed_package_is_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"content")
    digest = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert checked(tmp_path / "a.tgz", digest) == b"content"
    with pytest.raises(ValueError, match="a.tgz has the sha256 ed7002"):
        checked(tmp_path / "a.tgz", digest[::-1])


def test_padding_keeps_scale_and_shift_apart():
    assert pad_to(torch.tensor([1.0, 2.0]), torch.Size([6]), halves=True).tolist() == [1, 0, 0, 2, 0, 0]


def test_decoder_batches_hold_every_sentence_once_within_its_length():
    sentences = [Sentence(ROW, [0], torch.zeros(256), durations=np.array([n])) for n in (10, 900, 31, 32, 33, 200)]
    batches = list(decoder_batches(sentences, seconds=20))
    assert sorted(s.frames for _, batch in batches for s in batch) == [10, 31, 32, 33, 200, 900]
    assert all(s.frames < length for length, batch in batches for s in batch)


def test_trim_leaves_a_tenth_before_and_a_fifth_behind():
    span = trim(tone(1.0, before=0.5, behind=0.8), "Hello.")
    assert span.start == pytest.approx(0.4 * SAMPLING_RATE, abs=SAMPLING_RATE // 100)
    assert span.stop - span.start == pytest.approx(1.3 * SAMPLING_RATE, abs=SAMPLING_RATE // 100)
    assert trim(tone(1.0), "Hello.") == slice(0, SAMPLING_RATE)


def test_trim_refuses_an_impossible_pace():
    text = "A sentence of some forty characters here."
    assert trim(tone(3.0), text) and not trim(tone(1.0), text) and not trim(tone(12.0), text)
    assert trim(tone(3.0), "Short.")


@pytest.mark.parametrize("audio", [np.full(SAMPLING_RATE, np.nan, np.float32), 0.01 * tone(1.0)])
def test_broken_audio_is_not_written(audio, tmp_path):
    assert write_sentence(audio, ROW, tmp_path) == 0
    assert not list(tmp_path.rglob("*.wav"))


def test_metadata_lists_what_was_written(tmp_path):
    seconds = write_sentence(tone(1.0), ROW, tmp_path)
    write_metadata([ROW, {**ROW, "id": "s2"}], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["file_name"], r["duration"]) for r in rows] == [("mix/s1.wav", seconds)]
    with wave.open(str(tmp_path / "mix" / "s1.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLING_RATE)


@pytest.mark.parametrize(
    "change",
    [
        {"voice": {"c": 1.0}},
        {"voice": {}},
        {"speed": 0},
        {"speed": None},
        {"id": "../s1"},
        {"speaker": ".."},
        {"speaker": "/tmp"},
        {"id": "s1"},
        {"noise": {"voice": 0.7}},
        {"noise": {"sound": [1, 0.7]}},
        {"noise": None},
        None,
    ],
)
def test_a_bad_row_is_named(change, tmp_path):
    plan = write_plan(tmp_path / "plan.jsonl", ROW, {**ROW, "id": "s0", **change} if change else 5)
    with pytest.raises(ValueError, match=r"plan\.jsonl:2"):
        read_plan(plan, VOICES)
