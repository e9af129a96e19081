"""BMP files of every header, depth and compression."""

import numpy as np
from image_writers import bmp, bmp_palette, packed, rle
from zoo_parts import SIZE, Specimens, levels, of_mode, picture, saved, with_byte


def bmps() -> Specimens:
    width, height = SIZE
    for header in (12, 40, 52, 56, 64, 108, 124):
        entry = 3 if header == 12 else 4
        for bits in (1, 2, 4, 8):
            lines = packed(levels(bits)[::-1].reshape(height, -1), bits)
            palette = bmp_palette(1 << bits, entry)
            yield (
                f"bmp-{header}-{bits}.bmp",
                bmp(lines, width, height, bits, header=header, palette=palette),
            )
        for bits in (16, 24, 32):
            lines = _bmp_lines(bits)
            yield f"bmp-{header}-{bits}.bmp", bmp(lines, width, height, bits, header=header)
    rgb16, rgb24, rgb32 = (_bmp_lines(bits) for bits in (16, 24, 32))
    grey = packed(levels(8)[::-1].reshape(height, -1), 8)
    table = bmp_palette(256)
    yield "bmp-top-down-24.bmp", bmp(rgb24, width, -height, 24)
    yield "bmp-top-down-8.bmp", bmp(grey, width, -height, 8, palette=table)
    yield "bmp-negative-width.bmp", bmp(rgb24, -width, height, 24)
    yield "bmp-gap.bmp", bmp(rgb24, width, height, 24, gap=8)
    yield "bmp-gap-8.bmp", bmp(grey, width, height, 8, palette=table, gap=12)
    masks = {
        "565": (0xF800, 0x7E0, 0x1F),
        "555": (0x7C00, 0x3E0, 0x1F),
        "4444": (0xF00, 0xF0, 0xF, 0xF000),
    }
    for name, mask in masks.items():
        for header in (40, 56, 108, 124):
            for compression in (3, 6):
                content = bmp(
                    rgb16, width, height, 16, header=header, compression=compression, masks=mask
                )
                yield f"bmp-16-{name}-{header}-{compression}.bmp", content
    for name, mask in {
        "bgrx": (0xFF0000, 0xFF00, 0xFF), "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        "rgbx": (0xFF, 0xFF00, 0xFF0000), "xbgr": (0xFF000000, 0xFF0000, 0xFF00),
        "101010": (0x3FF00000, 0xFFC00, 0x3FF), "zero": (0, 0, 0),
    }.items():  # fmt: skip
        for header in (40, 56, 108, 124):
            content = bmp(rgb32, width, height, 32, header=header, compression=3, masks=mask)
            yield f"bmp-32-{name}-{header}.bmp", content
    yield from _coded_bmps(grey, rgb24, table)


def _coded_bmps(grey: list[bytes], rgb24: list[bytes], table: bytes) -> Specimens:
    width, height = SIZE
    rows8, rows4 = (levels(bits)[::-1, :, 0].tolist() for bits in (8, 4))
    for name, bits, compression, coded in (
        ("rle8", 8, 1, rle(rows8, 8)),
        ("rle4", 4, 2, rle(rows4, 4)),
        ("rle8-cut", 8, 1, rle(rows8, 8)[:99]),
        ("rle8-jump", 8, 1, b"\0\2\0\5" + rle(rows8[5:], 8)),
    ):
        palette = bmp_palette(1 << bits)
        yield (
            f"bmp-{name}.bmp",
            bmp((), width, height, bits, compression=compression, palette=palette, whole=coded),
        )
    for compression in (1, 2, 4, 5, 7, 11, 99):
        yield (
            f"bmp-24-compression-{compression}.bmp",
            bmp(rgb24, width, height, 24, compression=compression),
        )
    for colours in (1, 16, 200, 255, 257, 300, 1000, 2**31, 2**32 - 1):
        kept = bmp_palette(min(colours, 1000))
        yield (
            f"bmp-8-colours-{colours}.bmp",
            bmp(grey, width, height, 8, palette=kept, colours=colours),
        )
    yield "bmp-24-palette.bmp", bmp(rgb24, width, height, 24, palette=table, colours=256)
    four = packed(levels(4)[::-1].reshape(height, -1), 4)
    for colours in (3, 17, 256):
        yield (
            f"bmp-4-colours-{colours}.bmp",
            bmp(four, width, height, 4, palette=bmp_palette(colours), colours=colours),
        )
    grey_table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1).tobytes()
    yield "bmp-8-grey.bmp", bmp(grey, width, height, 8, palette=grey_table)
    for bits in (0, 3, 5, 15, 48, 64):
        yield f"bmp-bits-{bits}.bmp", bmp(rgb24, width, height, bits)
    for name, size in {
        "0x0": (0, 0),
        "0x9": (0, 9),
        "9x0": (9, 0),
        "huge": (2**31 - 1, 2**31 - 1),
        "lowest": (9, -(2**31)),
        "wide": (70000, 70000),
    }.items():
        yield f"bmp-{name}.bmp", bmp(rgb24, *size, 24)
    good = bmp(rgb24, width, height, 24)
    yield "bmp-cut.bmp", good[:-300]
    yield "bmp-cut-padding.bmp", good[:-1]
    grey16 = np.repeat(np.arange(0, 256, 17, dtype=np.uint8)[:, None], 4, 1).tobytes()
    yield "bmp-4-grey.bmp", bmp(four, width, height, 4, palette=grey16)
    short = [line[:20] for line in rows8]
    whole = rle(short, 8)
    yield (
        "bmp-rle8-short-lines.bmp",
        bmp((), width, height, 8, compression=1, palette=table, whole=whole),
    )
    yield "bmp-cut-header.bmp", good[:30]
    yield "bmp-header-13.bmp", with_byte(good, 14, 13)
    yield "bmp-header-200.bmp", with_byte(good, 14, 200)
    yield "bmp-offset-0.bmp", with_byte(good, 10, 0)
    yield "bmp-offset-beyond.bmp", with_byte(good, 12, 9)
    yield "bmp-array.bmp", b"BA" + good[2:]
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp-pillow-{mode}.bmp", saved(of_mode(mode), "BMP")


def _bmp_lines(bits: int) -> list[bytes]:
    rgb = picture(3)[::-1].astype(np.uint32)
    if bits == 16:
        numbers = (rgb[..., 0] >> 3) << 10 | (rgb[..., 1] >> 3) << 5 | rgb[..., 2] >> 3
        return [row.astype("<u2").tobytes() for row in numbers]
    blue_first = rgb[..., ::-1].astype(np.uint8)
    if bits == 32:
        blue_first = np.concatenate([blue_first, blue_first[..., :1]], -1)
    return [row.tobytes() for row in blue_first]
