"""Alignments as pictures: where in the text (upwards) each frame of speech (to the right) was read."""

import struct
import zlib

import numpy as np

PAPER, INK = np.array([255, 255, 255.0]), np.array([23, 45, 110.0])


def alignment_picture(alignment, width=600, height=200):
    """Map (T, N) of weights in 0..1 -> uint8 (H, W, 3), at least as large as asked for: each cell has the same size."""
    cells = np.sqrt(np.clip(np.asarray(alignment, np.float64), 0, 1)).T[::-1]  # faint attention shall be seen
    rows, columns = (max(1, -(-size // count)) for size, count in zip((height, width), np.maximum(1, cells.shape)))
    shades = np.kron(cells, np.ones((rows, columns)))[..., None]
    return (PAPER + shades * (INK - PAPER)).round().astype(np.uint8)


def png(picture):
    """uint8 (H, W, 3) as the bytes of a PNG file."""
    height, width, _ = picture.shape

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], 1)  # 0: no filter
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    data = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines.tobytes())), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(data)
