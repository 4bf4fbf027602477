"""A page to try a checkpoint on: a Gradio demo, for a Space of the Hugging Face Hub or one's own machine."""

import functools
import os
from pathlib import Path

import gradio
import torch
from transformers import AutoModelForTextToWaveform, AutoProcessor

MODEL = os.environ.get("SMALLE_MODEL", "checkpoints/smalle-mini")  # a name on the Hub, or a folder
MAX_CHARACTERS = 2000

processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
model = AutoModelForTextToWaveform.from_pretrained(MODEL, trust_remote_code=True)


@functools.lru_cache(16)
def voice_of(recording: str):
    """The voice of a recording, which takes a while to prepare."""
    return processor.encode_voice(recording)


def speak(text: str, voice: str, recording: str | None, consent: bool, seed: float | None):
    """(sampling rate, samples) of a text, in the voice of the recording if there is one."""
    try:
        if recording and not consent:
            raise ValueError("Tick the box below the recording: a voice is cloned only with its speaker's consent.")
        who = voice_of(recording) if recording else voice
        waves = list(processor.stream(model, text[:MAX_CHARACTERS], seed=int(seed or 0), voice=who))
    except ValueError as error:
        message = str(error).replace(repr(recording), Path(recording or "").name)  # not where the server keeps it
        raise gradio.Error(message, print_exception=False) from error
    samples = (torch.cat(waves).clamp(-1, 1) * 32767).to(torch.int16)
    return processor.sampling_rate, samples.numpy()


def build() -> gradio.Blocks:
    with gradio.Blocks(title="Small-E") as page:
        gradio.Markdown("# Small-E\nEnglish speech from a model of a few million parameters, on a CPU.")
        text = gradio.Textbox("Hello! What shall I say?", label="Text", lines=4, max_length=MAX_CHARACTERS)
        voice = gradio.Dropdown(processor.voices, value=processor.default_voice, label="Voice")
        with gradio.Accordion("Your own voice", open=False):
            recording = gradio.Audio(type="filepath", label="5 to 10 seconds of one speaker; preparing takes a while")
            consent = gradio.Checkbox(label="I am the speaker, or have the speaker's consent.")
        seed = gradio.Number(0, label="Seed: another number gives another reading", precision=0)
        button = gradio.Button("Speak", variant="primary")
        speech = gradio.Audio(label="Speech (synthetic)", autoplay=True)
        gradio.on([button.click, text.submit], speak, [text, voice, recording, consent, seed], speech, api_name="speak")
    return page


if __name__ == "__main__":
    build().launch()
