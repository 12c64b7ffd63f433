"""Writes pillow.ppm: pictures resampled and blurred by Pillow (pip install pillow), for tests/test-pillow.c, which
makes the same source pictures and names the same cases in the same order.

    python3 tests/golden/make_pillow.py"""
import os
from PIL import Image, ImageFilter

# source width, height, result width, height
RESIZED = [(37, 23, 16, 10), (9, 14, 31, 17), (64, 64, 16, 16), (5, 5, 5, 9), (7, 40, 3, 40), (1, 1, 4, 3), (50, 3, 2, 2),
           (33, 21, 33, 21), (100, 13, 11, 13), (3, 2, 40, 27)]
# width, height, radius
BLURRED = [(23, 17, 1), (23, 17, 2), (23, 17, 4), (23, 17, 8), (9, 31, 0.5), (5, 3, 8), (1, 7, 1), (16, 16, 3.3), (12, 12, 0)]


def noise():
    state = 99
    while True:
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        yield state >> 24


values = noise()


def picture(width, height):
    """Noise in the left half, areas of black and white with sharp edges in the right: overshoots are clipped."""
    rgb = bytearray()
    for y in range(height):
        for x in range(width):
            for c in range(3):
                v = next(values)
                rgb.append(v if x < width / 2 else 255 if (x // 3 + y // 4 + c) % 2 else 0)
    return Image.frombytes("RGB", (width, height), bytes(rgb))


with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "pillow.ppm"), "wb") as f:
    for width, height, w, h in RESIZED:
        picture(width, height).resize((w, h), resample=Image.Resampling.BICUBIC).save(f, "PPM")
    for width, height, radius in BLURRED:
        picture(width, height).filter(ImageFilter.GaussianBlur(radius)).save(f, "PPM")
