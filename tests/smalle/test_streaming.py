"""Streams: the same codes and samples as at once, whatever the chunks; long texts; memory that does not grow; nothing
left of a stream that its listener leaves."""

import asyncio
import copy
import gc
import pathlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig, EncodecModel, GenerationConfig

from smalle import SmallEForTextToSpeech
from smalle.codec_smalle import EncodecCodec, SmallECodec, SmallECodecConfig
from smalle.streaming_smalle import Cancelled, TextToSpeechStreamer, split_text
from smalle.vocos_smalle import Vocos, VocosConfig, pulse_train
from smalle.voices_smalle import Voice

SIZES = dict(
    latent_size=16,
    num_codebooks=3,
    codebook_size=20,
    vocos_hidden_size=16,
    vocos_intermediate_size=32,
    vocos_num_layers=3,
)
REFINED = dict(refiner_num_layers=3, refiner_hidden_size=8, refiner_intermediate_size=16)
HARMONIC = dict(vocos_excitation="harmonic", vocos_upsampling=2, vocos_n_fft=960)


def make_codec(**changes):
    torch.manual_seed(0)
    codec = SmallECodec(SmallECodecConfig(**SIZES, **changes)).eval()
    decoding = [*codec.vocos.parameters(), *(codec.refiner.parameters() if codec.refiner else ())]
    for parameter in decoding:  # so that every convolution, pitch and filter matters
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return codec


def make_encodec(padding):
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(hidden_size=16, num_filters=2, num_lstm_layers=1)).eval()
    sizes = dict(input_channels=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_bandwidths=4)
    return EncodecCodec(model, Vocos(VocosConfig(**sizes, padding=padding))).eval()


CODECS = {
    "phases": lambda: make_codec(),
    "phases, two spectra a frame": lambda: make_codec(vocos_upsampling=2, vocos_n_fft=960),
    "pulses": lambda: make_codec(**HARMONIC),
    "refined": lambda: make_codec(**REFINED),
    "refined pulses": lambda: make_codec(**HARMONIC, **REFINED),
    "encodec": lambda: make_encodec("same"),
    "encodec, center": lambda: make_encodec("center"),
}


@pytest.fixture(scope="module", params=CODECS)
def codec(request):
    return CODECS[request.param]()


def random_codes(codec, frames, rows=1):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, codec.codebook_size, (rows, codec.num_codebooks, frames), generator=generator)


def in_chunks(codec, codes, sizes):
    """The waveforms of codes in chunks of these sizes, round again, and of what remains at the end."""
    state, waves, begin = None, [], 0
    while begin < codes.shape[2]:
        size = sizes[len(waves) % len(sizes)]
        wave, state = codec.decode_chunk(codes[..., begin : begin + size], state)
        waves.append(wave)
        begin += size
    return [*waves, codec.decode_chunk(codes[..., :0], state, last=True)[0]]


@pytest.mark.parametrize("frames", [1, 2, 16, 17, 300])
def test_a_codec_in_chunks_equals_at_once(codec, frames):
    codes = random_codes(codec, frames, 2)
    whole, chunks = codec.decode(codes), torch.cat(in_chunks(codec, codes, [5]), 1)
    assert torch.equal(chunks, whole)
    assert frames == 1 or whole.abs().max() > 1e-3  # "center" has no samples of one frame


@pytest.mark.parametrize("runtime", ["torch", "auto"])
@pytest.mark.parametrize("frames", [1, 2, 16, 17, 300])
def test_a_codec_in_chunks_equals_the_forward_pass(codec, frames, runtime, monkeypatch):
    monkeypatch.setattr(codec.vocos, "runtime", runtime)
    features, bandwidth = codec.embed(random_codes(codec, frames, 2)), getattr(codec, "bandwidth_id", None)
    refiner = getattr(codec, "refiner", None)
    with torch.no_grad():
        whole = codec.vocos(features if refiner is None else refiner(features)[0], bandwidth)
    chunks = torch.cat(in_chunks(codec, random_codes(codec, frames, 2), [5]), 1)
    assert whole.shape == chunks.shape
    # the phase of pulses adds up how C and PyTorch round their pitch
    drifts = runtime == "auto" and codec.vocos.config.excitation == "harmonic"
    tolerance = min(8e-5 * frames, 2e-3) if drifts else 1e-5
    assert (chunks - whole).norm() <= tolerance * whole.norm()


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4), frames=st.integers(1, 150))
def test_samples_do_not_depend_on_the_chunks(codec, sizes, frames):
    codes = random_codes(codec, frames)
    once = codec.decode_chunk(codes, last=True)[0]
    assert torch.equal(torch.cat(in_chunks(codec, codes, sizes), 1), once)


def test_pulses_go_on_where_they_were():
    f0 = 100 + 50 * torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    padded = torch.cat((f0[:, :1], f0, f0[:, -1:]), 1)
    first, phase = pulse_train(padded[:, :14], 240, 24000)
    second, _ = pulse_train(padded[:, 12:], 240, 24000, phase)
    torch.testing.assert_close(torch.cat((first, second), 1), pulse_train(padded, 240, 24000)[0], atol=1e-3, rtol=0)


def tensors(value):
    """All tensors in a state, nested as it may be."""
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(value)]
    if torch.is_tensor(value):
        return [value]
    parts = vars(value).values() if hasattr(value, "__dict__") else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def test_a_codec_remembers_no_more_after_long_than_after_short(codec):
    state, sizes = None, []
    for _ in range(10):
        _, state = codec.decode_chunk(random_codes(codec, 64), state)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors(state)))
    assert len(set(sizes[5:])) == 1 and sizes[0] > 0


TEXT = dict(
    input_ids=torch.tensor([[1, 9, 8, 30, 7, 2], [0, 0, 1, 5, 6, 2]]),
    attention_mask=torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]),
)
WAYS = {
    "sampled": dict(temperature=2.0),
    "guided, penalised": dict(guidance_scale=2.0, repetition_penalty=1.3),
    "all codebooks": dict(top_k=[5, 5, 5]),
    "no end": dict(min_new_tokens=23, max_new_tokens=23),
    "late end": dict(min_new_tokens=12, temperature=5.0, top_k=0),
}


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_codes_do_not_depend_on_the_chunks(tiny_model, way, chunk):
    way = {"max_new_tokens": 40, **way}
    whole = tiny_model.generate(**TEXT, **way, seed=3, output_alignments=True, return_dict_in_generate=True)
    parts = list(tiny_model.stream(**TEXT, **way, seed=3, chunk_frames=chunk, output_alignments=True))
    assert all(part.sequences.shape[1] <= chunk for part in parts)
    assert torch.equal(sum(part.lengths for part in parts), whole.lengths)
    for row, length in enumerate(whole.lengths):
        codes = torch.cat([part.sequences[row, : part.lengths[row]] for part in parts])
        maps = torch.cat([part.alignments[row, : part.lengths[row]] for part in parts])
        assert torch.equal(codes, whole.sequences[row, :length])
        torch.testing.assert_close(maps, whole.alignments[row, :length])


def test_one_codebook_may_end_anywhere(make_tiny):
    model = make_tiny(num_codebooks=1)
    for seed in range(5):
        way = dict(**TEXT, seed=seed, temperature=5.0, top_k=0, max_new_tokens=60)
        whole = model.generate(**way)
        parts = [part.sequences for part in model.stream(**way, chunk_frames=1)]
        assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize("wrong", [{"chunk_frames": 0}, {"best_of": 2}, {"num_return_sequences": 2}, {"max_time": 1.0}])
def test_streams_of_codes_refuse_what_needs_the_whole(tiny_model, wrong):
    with pytest.raises(ValueError, match="chunk_frames|A stream"):
        next(tiny_model.stream(**TEXT, **wrong))


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return SmallEForTextToSpeech.from_pretrained(tiny_checkpoint).eval()


@pytest.fixture(params=["phases", "pulses"])
def speaker(request, processor):
    for name in processor.voices:  # made with another codec, which is refused if they say so
        processor.add_voice(name, processor.get_voice(name)._replace(codec=None))
    processor.codec = CODECS[request.param]()
    return processor


@pytest.mark.parametrize("chunk", [1, 16, 1000])
def test_streamed_audio_is_that_of_the_pipeline(speaker, model, chunk):
    text, way = "It is a door, nobody knew.", dict(seed=2, max_new_tokens=60, min_new_tokens=60)
    whole = speaker.decode(model.generate(**speaker(text), **way))[0]
    waves = list(speaker.stream(model, text, chunk_frames=chunk, **way))
    assert all(len(wave) and wave.dtype == torch.float32 for wave in waves)
    torch.testing.assert_close(torch.cat(waves), whole, atol=1e-4, rtol=0)
    assert chunk > 16 or len(waves) > 2


STORY = """Chapter One

It was Mr. Fox who asked. "Why?" Nobody knew; it was a door, and a door, and a door.

* * *

The end."""


def test_texts_are_cut_at_the_best_places_that_fit(processor, model):
    assert TextToSpeechStreamer(model, processor, max_characters=40).split(STORY, Voice()) == [
        "Chapter One.",
        'It was Mister Fox who asked. "Why?"',
        "Nobody knew;",
        "it was a door, and a door, and a door.",
        "The end.",
    ]
    assert split_text("So Mr. Fox. He asked.", lambda piece: len(piece) < 20) == ["So Mr. Fox.", "He asked."]
    assert TextToSpeechStreamer(model, processor).split(STORY, Voice())[1].startswith("It was Mister Fox")


def test_pieces_leave_room_for_the_transcript_of_the_prompt(processor, make_tiny):
    streamer = TextToSpeechStreamer(make_tiny(max_text_tokens=24), processor)
    text, said = "Nobody knew why it was a half-open door.", "It was a dog."
    alone, prompted = (streamer.split(text, Voice(text=words)) for words in ("", said))
    assert " ".join(alone) == " ".join(prompted) == processor.normalize(text) and len(prompted) > len(alone)
    assert all(len(processor.tokenizer(f"{said} {piece}")["input_ids"]) <= 24 for piece in prompted)
    with pytest.raises(ValueError, match="max_text_tokens"):
        streamer.split(text, Voice(text=3 * said))


@given(st.text('ab ,.!A"', max_size=60), st.integers(1, 20))
def test_cutting_loses_nothing_and_every_piece_fits(text, longest):
    text = " ".join(text.split())
    pieces = split_text(text, lambda piece: len(piece) <= longest)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "") and all(len(piece) <= longest for piece in pieces)


def test_a_text_longer_than_the_model_reads_is_spoken_whole(processor, make_tiny):
    model = make_tiny(max_text_tokens=24)
    text = "Nobody knew why it was a half-open door, but the dog jumps over it and the fox asked. " * 3
    spoken = []
    prefill = model._prefill
    model._prefill = lambda **inputs: spoken.append(inputs["input_ids"]) or prefill(**inputs)
    with pytest.raises(ValueError, match="limit is 24"):
        model.generate(**processor(text))
    spoken.clear()

    def speak(chunk_frames):
        options = dict(voice="ben", seed=5, max_new_tokens=20)
        return torch.cat(list(processor.stream(model, text, chunk_frames=chunk_frames, **options)))

    whole = speak(1000)
    read = len(spoken)
    assert read > 5 and all(ids.shape[1] <= 24 for ids in spoken)
    assert torch.equal(speak(7), whole) and len(whole) > 480 * read


def test_pieces_are_one_sound(speaker, model):
    """The codec goes on from piece to piece: the audio is that of all their codes behind each other."""
    said, stream = [], model.stream
    model.stream = lambda **inputs: (said.append(part.sequences[0]) or part for part in stream(**inputs))
    try:
        waves = list(speaker.stream(model, STORY, max_characters=30, seed=1, max_new_tokens=20))
    finally:
        del model.stream
    torch.testing.assert_close(torch.cat(waves), speaker.decode(torch.cat(said))[0], atol=0, rtol=0)


def test_without_a_voice_the_first_piece_is_that_of_the_others(processor, model):
    processor.default_voice, prompts, stream = None, [], model.stream
    model.stream = lambda **inputs: prompts.append(inputs.get("audio_codes")) or stream(**inputs)
    try:
        list(processor.stream(model, STORY, max_characters=40, seed=1, max_new_tokens=9, min_new_tokens=9))
    finally:
        del model.stream
    first, *others = prompts
    assert first is None and len(others) > 2
    assert all(torch.equal(prompt, others[0]) and prompt.shape[1] == 9 for prompt in others)


def test_every_piece_goes_on_from_the_same_voice(processor, model):
    prompts, stream = [], model.stream
    model.stream = lambda **inputs: prompts.append(inputs["audio_codes"]) or stream(**inputs)
    try:
        list(processor.stream(model, STORY, voice="ben", max_characters=40, seed=1, max_new_tokens=9, min_new_tokens=9))
    finally:
        del model.stream
    voice = processor("It is.", voice="ben")["audio_codes"]
    assert len(prompts) > 3 and all(torch.equal(prompt, voice) for prompt in prompts)


@pytest.fixture
def new_tensors(speaker, model):
    """Says how many tensors there are that were not there before, and their bytes."""
    list(speaker.stream(model, "Nobody knew.", seed=1, max_new_tokens=20))  # tables that are made once
    gc.collect()
    gc.freeze()  # what is there is not looked at again

    def count():
        gc.collect()
        new = [item.untyped_storage() for item in gc.get_objects() if type(item) is torch.Tensor]
        return len(new), sum({storage.data_ptr(): storage.nbytes() for storage in new}.values())

    yield count
    gc.unfreeze()


def test_memory_does_not_grow_with_length(speaker, model, new_tensors):
    text, held = "Nobody knew. It was a half-open door. " * 80, []
    way = dict(max_characters=40, seed=1, max_new_tokens=40, min_new_tokens=40)
    for _ in speaker.stream(model, text, **way):
        held.append(new_tensors())
    count, size = (max(part) for part in zip(*held))
    assert len(held) > 50 and 0 < count < 400 and 0 < size < 2e7  # the native runtime holds states in pages of 4 MB
    early, late = (min(size for _, size in part) for part in (held[20:40], held[-20:]))
    assert late <= 1.1 * early  # the least, as a thread generates while tensors are counted


def held():
    """MB that this process holds."""
    return int(pathlib.Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="only Linux says what a process holds")
@pytest.mark.parametrize("runtime", [pytest.param("torch", marks=pytest.mark.slow), "native"])
def test_a_process_holds_no_more_after_two_minutes_than_after_ten_seconds(processor, tiny_checkpoint, runtime):
    model = SmallEForTextToSpeech.from_pretrained(tiny_checkpoint).eval()
    model.step_runtime = runtime
    samples, early = 0, None
    for wave in processor.stream(
        model, "It was a door. " * 60, max_characters=30, min_new_tokens=200, max_new_tokens=200
    ):
        samples += len(wave)
        if samples >= 10 * processor.sampling_rate:
            early = early or held()
    assert samples == 120 * processor.sampling_rate
    assert held() < early + 5  # the sound of two minutes would be 11.5


def test_a_stream_that_is_left_works_no_more_and_frees_its_state(speaker, model, new_tensors):
    steps = []
    way = dict(seed=1, min_new_tokens=200, max_new_tokens=200, progress=steps.append)
    chunks = speaker.stream(model, "Nobody knew.", **way)
    for _ in chunks:
        break
    taken = len(steps)
    assert 0 < taken < 80 and new_tensors()[0] > 20
    del chunks, _
    assert len(steps) <= taken + 2  # the step in work, and one that was not counted yet
    time.sleep(0.05)
    assert new_tensors() == (0, 0) and len(steps) <= taken + 2


def test_an_event_cancels_a_stream_from_another_thread(speaker, model):
    steps, cancelled = [], threading.Event()
    way = dict(seed=1, min_new_tokens=3000, max_new_tokens=3000, chunk_frames=3000, cancelled=cancelled)

    def progress(rows):
        steps.append(rows)
        if len(steps) == 20:
            threading.Thread(target=cancelled.set).start()

    with pytest.raises(Cancelled):
        list(speaker.stream(model, "Nobody knew.", progress=progress, **way))
    assert len(steps) < 300


def test_async_streams_say_the_same_and_let_others_work(speaker, model):
    async def listen():
        waves, beats = [], 0

        async def beat():
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        other = asyncio.ensure_future(beat())
        async for wave in speaker.astream(model, "Nobody knew.", seed=1, max_new_tokens=60, min_new_tokens=60):
            waves.append(wave)
        other.cancel()
        return torch.cat(waves), beats

    wave, beats = asyncio.run(listen())
    once = torch.cat(list(speaker.stream(model, "Nobody knew.", seed=1, max_new_tokens=60, min_new_tokens=60)))
    assert torch.equal(wave, once) and beats > 10


def test_an_async_stream_that_is_cancelled_works_no_more(speaker, model):
    steps, way = [], dict(seed=1, min_new_tokens=3000, max_new_tokens=3000)

    async def listen():
        async for _ in speaker.astream(model, "Nobody knew.", **way, progress=steps.append):
            pass

    async def leave():
        task = asyncio.ensure_future(listen())
        while len(steps) < 20 and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.3)
        taken = len(steps)
        await asyncio.sleep(0.1)
        return taken

    assert asyncio.run(leave()) == len(steps) < 300


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_model_computes_with_one_thread_and_leaves_the_others_as_they_are(speaker, model, threads):
    def speak():
        list(speaker.stream(model, "Nobody knew.", seed=1, max_new_tokens=20))
        model.generate(**speaker("Nobody knew."), seed=1, max_new_tokens=20)

    async def listen():
        async for _ in speaker.astream(model, "Nobody knew.", seed=1, max_new_tokens=20):
            pass

    seen = set()
    handle = model.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    for count in (4, 1, 6):
        threads(count)
        speak()
        asyncio.run(listen())
        with ThreadPoolExecutor(1) as thread:  # a server's
            thread.submit(speak).result()
            assert thread.submit(torch.get_num_threads).result() == count
        assert torch.get_num_threads() == count
    handle.remove()
    assert seen == {1}


@pytest.mark.parametrize("way", ["break", "close", "cancel"])
def test_an_async_stream_that_is_left_frees_its_state(speaker, model, new_tensors, way):
    steps, left = [], []

    async def listen(stream):
        async for _ in stream:
            if way != "cancel":
                break

    async def leave():
        options = dict(seed=1, min_new_tokens=3000, max_new_tokens=3000, chunk_frames=16)
        stream = speaker.astream(model, "Nobody knew.", progress=steps.append, **options)
        task = asyncio.ensure_future(listen(stream))
        while way == "cancel" and len(steps) < 20:
            await asyncio.sleep(0.001)
        if way == "cancel":
            task.cancel()
        await asyncio.wait([task])
        left.append(len(steps))
        if way == "close":
            await stream.aclose()

    asyncio.run(leave())
    assert 0 < left[0] and len(steps) <= left[0] + 2 * 16  # what was in work, and what may wait for the listener
    for _ in range(200):  # the chunk in work
        if new_tensors() == (0, 0):
            break
        time.sleep(0.01)
    assert new_tensors() == (0, 0)


def test_texts_may_be_left_as_they_are(processor, model):
    way = dict(seed=1, max_new_tokens=20, min_new_tokens=20)
    for text in ("mister fox", "Mr fox"):
        streamed = torch.cat(list(processor.stream(model, text, normalize_text=False, **way)))
        inputs = processor(text, normalize_text=False)
        assert torch.allclose(streamed, processor.decode(model.generate(**inputs, **way))[0], atol=1e-4)
    with pytest.raises(ValueError, match="normalize_text"):
        processor.stream(model, "5 dogs", normalize_text=False)


@pytest.mark.parametrize("text", ["", "* * *", ["a", "b"], None])
def test_what_cannot_be_streamed_is_refused_at_once(processor, model, text):
    with pytest.raises(ValueError, match="text="):
        processor.stream(model, text)


def test_the_best_of_several_is_the_checkpoints_default_for_whole_speech_not_for_streams(processor, model, tmp_path):
    config = copy.deepcopy(model.generation_config)
    config.best_of = 3
    config.save_pretrained(tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path)
    inputs = processor(["Some words."])
    chosen = model.generate(**inputs, generation_config=config, seed=1, max_new_tokens=20)
    assert torch.equal(chosen, model.generate(**inputs, best_of=3, seed=1, max_new_tokens=20))
    before, model.generation_config = model.generation_config, config
    try:
        streamed = [x.sequences for x in model.stream(**inputs, seed=1, max_new_tokens=20)]
        first = torch.cat(list(processor.stream(model, "Some words.", seed=1, max_new_tokens=20)))
    finally:
        model.generation_config = before
    best = torch.cat(list(processor.stream(model, "Some words.", seed=1, max_new_tokens=20, best_of=3)))
    alone = model.generate(**inputs, seed=1, max_new_tokens=20)
    assert torch.equal(torch.cat(streamed, 1)[:, : alone.shape[1]], alone)
    assert torch.allclose(first, processor.decode(alone)[0][: len(first)], atol=1e-4)
    assert torch.allclose(best, processor.decode(chosen)[0][: len(best)], atol=1e-4)
