"""Speech while it is being written, and texts of any length: sentence after sentence, in one voice, as one sound."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import torch

from .generation_smalle import seeded
from .voices_smalle import Voice

PARAGRAPH = re.compile(r"\n\s*\n")
TITLES = "".join(rf"(?<!\b{title}\.)" for title in ("Mr", "Mrs", "Ms", "Dr", "St", "Prof", "[A-Z]"))
BREAKS = tuple(
    map(
        re.compile,
        (  # where a text may be cut, the best places first
            rf"""{TITLES}(?:(?<=[.!?])|(?<=[.!?]["')]))\s+(?=["'(]?[A-Z])""",
            r"""(?:(?<=[.!?;:])|(?<=[.!?;:]["')]))\s+""",
            r"(?<=,)\s+",
            r"\s+",
        ),
    )
)
HALF = max(1, torch.get_num_threads() // 2)  # of PyTorch's threads at import: new threads take what the last one set
LONGEST = 100  # characters of a piece, about 6 seconds: models are trained on utterances, not on chapters


def cut(text, fits, breaks=BREAKS):
    """Text in few pieces of which `fits(piece)` is true, cut at the best of the places where it may be."""
    if fits(text):
        return [text]
    if len(text) < 2:
        raise ValueError("No room for text: the prompt's transcript fills max_text_tokens. Take a shorter voice.")
    if not breaks:
        return cut(text[: len(text) // 2], fits, ()) + cut(text[len(text) // 2 :], fits, ())
    pieces = []
    for part in breaks[0].split(text):
        joined = f"{pieces[-1]} {part}" if pieces else part
        if pieces and fits(joined):
            pieces[-1] = joined
        else:
            pieces += [part] if fits(part) else cut(part, fits, breaks[1:])
    return pieces


def sentences(processor, text, fits, normalize_text=True):
    """The pieces of a text, normalised or as they are; ValueError where nothing can be spoken."""
    paragraphs = PARAGRAPH.split(text)
    if normalize_text:
        paragraphs = map(processor.spell_out, paragraphs)
    else:
        processor.prepare_text(text, False)  # refuses what the tokenizer does not know
    pieces = [piece for paragraph in paragraphs for piece in cut(paragraph, fits) if any(map(str.isalpha, piece))]
    return pieces or [processor.normalize(text)]  # which says what is wrong


def frame_limit(text, frame_rate, most):
    """Frames that a text may take: four times what people need at 15 characters a second, and two seconds."""
    return min(4 * (int(len(text) / 15 * frame_rate) + 1) + int(2 * frame_rate), most)


def chunks_of(model, best_of, call):
    """Outputs of `model.stream(**call)`; with best_of > 1 the one of `generate()`, for the best is known at the end."""
    if best_of == 1:
        yield from model.stream(**call)
    else:
        call.pop("chunk_frames", None)
        yield model.generate(**call, best_of=best_of, return_dict_in_generate=True)


def stream_codes(model, inputs_of, pieces, prompt, seed, settings):
    """Codes (T, Q) of the pieces, chunk by chunk. Without a `Voice` the first piece's speech is that of the others.

    inputs_of(piece, prompt): inputs of `generate()`. With best_of > 1 a piece is one chunk. What is drawn depends on
    the seed and on what was said before, not on the chunks.
    """
    generator, speaker = seeded(seed, model.device), None
    defaults = settings.get("generation_config") or model.generation_config
    best_of = settings.pop("best_of", 1)
    most = settings.pop("max_new_tokens", None) or defaults.max_new_tokens or int(60 * model.config.frame_rate)
    for piece in pieces:
        inputs, new_voice = inputs_of(piece, prompt), prompt.codes is None and not prompt.state
        if "speaker_codes" in inputs:  # long, and the same for all
            heard = inputs.pop("speaker_codes"), inputs.pop("speaker_attention_mask", None)
            inputs["speaker_embeddings"] = speaker = model.encode_speaker(*heard) if speaker is None else speaker
        limit, said = frame_limit(piece, model.config.frame_rate, most), []
        call = {**inputs, **settings, "seed": generator, "max_new_tokens": limit}
        outputs = chunks_of(model, best_of, call)  # in an expression, so that no state outlives its piece:
        for codes in (output.sequences[0, : int(output.lengths[0])] for output in outputs):
            if new_voice:
                said.append(codes.cpu())
            yield codes
        if new_voice:
            prompt = Voice(torch.cat(said), piece)


class ListenerLeft(Exception):
    """Ends the step that a thread has in work."""


def until_left(left, progress=None):
    """A `progress` of `generate()` that ends the work when `left`, a threading.Event, is set."""

    def step(rows):
        if left.is_set():
            raise ListenerLeft
        if progress is not None:
            progress(rows)

    return step


def share_cores():
    """Leaves this thread half of PyTorch's threads: the codec works beside it, and more threads than cores wait for
    each other at every operation."""
    torch.set_num_threads(min(torch.get_num_threads(), HALF))


def ahead(chunks, left):
    """The same chunks; while one is used, a thread makes the next. Who leaves sets `left`, see `until_left`."""
    try:
        with ThreadPoolExecutor(1, initializer=share_cores) as thread:
            try:
                coming = thread.submit(next, chunks, None)
                while (chunk := coming.result()) is not None:
                    coming = thread.submit(next, chunks, None)
                    yield chunk
            finally:
                left.set()
    finally:
        chunks.close()


def stream_audio(codec, chunks, left):
    """Waveforms (L,) of chunks of codes (T, Q), a generator of them, as soon as they are certain."""
    state = codes = None
    for codes in ahead(chunks, left):
        wave, state = codec.decode_chunk(codes.T[None], state)
        if wave.shape[1]:
            yield wave[0].float().cpu()
    if state is not None:
        yield codec.decode_chunk(codes.T[None, :, :0], state, last=True)[0][0].float().cpu()


async def in_threads(begin, left):
    """A generator for an event loop: begin() and the chunks that it gives are made in a thread. Who leaves sets `left`,
    see `until_left`."""
    thread, chunks = ThreadPoolExecutor(1), None

    def work(function, *arguments):
        return asyncio.get_running_loop().run_in_executor(thread, function, *arguments)

    try:
        chunks = await work(begin)
        while (chunk := await work(next, chunks, None)) is not None:
            yield chunk
    finally:
        left.set()
        if chunks is not None:
            thread.submit(chunks.close)  # behind the chunk in work, even where the loop has ended
        thread.shutdown(wait=False)
