"""Faster and slower speech at the same pitch, by WSOLA (Verhelst and Roelands 1993, waveform similarity overlap-add).

Frames of 40 ms are read from the speech at `speed` times the rate at which they are written to the output. Each frame
is shifted by up to 10 ms to the position that continues the previous frame best. The synthesis itself does not change,
so speech at double speed takes as long to compute.
"""

import numpy as np


class TimeStretcher:
    """Stretches speech in pieces: call `stretch` for each waveform, then `finish`.

    Args:
        speed: 2 means twice as fast and half as long.
    """

    def __init__(self, speed: float, sampling_rate: int):
        self.speed = speed
        self.hop = sampling_rate // 50  # step of the output, half a frame
        self.reach = sampling_rate // 100  # largest shift of a frame
        self.window = np.hanning(2 * self.hop + 1)[:-1].astype(np.float32)  # two halves add up to 1
        self.samples = np.zeros(0, np.float32)  # the input from position `start` on
        self.start = self.received = self.sent = self.frames = 0
        self.next = 0  # the position in the input where the last frame would continue
        self.tail = np.zeros(self.hop, np.float32)  # second half of the last frame, not overlapped yet

    def stretch(self, samples: np.ndarray) -> np.ndarray:
        """The output (L',) that is final after these samples (L,) float32."""
        if self.speed == 1:
            return samples
        self.received += len(samples)
        self.samples = np.concatenate((self.samples, samples))
        return self._output()

    def finish(self) -> np.ndarray:
        """The rest of the output."""
        if self.speed == 1:
            return np.zeros(0, np.float32)
        left = round(self.received / self.speed) - self.sent
        end = int((self.sent + left) * self.speed) + 4 * self.hop + 2 * self.reach
        silence = np.zeros(max(0, end - self.received), np.float32)
        self.samples = np.concatenate((self.samples, silence))
        return self._output()[:left]

    def _output(self) -> np.ndarray:
        """Overlap-adds frames as far as the input reaches."""
        halves = [np.zeros(0, np.float32)]
        while (position := self._next_frame()) is not None:
            frame = self._input(position, 2 * self.hop) * self.window
            if not self.frames:
                frame[: self.hop] = self._input(position, self.hop)  # there is nothing to fade from
            halves.append(self.tail + frame[: self.hop])
            self.tail, self.next = frame[self.hop :], position + self.hop
            self.frames += 1
            self._forget(min(self.next, int(self.frames * self.hop * self.speed) - self.reach))
        self.sent += self.hop * (len(halves) - 1)
        return np.concatenate(halves)

    def _next_frame(self) -> int | None:
        """The position of the next frame in the input; None while there is not enough input."""
        ideal = int(self.frames * self.hop * self.speed)
        if self.start + len(self.samples) < max(ideal + self.reach, self.next) + 2 * self.hop:
            return None
        if not self.frames:
            return 0
        first = max(0, ideal - self.reach)
        template = self._input(self.next, 2 * self.hop)
        region = self._input(first, ideal + self.reach - first + 2 * self.hop)
        energy = np.convolve(region**2, np.ones(len(template), np.float32), "valid")
        return first + int(np.argmax(np.correlate(region, template, "valid") / np.sqrt(energy + 1e-6)))

    def _input(self, position: int, length: int) -> np.ndarray:
        return self.samples[position - self.start : position - self.start + length]

    def _forget(self, position: int):
        """Drops the input before a position."""
        if position > self.start:
            self.samples, self.start = self.samples[position - self.start :], position
