"""Speaker embeddings: the same alone and in a batch, used by every runtime, zero without a reference recording."""

import json

import pytest
import torch
from smalle.train.assemble import assemble

from smalle import SmallEConfig, SmallEProcessor, runtime_smalle
from smalle.voices_smalle import Voice, join_voices, load_voice, save_voice

TEXT = torch.tensor([[5, 9, 30, 7], [8, 40, 11, 6]])
GREEDY = dict(do_sample=False, max_new_tokens=12, min_new_tokens=12)


@pytest.fixture(scope="module", params=["paca", "plain"])
def model(request, make_tiny):
    return make_tiny(speaker_layers=1, cross_attention=request.param)


@pytest.fixture(scope="module")
def recordings():
    """Two recordings (B, P, Q), the second shorter, and their mask."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return torch.randint(0, 20, (2, 9, 3), generator=torch.Generator().manual_seed(1)), mask


def test_embeddings_in_a_batch_equal_single_ones(model, recordings):
    codes, mask = recordings
    together = model.model.encode_speaker(codes, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model.model.encode_speaker(codes[row : row + 1, :length])
        assert torch.allclose(together[row], alone[0], atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_padding_on_either_side_changes_no_embedding(model, recordings):
    codes, mask = recordings
    noise = torch.where(mask[..., None].bool(), codes, 19 - codes)
    assert torch.equal(model.model.encode_speaker(codes, mask), model.model.encode_speaker(noise, mask))
    left = model.model.encode_speaker(codes[1:].roll(4, 1), mask[1:].roll(4, 1))
    assert torch.allclose(left, model.model.encode_speaker(codes, mask)[1:], atol=1e-5)  # rotary positions are relative


def test_a_row_without_frames_speaks_as_without_a_speaker(model, recordings):
    codes, mask = recordings
    assert not model.model.encode_speaker(codes, mask * 0).any()
    spoken = model.generate(TEXT, speaker_codes=codes, speaker_attention_mask=mask * 0, **GREEDY)
    assert torch.equal(spoken, model.generate(TEXT, **GREEDY))


def test_speech_follows_the_recording_of_its_row(model, recordings):
    codes, mask = recordings
    together = model.generate(TEXT, speaker_codes=codes, speaker_attention_mask=mask, **GREEDY)
    assert not torch.equal(together, model.generate(TEXT, **GREEDY))
    for row, length in enumerate(mask.sum(1).tolist()):
        mine = slice(row, row + 1)
        alone = model.generate(TEXT[mine], speaker_codes=codes[mine, :length], **GREEDY)
        assert torch.equal(alone[0], together[row])


def test_embeddings_take_the_place_of_recordings(model, recordings):
    codes, mask = recordings
    reference = model.encode_speaker(codes, mask)
    spoken = model.generate(TEXT, speaker_embeddings=reference, guidance_scale=2.0, **GREEDY)
    recorded = {"speaker_codes": codes, "speaker_attention_mask": mask}
    assert torch.equal(spoken, model.generate(TEXT, **recorded, guidance_scale=2.0, **GREEDY))
    for wrong in {}, {"speaker_codes": codes}:
        with pytest.raises(ValueError, match="speaker"):
            model.generate(TEXT, speaker_embeddings=reference if wrong else reference[:1], **wrong, **GREEDY)
    for wrong in {"speaker_embeddings": "me"}, {"speaker": reference}:
        with pytest.raises(ValueError, match="speaker"):
            model.generate(TEXT, **wrong, **GREEDY)
    with pytest.raises(ValueError, match="speaker_codes"):
        model.encode_speaker(codes[0])


def test_the_prompt_is_the_reference_unless_another_is_given(model, recordings):
    codes, mask = recordings
    prompt = {"audio_codes": codes, "audio_attention_mask": mask}
    said = model.generate(TEXT, **prompt, **GREEDY)
    same = model.generate(TEXT, **prompt, speaker_codes=codes, speaker_attention_mask=mask, **GREEDY)
    other = model.generate(TEXT, **prompt, speaker_codes=codes.flip(1, 0), **GREEDY)
    assert torch.equal(said, same) and not torch.equal(said, other)


def test_a_cached_state_keeps_the_speaker(model, recordings):
    codes, mask = recordings
    reference = {"speaker_codes": codes, "speaker_attention_mask": mask}
    audio = torch.randint(3, 23, (2, 8, 3), generator=torch.Generator().manual_seed(2))
    whole = model(TEXT, decoder_input_ids=audio, **reference)
    begun = model(TEXT, decoder_input_ids=audio[:, :3], use_cache=True, **reference)
    rest = model(decoder_input_ids=audio[:, 3:], cache=begun.cache)
    assert torch.allclose(torch.cat((begun.logits, rest.logits), 1), whole.logits, atol=1e-4)


def test_guidance_drops_the_speaker_unless_a_prompt_has_the_voice(model, recordings):
    codes, mask = recordings

    def values(mask, prompt, prompt_mask):  # with the text and without
        voice = dict(audio_codes=prompt, audio_attention_mask=prompt_mask)
        voice |= dict(speaker_codes=codes, speaker_attention_mask=mask)
        return model._prefill(guided=True, input_ids=TEXT, **voice).model.text_values.chunk(2)

    speaker, without_speaker = model.model.encode_speaker(codes, mask)[:, None], values(mask * 0, None, None)
    prompt_of_the_second = codes[:, :4], torch.tensor([[0] * 4, [1] * 4])
    for prompt, kept in ((None, None), [0.0, 0.0]), (prompt_of_the_second, [0.0, 1.0]):
        shares = 1.0, torch.tensor(kept)[:, None, None]
        for share, value, without in zip(shares, values(mask, *prompt), without_speaker):
            assert torch.allclose(value - without, (share * speaker).expand_as(value), atol=1e-5)


def test_the_native_runtime_speaks_as_the_model(model, recordings):
    if model.config.cross_attention != "paca":
        pytest.skip("the native runtime computes PACA alone")
    speech = []
    for model.step_runtime in ("native", "torch"):
        speech.append(model.generate(TEXT, speaker_codes=recordings[0], **GREEDY))
    assert torch.equal(*speech)
    model.step_runtime = "auto"


@pytest.mark.parametrize(
    "changes, words",
    [
        (lambda x: {"speaker_codes": x[:, 0]}, "speaker_codes"),
        (lambda x: {"speaker_codes": x[:1]}, "speaker_codes"),
        (lambda x: {"speaker_codes": x + 20}, "0..19"),
        (lambda x: {"speaker_codes": x, "speaker_attention_mask": torch.ones(2, 3)}, "speaker_attention_mask"),
    ],
    ids=["shape", "rows", "range", "mask"],
)
def test_wrong_recordings_are_refused(model, recordings, changes, words):
    for call in (model.generate, lambda ids, **rest: model(ids, decoder_input_ids=recordings[0] + 3, **rest)):
        with pytest.raises(ValueError, match=words):
            call(TEXT, **changes(recordings[0]))


@pytest.mark.parametrize("architecture", ["small-e", "decoder-only"])
def test_recordings_are_refused_without_a_speaker_encoder(make_tiny, recordings, architecture):
    model, audio = make_tiny(architecture=architecture, decoder_layers=1), recordings[0] + 3
    for call in (model.generate, model, model.train()):
        with pytest.raises(ValueError, match="no speaker encoder.*audio_text"):
            call(TEXT, speaker_codes=recordings[0], **({} if call == model.generate else {"decoder_input_ids": audio}))
    with pytest.raises(ValueError, match="speaker_layers=1"):
        SmallEConfig(speaker_layers=1, architecture="decoder-only")


def test_a_mask_without_a_recording_is_refused(model, recordings):
    with pytest.raises(ValueError, match="speaker_attention_mask without speaker_codes"):
        model(TEXT, decoder_input_ids=recordings[0] + 3, speaker_attention_mask=recordings[1])


def test_a_recording_without_a_transcript_is_a_reference(processor, record, tmp_path):
    wave = record(tmp_path / "me.wav", 0.4)
    reference = processor("Hello.", audio=wave, sampling_rate=24000)
    prompted = processor("Hello.", audio=wave, audio_text="I said so.", sampling_rate=24000)
    assert torch.equal(reference["speaker_codes"], prompted["audio_codes"]) and "audio_codes" not in reference
    of_file = processor("Hello.", voice=str(written(processor, wave, tmp_path)))
    assert all(torch.equal(reference[name], of_file[name]) for name in reference)


def written(processor, wave, folder):
    """A voice file of a recording without its text."""
    voice = processor.encode_voice(wave, None, 24000)
    save_voice(folder / "me.safetensors", *voice)
    assert load_voice(folder / "me.safetensors").text == "" and isinstance(voice, Voice)
    return folder / "me.safetensors"


@pytest.fixture
def voices_of(make_tiny, tiny_codec, tiny_tokenizer, record, tmp_path):
    """Assembles a checkpoint whose one voice is such an entry of VOICES.yaml; gives its `Voice`."""

    def assembled(voice, layers=1):
        make_tiny(speaker_layers=layers).save_pretrained(tmp_path / "model")
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        tiny_codec.save_pretrained(tmp_path / "codec")
        for name in "ab":
            record(tmp_path / f"{name}.wav", 0.4, 100 if name == "a" else 150)
        recipe = {"default": "anna", "voices": {"anna": voice}}
        (tmp_path / "voices.yaml").write_text(json.dumps(recipe).replace("WORK", str(tmp_path)))
        assemble(tmp_path / "model", tmp_path / "codec", tmp_path / "voices.yaml", tmp_path / "whole")
        return SmallEProcessor.from_pretrained(tmp_path / "whole").get_voice("anna")

    return assembled


def test_a_preset_may_have_one_recording_or_several(voices_of):
    one, other = (voices_of({"audio": f"WORK/{name}.wav"}) for name in "ab")
    both = voices_of({"audio": ["WORK/a.wav", "WORK/b.wav"]})
    assert both.text == "" and torch.equal(both.codes, torch.cat((one.codes, other.codes)))
    said = voices_of({"audio": ["WORK/a.wav", "WORK/b.wav"], "text": ["So.", "It is."]})
    assert said.text == "So. It is." and torch.equal(said.codes, both.codes)


@pytest.mark.parametrize(
    "voice, layers, words",
    [
        ({"audio": "WORK/a.wav"}, 0, "expected `file`, or `audio` and"),
        ({"text": "So."}, 1, "expected `file`, or `audio`"),
        ({"audio": "WORK/a.wav", "txt": "So."}, 1, "txt: unknown key"),
        ({"audio": ["WORK/a.wav", "WORK/b.wav"], "text": "So."}, 1, "2 recordings and 1 texts"),
    ],
)
def test_impossible_presets_are_refused(voices_of, voice, layers, words, tmp_path):
    with pytest.raises(ValueError, match=rf"voices?.anna.*{words}"):
        voices_of(voice, layers)
    assert not (tmp_path / "whole").exists()


def test_recordings_with_and_without_transcripts_are_not_joined():
    codes = torch.zeros(3, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="give one for each, or none"):
        join_voices([Voice(codes, "So."), Voice(codes)])


def test_a_batch_mixes_prompts_and_recordings(processor, make_tiny, record, tmp_path):
    wave = record(tmp_path / "me.wav", 0.4)
    texts, voices = ["Hello.", "So."], [str(written(processor, wave, tmp_path)), "anna"]
    batch = processor(texts, voice=voices)
    assert batch["speaker_attention_mask"].any(1).tolist() == [True, False]
    assert batch["audio_attention_mask"].any(1).tolist() == [False, True]
    model = make_tiny(speaker_layers=1)
    both = model.generate(**batch, **GREEDY)
    for row, (text, voice) in enumerate(zip(texts, voices)):
        assert torch.equal(model.generate(**processor(text, voice=voice), **GREEDY)[0], both[row])


def test_a_stream_speaks_in_the_voice_of_the_reference(processor, make_tiny, record, tmp_path):
    wave, model = record(tmp_path / "me.wav", 0.4), make_tiny(speaker_layers=1)
    reference = {"audio": wave, "sampling_rate": 24000}
    said = torch.cat(list(processor.stream(model, "Hello.", **reference, chunk_frames=5, **GREEDY)))
    (whole,) = processor.decode(model.generate(**processor("Hello.", **reference), **GREEDY))
    (other,) = processor.decode(model.generate(**processor("Hello."), **GREEDY))
    assert torch.equal(said, whole) and not torch.equal(said, other)


def test_a_stream_of_several_pieces_encodes_the_speaker_once(processor, make_tiny, record, tmp_path, monkeypatch):
    wave, model, calls = record(tmp_path / "me.wav", 0.4), make_tiny(speaker_layers=1), []
    encode, model.step_runtime = model.model.encode_speaker, "torch"
    monkeypatch.setattr(model.model, "encode_speaker", lambda *given: calls.append(given) or encode(*given))
    said = torch.cat(
        list(processor.stream(model, "Hello. So. It is.", audio=wave, sampling_rate=24000, max_characters=6, **GREEDY))
    )
    pieces = [processor.stream(model, text, audio=wave, sampling_rate=24000, **GREEDY) for text in ("Hello.", "So.")]
    assert len(said) > sum(len(torch.cat(list(piece))) for piece in pieces)
    assert sum(codes is not None for codes, *_ in calls) == 3  # one for each stream


@pytest.fixture
def limited(make_tiny, recordings):
    """A model whose known voices are nearer to their center than the first recording, and its center."""

    def make(furthest, typical):
        model = make_tiny(speaker_layers=1)
        center = model.model.encode_speaker(recordings[0][1:]).mean(0)  # the second recording without its mask
        model.config.speaker_center, model.config.speaker_limits = center.tolist(), [furthest, typical]
        return model, center

    return make


def test_voices_unlike_all_that_the_model_learned_are_drawn_to_them(limited, recordings, monkeypatch):
    codes, mask = recordings
    model, center = limited(1e6, 0.5)
    free = model.model.encode_speaker(codes, mask)
    model, center = limited(0.01, 0.005)
    drawn = model.model.encode_speaker(codes, mask)
    assert torch.allclose((drawn - center).norm(dim=1), torch.tensor(0.005), atol=1e-5)
    cosines = torch.nn.functional.cosine_similarity(drawn - center, free - center)
    assert torch.allclose(cosines, torch.ones(2), atol=1e-2)  # in the direction where they are
    assert not model.model.encode_speaker(codes, mask * 0).any()  # who is not heard stays nobody
    trained = model.train().model.encode_speaker(codes, mask)
    assert torch.allclose(trained, free, atol=1e-6)


def test_runtimes_draw_voices_alike(limited, recordings):
    model, _ = limited(0.01, 0.005)
    torch_embeddings = model.model.encode_speaker(*recordings)
    assert torch.allclose(model.encode_speaker(*recordings), torch_embeddings, atol=1e-5)


def test_the_native_runtime_encodes_a_voice_once_and_anew_for_other_limits(limited, recordings, monkeypatch):
    model, center = limited(1e6, 0.5)
    model.step_runtime, calls, encode = "native", [], runtime_smalle.encode_speaker
    monkeypatch.setattr(runtime_smalle, "encode_speaker", lambda *given: calls.append(given) or encode(*given))
    first, again = model.encode_speaker(*recordings), model.encode_speaker(*recordings)
    assert torch.equal(first, again) and len(calls) == len(first) == 2
    model.config.speaker_limits = [0.01, 0.005]
    drawn = model.encode_speaker(*recordings)
    assert torch.allclose((drawn - center).norm(dim=1), torch.tensor(0.005), atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"speaker_center": [0.0]},
        {"speaker_limits": [2.0, 1.0]},
        {"speaker_center": [0.0] * 64, "speaker_limits": [1.0, 2.0]},
        {"speaker_center": ["a"] * 64, "speaker_limits": [2.0, 1.0]},
    ],
)
def test_limits_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match="speaker_(center|limits)"):
        SmallEConfig(hidden_size=64, num_attention_heads=4, speaker_layers=1, **values)
