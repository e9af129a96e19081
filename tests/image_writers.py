"""Writes PNG, BMP and TIFF files of every layout that their descriptions allow, by hand: libraries
write only the usual ones. Pixels are arrays; nothing here is what a decoder says."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

Pixels = np.ndarray
"""(H, W, samples) of unsigned numbers."""


# PNG (ISO/IEC 15948)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def png_chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    """One chunk, with a checksum of its own if `crc` is given."""
    right = zlib.crc32(name + content)
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", right if crc is None else crc)
    )


def packed(rows: Pixels, bits: int, order: str = ">") -> list[bytes]:
    """Each row of (H, n) numbers as bytes of samples of `bits` bits, filled up to a whole byte."""
    if bits == 8:
        return [row.astype(np.uint8).tobytes() for row in rows]
    if bits in (16, 32, 64):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    shifts = np.arange(bits - 1, -1, -1)
    single = (rows[:, :, None].astype(np.int64) >> shifts & 1).astype(np.uint8)
    return [np.packbits(row.reshape(-1)).tobytes() for row in single]


def png(
    pixels: Pixels, colour: int, bits: int, *, interlaced: bool = False,
    before: Sequence[tuple[bytes, bytes]] = (), after: Sequence[tuple[bytes, bytes]] = (),
    pieces: int = 1,
) -> bytes:  # fmt: skip
    """A PNG of colour type 0, 2, 3, 4 or 6; chunks `before` and `after` the data."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    passes = [pixels[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [pixels]
    raw = b"".join(
        b"\0" + line
        for one in passes if one.size
        for line in packed(one.reshape(len(one), -1), bits)
    )  # fmt: skip
    stream = zlib.compress(raw)
    size = -(-len(stream) // pieces)
    data = [(b"IDAT", stream[i : i + size]) for i in range(0, len(stream), size)]
    chunks = [(b"IHDR", header), *before, *data, *after, (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)


# Lossless JPEG (ITU-T T.81, annex H)


def lossless_jpeg(pixels: Pixels) -> bytes:
    """A grey picture (H, W, 1) of 8 bits, each number predicted by its left neighbour."""
    rows = pixels[..., 0].astype(int)
    bits = ""
    for y, row in enumerate(rows):
        before = 128 if y == 0 else int(rows[y - 1, 0])
        for value in row.tolist():
            change, before = value - before, value
            size = abs(change).bit_length()
            bits += f"{size:04b}" + (
                f"{change if change > 0 else change + (1 << size) - 1:0{size}b}" if size else ""
            )
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = rows.shape
    counts = bytes([0, 0, 0, 10, *[0] * 12])  # ten codes of 4 bits, for 0 to 9 bits of change
    return (
        b"\xff\xd8\xff\xc4" + struct.pack(">HB", 19 + 10, 0) + counts + bytes(range(10))
        + b"\xff\xc3" + struct.pack(">HBHHB3B", 11, 8, height, width, 1, 1, 0x11, 0)
        + b"\xff\xda" + bytes([0, 8, 1, 1, 0, 1, 0, 0]) + coded + b"\xff\xd9"
    )  # fmt: skip


# BMP


def bmp_palette(colours: int, entry: int = 4) -> bytes:
    levels = np.linspace(0, 255, colours).astype(np.uint8)
    table = np.stack([levels[::-1], levels // 2, levels, np.zeros_like(levels)], 1)
    return np.ascontiguousarray(table[:, :entry]).tobytes()


def bmp(
    lines: Sequence[bytes], width: int, height: int, bits: int, *, header: int = 40,
    compression: int = 0, palette: bytes = b"", colours: int = 0, masks: Sequence[int] = (),
    gap: int = 0, whole: bytes | None = None,
) -> bytes:  # fmt: skip
    """A BMP of rows from the bottom up, or of `whole`, coded bytes; `height` < 0 from the top down.

    `header` is the size of its information header: 12, 40, 52, 56, 64, 108 or 124. `colours` is the
    number of colours it says; `gap` empty bytes before the pixels.
    """
    body = b"".join(line + bytes(-len(line) % 4) for line in lines) if whole is None else whole
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack(
            "<IiiHHIIiiII",
            header,
            width,
            height,
            1,
            bits,
            compression,
            len(body),
            2835,
            2835,
            colours,
            0,
        )
        if header in (52, 56, 108, 124):
            info += struct.pack("<4I", *[*masks, 0, 0, 0, 0][:4])
        info = info[:header] + bytes(max(0, header - len(info)))
    trailing = b"" if header in (52, 56, 108, 124) else struct.pack(f"<{len(masks)}I", *masks)
    offset = 14 + len(info) + len(trailing) + len(palette) + gap
    start = struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset)
    return start + info + trailing + palette + bytes(gap) + body


def rle(lines: Sequence[Sequence[int]], bits: int) -> bytes:
    """Rows of colour numbers as runs of one: RLE8, or RLE4 with the number in both halves."""
    coded = b""
    for line in lines:
        coded += b"".join(bytes([1, n if bits == 8 else n * 17]) for n in line) + b"\0\0"
    return coded + b"\0\1"


# TIFF 6.0 and BigTIFF

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 12: "d", 16: "Q"}


def tiff_pages(
    pages: Sequence[dict[int, tuple[int, Sequence[int]]]], strips: Sequence[Sequence[bytes]], *,
    order: str = "<", big: bool = False, tiled: bool = False,
) -> bytes:  # fmt: skip
    """Directories of {tag: (type, values)}, each with its strips or tiles, whose places and lengths
    are filled in here."""
    mark = b"II" if order == "<" else b"MM"
    content = mark + (
        struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    )
    for number, (page, parts) in enumerate(zip(pages, strips, strict=True)):
        content += bytes(-len(content) % 8)
        at = len(content)
        tags = dict(page)
        places, lengths = (324, 325) if tiled else (273, 279)
        tags[places] = (16 if big else 4, [0] * len(parts))
        tags[lengths] = (4, [len(part) for part in parts])
        entry, room = (20, 8) if big else (12, 4)
        extra_at = at + (16 if big else 6) + entry * len(tags)
        sizes = {
            tag: struct.calcsize(order + str(len(values)) + _TYPES[kind])
            for tag, (kind, values) in tags.items()
        }
        data_at = extra_at + sum(size + size % 2 for size in sizes.values() if size > room)
        offsets = [data_at + sum(len(part) for part in parts[:i]) for i in range(len(parts))]
        tags[places] = (tags[places][0], offsets)
        end = data_at + sum(map(len, parts))
        rows, extra = b"", b""
        for tag, (kind, values) in sorted(tags.items()):
            value = struct.pack(order + str(len(values)) + _TYPES[kind], *values)
            if len(value) > room:
                field = struct.pack(order + ("Q" if big else "I"), extra_at + len(extra))
                extra += value + bytes(len(value) % 2)
            else:
                field = value.ljust(room, b"\0")
            rows += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, len(values)) + field
        last = number == len(pages) - 1
        following = 0 if last else end + -end % 8
        content += struct.pack(order + ("Q" if big else "H"), len(tags)) + rows
        content += struct.pack(order + ("Q" if big else "I"), following) + extra + b"".join(parts)
    return content


def tiff(
    pixels: Pixels, photometric: int, bits: int = 8, *, order: str = "<", big: bool = False,
    rows_per_strip: int | None = None, tile: int | None = None, planar: bool = False,
    deflated: bool = False, predictor: bool = False, fill_order: int = 1,
    tags: dict[int, tuple[int, Sequence[int]]] | None = None, pages: int = 1,
) -> bytes:  # fmt: skip
    """A TIFF of (H, W, samples); `tags` are added or replace."""
    height, width, samples = pixels.shape
    planes = [pixels[..., k : k + 1] for k in range(samples)] if planar else [pixels]
    step = rows_per_strip or height
    parts = []
    for plane in planes:
        if tile is None:
            blocks = [plane[y : y + step] for y in range(0, height, step)]
        else:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
            blocks = [
                padded[y : y + tile, x : x + tile]
                for y in range(0, height, tile) for x in range(0, width, tile)
            ]  # fmt: skip
        for block in blocks:
            numbers = block
            if predictor:
                numbers = block.copy()
                numbers[:, 1:] = (block[:, 1:].astype(np.int64) - block[:, :-1]) % (1 << bits)
            part = b"".join(packed(numbers.reshape(len(numbers), -1), bits, order))
            if fill_order == 2:
                part = bytes(int(f"{byte:08b}"[::-1], 2) for byte in part)
            parts.append(zlib.compress(part) if deflated else part)
    found: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples),
        259: (3, [8 if deflated else 1]), 262: (3, [photometric]), 277: (3, [samples]),
    }  # fmt: skip
    found |= {322: (4, [tile]), 323: (4, [tile])} if tile else {278: (4, [step])}
    found |= {284: (3, [2])} if planar else {}
    found |= {317: (3, [2])} if predictor else {}
    found |= {266: (3, [2])} if fill_order == 2 else {}
    found |= tags or {}
    return tiff_pages([found] * pages, [parts] * pages, order=order, big=big, tiled=bool(tile))
