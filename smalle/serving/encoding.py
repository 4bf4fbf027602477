"""Encoding of sound files that are sent while they are generated."""

import io
from typing import Any

import numpy as np
import soundfile

from ..audio_smalle import pcm16, streaming_wav_header
from ..reading.soundfiles import FORMATS

MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
}
# 96 kbit/s at 24 kHz: with a constant rate, players know the position of a stream without a header
STREAMED_MP3 = {**FORMATS["mp3"], "bitrate_mode": "CONSTANT", "compression_level": 0.4}
SOUNDFILE_OPTIONS: dict[str, dict[str, Any]] = {**FORMATS, "mp3": STREAMED_MP3}
BLOCK = 24000  # samples per call: the encoders of libsndfile overflow on long blocks


class SentBytes(io.RawIOBase):
    """A file whose appended bytes are returned by `take`. Writes to earlier positions are dropped: those bytes were
    already sent."""

    def __init__(self):
        self.position = self.size = 0
        self.unsent = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def write(self, data) -> int:
        data = bytes(data)
        if self.position == self.size:
            self.unsent += data
            self.size += len(data)
        self.position += len(data)
        return len(data)

    def take(self) -> bytes:
        data = bytes(self.unsent)
        self.unsent.clear()
        return data

    rest = take


class WholeFile(io.BytesIO):
    """A file whose whole content is returned by `rest`."""

    def take(self) -> bytes:
        return b""

    rest = io.BytesIO.getvalue


class Encoder:
    """Writes a mono sound file in pieces: call `encode` for each waveform, then `finish`.

    Args:
        format: one of MEDIA_TYPES: wav, pcm (samples without a header), flac, mp3 or opus (in Ogg).
        streamed: return each piece as soon as it is encoded. The length of a stream is not known in advance, so the
            headers of wav and flac do not contain it. Otherwise `finish` returns the whole file.
    """

    def __init__(self, format: str, sampling_rate: int, streamed: bool = True):
        by_hand = format == "pcm" or format == "wav" and streamed
        self.header = streaming_wav_header(sampling_rate) if by_hand and format == "wav" else b""
        self.sent, self.file = SentBytes() if streamed else WholeFile(), None
        if not by_hand:
            options = SOUNDFILE_OPTIONS[format]
            self.file = soundfile.SoundFile(self.sent, "w", samplerate=sampling_rate, channels=1, **options)
            self.lossless = options["subtype"] == "PCM_16"

    def encode(self, samples: np.ndarray) -> bytes:
        """The bytes to send after these samples (L,) float32 in -1..1; b"" while the encoder needs more."""
        if self.file is None:
            header, self.header = self.header, b""
            return header + pcm16(samples)
        for begin in range(0, len(samples), BLOCK):
            block = samples[begin : begin + BLOCK]
            self.file.write(np.frombuffer(pcm16(block), np.int16) if self.lossless else block.clip(-1, 1))
        return self.sent.take()

    def finish(self) -> bytes:
        """The last bytes of the file."""
        if self.file is None:
            return self.header
        self.file.close()
        return self.sent.rest()
