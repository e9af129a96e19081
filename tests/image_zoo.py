"""Image files of every kind, whole and broken, with what must become of each.

`zoo(folder)` writes them and returns the verdict on each: "good" (decodes to Pillow's pixels),
"refused" (by its header, when it is indexed), "bad" (it cannot be decoded, which is met when it is)
or "any" (a mutant: one of these three, the same for all who look, and no crash).
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from image_writers import (
    PNG_SIGNATURE,
    bmp,
    bmp_palette,
    packed,
    png,
    png_chunk,
    rle,
    tiff,
    tiff_pages,
)
from PIL import Image

Verdict = Literal["good", "refused", "bad", "any"]
Specimen = tuple[str, bytes, Verdict]

SIZE = (37, 29)
"""Width and height of most: neither is a multiple of 8."""


def zoo(folder: Path, seed: int = 0) -> dict[str, Verdict]:
    """Writes the files and returns the verdict by file name."""
    verdicts: dict[str, Verdict] = {}
    for name, content, verdict in specimens(seed):
        assert name not in verdicts, name
        (folder / name).write_bytes(content)
        verdicts[name] = verdict
    return verdicts


def specimens(seed: int = 0) -> list[Specimen]:
    """(name, content, verdict) of each; the same for the same seed."""
    whole = [*_jpegs(), *_pngs(), *_bmps(), *_webps(), *_tiffs(), *_others()]
    return whole + [*_mutants(whole, np.random.default_rng(seed))]


def picture(channels: int = 3, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth picture (H, W, channels) uint8, which lossy codecs change little."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(float)
    waves = [127 + 60 * np.sin(x / (5 + k) + k) + 60 * np.cos(y / (7 + k)) for k in range(channels)]
    return np.stack(waves, -1).clip(0, 255).astype(np.uint8)


def levels(bits: int, channels: int = 1) -> np.ndarray:
    """The picture in numbers of `bits` bits."""
    return (picture(channels).astype(np.int64) << 8 | picture(channels)) >> (16 - bits)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def of_mode(mode: str) -> Image.Image:
    """The picture in one of Pillow's modes."""
    rgb = Image.fromarray(picture(3))
    if mode == "F":
        return Image.fromarray(picture(1)[..., 0].astype(np.float32))
    if mode == "I":
        return Image.fromarray(picture(1)[..., 0].astype(np.int32))
    if mode.startswith("I;16"):
        return Image.fromarray(levels(16)[..., 0].astype(np.uint16))
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    if mode in ("LA", "RGBA"):
        image = rgb.convert(mode)
        image.putalpha(Image.fromarray(picture(4)[..., 3]))
        return image
    return rgb.convert(mode)


# JPEG


def _turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def inserted(content: bytes, segment: bytes, at: int = 2) -> bytes:
    return content[:at] + segment + content[at:]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def adobe(transform: int) -> bytes:
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def frame_of(content: bytes) -> int:
    """Where the marker of the first frame is."""
    return min(at for at in (content.find(bytes([0xFF, n])) for n in (0xC0, 0xC2)) if at > 0)


def with_byte(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + bytes([value]) + content[at + 1 :]


def _jpegs() -> Iterator[Specimen]:
    for mode in ("L", "RGB", "CMYK"):
        for name, options in {
            "baseline": {}, "progressive": {"progressive": True}, "unsampled": {"subsampling": 0},
            "half": {"subsampling": 1}, "optimised": {"optimize": True}, "coarse": {"quality": 5},
            "restarts": {"restart_marker_blocks": 2}, "commented": {"comment": b"words " * 99},
            "profile": {"icc_profile": bytes(range(256)) * 300},
        }.items():  # fmt: skip
            yield f"jpeg-{mode}-{name}.jpg", saved(of_mode(mode), "JPEG", **options), "good"
    for orientation in range(1, 9):
        content = saved(of_mode("RGB"), "JPEG", exif=_turned(orientation))
        yield f"jpeg-turned-{orientation}.jpg", content, "good"
    rgb, grey, cmyk = (saved(of_mode(mode), "JPEG") for mode in ("RGB", "L", "CMYK"))
    yield "jpeg-adobe-ycc.jpg", inserted(rgb, adobe(1)), "good"
    plain = rgb[:2] + rgb[rgb.index(b"\xff\xdb") :]  # no JFIF
    yield "jpeg-without-jfif.jpg", plain, "good"
    yield "jpeg-adobe-rgb.jpg", inserted(plain, adobe(0)), "good"
    named = frame_of(plain)
    scan = plain.index(b"\xff\xda")
    for name, letters in {"rgb": b"RGB", "bgr": b"BGR", "odd": b"\x09\x0a\x0b"}.items():
        odd = bytearray(plain)
        for k in range(3):
            odd[named + 10 + 3 * k] = odd[scan + 5 + 2 * k] = letters[k]
        yield f"jpeg-components-{name}.jpg", bytes(odd), "good"
    for transform in (0, 2):
        found = cmyk.index(b"Adobe")
        content = with_byte(cmyk, found + 11, transform)
        yield f"jpeg-cmyk-adobe-{transform}.jpg", content, "good"
    without = cmyk.index(b"\xff\xee")
    yield "jpeg-cmyk-without-adobe.jpg", cmyk[:without] + cmyk[without + 16 :], "good"
    for size in ((1, 1), (1, 500), (500, 1), (8, 8), (2, 3)):
        content = saved(Image.fromarray(picture(3, size)), "JPEG")
        yield f"jpeg-{size[0]}x{size[1]}.jpg", content, "good"
    yield from _jpeg_headers(rgb, grey)


def _jpeg_headers(rgb: bytes, grey: bytes) -> Iterator[Specimen]:
    """What stands between the markers; RST and other markers without a length included."""
    for marker in (0x00, 0x01, 0x02, 0x4F, 0xBF, 0xC8, 0xCC, *range(0xD0, 0xDA), 0xDC, 0xDE, 0xDF,
                   *range(0xE0, 0x100)):  # fmt: skip
        yield f"jpeg-bare-{marker:02X}.jpg", inserted(rgb, bytes([0xFF, marker])), "any"
        if marker not in (0xFF,):
            content = inserted(rgb, segment(marker, b"some content"))
            yield f"jpeg-segment-{marker:02X}.jpg", content, "any"
    frame = frame_of(rgb)
    for marker in (0xC1, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
        yield f"jpeg-frame-{marker:02X}.jpg", with_byte(rgb, frame + 1, marker), "any"
        content = with_byte(grey, frame_of(grey) + 1, marker)
        yield f"jpeg-grey-frame-{marker:02X}.jpg", content, "any"
    for bits in (0, 1, 12, 16):
        yield f"jpeg-{bits}-bits.jpg", with_byte(rgb, frame + 4, bits), "any"
        content = with_byte(rgb, frame + 4, bits)
        yield f"jpeg-{bits}-bits-extended.jpg", with_byte(content, frame + 1, 0xC1), "any"
    for side, text in ((0, "0"), (1, "1"), (65500, "65500"), (65501, "65501"), (65535, "65535")):
        both = side.to_bytes(2, "big")
        yield f"jpeg-{text}-high.jpg", rgb[: frame + 5] + both + rgb[frame + 7 :], "any"
        yield f"jpeg-{text}-wide.jpg", rgb[: frame + 7] + both + rgb[frame + 9 :], "any"
        yield f"jpeg-{text}-square.jpg", rgb[: frame + 5] + both * 2 + rgb[frame + 9 :], "any"
    for count in (0, 2, 4, 5, 255):
        yield f"jpeg-{count}-components.jpg", with_byte(rgb, frame + 9, count), "any"
    for factors in (0x00, 0x12, 0x21, 0x41, 0x14, 0x31, 0x44, 0x55, 0xFF):
        yield f"jpeg-factors-{factors:02X}.jpg", with_byte(rgb, frame + 11, factors), "any"
    block = rgb[frame : frame + 19]
    yield "jpeg-two-frames.jpg", inserted(rgb, block, frame), "any"
    yield "jpeg-frame-too-short.jpg", with_byte(rgb, frame + 3, 14), "any"
    yield "jpeg-frame-too-long.jpg", with_byte(rgb, frame + 3, 20), "any"
    for name, fill in {"one": b"\xff", "three": b"\xff" * 3, "many": b"\xff" * 999}.items():
        yield f"jpeg-fill-{name}.jpg", inserted(rgb, fill), "good"
    for name, junk in {"zero": b"\0", "text": b"abc", "zeros": bytes(9)}.items():
        yield f"jpeg-junk-{name}.jpg", inserted(rgb, junk), "any"
        yield f"jpeg-junk-{name}-later.jpg", inserted(rgb, junk, rgb.index(b"\xff\xdb")), "any"
    for name, cut in {
        "half": len(rgb) // 2,
        "no-end": -2,
        "half-an-end": -1,
        "scan": rgb.index(b"\xff\xda") + 14,
    }.items():
        yield f"jpeg-cut-{name}.jpg", rgb[:cut], "bad"
    for name, cut in {
        "header": rgb.index(b"\xff\xda"),
        "frame": frame + 6,
        "start": 3,
        "30": 30,
    }.items():
        yield f"jpeg-cut-{name}.jpg", rgb[:cut], "refused"
    yield "jpeg-trailing.jpg", rgb + b"\xff\xd8 and more", "good"
    inner = saved(Image.fromarray(picture(3, (8, 8))), "JPEG")
    yield "jpeg-thumbnail.jpg", inserted(rgb, segment(0xE1, inner)), "good"
    yield "jpeg-twice.jpg", rgb + rgb, "good"
    tables = rgb.index(b"\xff\xdb")
    length = int.from_bytes(rgb[tables + 2 : tables + 4], "big") + 2
    yield "jpeg-no-quantisation.jpg", rgb[:tables] + rgb[tables + length :], "any"


# PNG


def _pngs() -> Iterator[Specimen]:
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    for colour, all_bits in depths.items():
        for bits in all_bits:
            pixels = levels(bits, samples[colour])
            palette = bmp_palette(1 << bits, 3) if colour == 3 else b""
            before = [(b"PLTE", palette)] if palette else []
            clear = {0: b"\0\1", 2: b"\0\1" * 3, 3: b"\0\x80\xff"[: 1 << bits]}.get(colour)
            for interlaced in (False, True):
                kind = f"png-{colour}-{bits}{'-interlaced' if interlaced else ''}"
                yield (
                    f"{kind}.png",
                    png(pixels, colour, bits, interlaced=interlaced, before=before),
                    "good",
                )
                if clear is not None:
                    more = [*before, (b"tRNS", clear)]
                    yield (
                        f"{kind}-trns.png",
                        png(pixels, colour, bits, interlaced=interlaced, before=more),
                        "good",
                    )
    rgb, at = levels(8, 3), {"colour": 2, "bits": 8}
    for name, chunk in {
        "gamma": (b"gAMA", (45455).to_bytes(4, "big")), "gamma-1": (b"gAMA", (100000).to_bytes(4, "big")),
        "srgb": (b"sRGB", b"\0"), "background": (b"bKGD", b"\0\x80" * 3), "resolution": (b"pHYs", bytes(9)),
        "unknown": (b"abCd", b"xyz"), "bits": (b"sBIT", b"\5\6\5"),
        "chroma": (b"cHRM", b"".join(v.to_bytes(4, "big") for v in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))),
        "text": (b"tEXt", b"Title\0words"), "turned": (b"eXIf", _turned(6)[6:]),
        "suggested": (b"PLTE", bmp_palette(16, 3)),
    }.items():  # fmt: skip
        yield f"png-with-{name}.png", png(rgb, **at, before=[chunk]), "good"
    yield "png-critical-unknown.png", png(rgb, **at, before=[(b"ABCD", b"xyz")]), "any"
    yield "png-many-pieces.png", png(rgb, **at, pieces=40), "good"
    yield "png-text-after.png", png(rgb, **at, after=[(b"tEXt", b"a\0b")]), "good"
    yield from _animated_and_broken_pngs(png(rgb, **at))


def _animated_and_broken_pngs(good: bytes) -> Iterator[Specimen]:
    frames = [Image.fromarray(np.roll(picture(3), k, 0)) for k in (3, 6)]
    animated = saved(of_mode("RGB"), "PNG", save_all=True, append_images=frames)
    yield "png-animated.png", animated, "good"
    hidden = saved(of_mode("RGB"), "PNG", save_all=True, append_images=frames, default_image=True)
    yield "png-animated-with-another.png", hidden, "good"
    palette_less = png(levels(8), 3, 8)
    yield "png-without-palette.png", palette_less, "any"
    yield (
        "png-palette-short.png",
        png(levels(8), 3, 8, before=[(b"PLTE", bmp_palette(16, 3))]),
        "any",
    )
    yield "png-palette-odd.png", png(levels(8), 3, 8, before=[(b"PLTE", bytes(40))]), "any"
    for name in (b"IHDR", b"IDAT", b"IEND"):
        at = good.index(name)
        length = int.from_bytes(good[at - 4 : at], "big")
        crc = at + 4 + length
        yield f"png-crc-{name.decode()}.png", with_byte(good, crc, good[crc] ^ 1), "any"
    flawed = [(b"gAMA", (45455).to_bytes(4, "big"), 1), (b"PLTE", bmp_palette(16, 3), 1)]
    for name, content, crc in flawed:
        chunk = png_chunk(name, content, crc)
        yield f"png-crc-{name.decode()}.png", inserted(good, chunk, 33), "any"
    for cut in (8, 20, 33, 60, len(good) // 2, len(good) - 12, len(good) - 4):
        yield f"png-cut-{cut}.png", good[:cut], "any"
    header = good[16:29]
    for name, at, value in (
        ("no-width", 3, 0), ("wide", 0, 1), ("very-wide", 0, 0x7F), ("negative", 0, 0x80), ("high", 5, 0x10),
        ("bits-3", 8, 3), ("bits-0", 8, 0), ("bits-32", 8, 32), ("colour-1", 9, 1), ("colour-5", 9, 5),
        ("colour-7", 9, 7), ("method", 10, 1), ("filter", 11, 1), ("interlace-2", 12, 2),
    ):  # fmt: skip
        chunk = png_chunk(b"IHDR", with_byte(header, at, value))
        yield f"png-header-{name}.png", PNG_SIGNATURE + chunk + good[33:], "any"
    yield "png-no-data.png", good[:33] + good[-12:], "any"
    yield "png-signature-only.png", b"\x89PNG" + good[8:], "any"
    yield "png-jng.png", b"\x8aMNG\r\n\x1a\n" + good[8:], "refused"
    yield "png-trailing.png", good + b"more", "good"
    stretched = good[: good.index(b"IDAT") - 4]
    stretched += png_chunk(b"IDAT", b"no zlib stream") + png_chunk(b"IEND", b"")
    yield "png-data-broken.png", stretched, "any"


# BMP


def _bmps() -> Iterator[Specimen]:
    width, height = SIZE
    for header in (12, 40, 52, 56, 64, 108, 124):
        entry = 3 if header == 12 else 4
        for bits in (1, 2, 4, 8):
            lines = packed(levels(bits)[::-1].reshape(height, -1), bits)
            palette = bmp_palette(1 << bits, entry)
            yield (
                f"bmp-{header}-{bits}.bmp",
                bmp(lines, width, height, bits, header=header, palette=palette),
                "any",
            )
        for bits in (16, 24, 32):
            lines = _bmp_lines(bits)
            yield f"bmp-{header}-{bits}.bmp", bmp(lines, width, height, bits, header=header), "any"
    rgb16, rgb24, rgb32 = (_bmp_lines(bits) for bits in (16, 24, 32))
    grey = packed(levels(8)[::-1].reshape(height, -1), 8)
    table = bmp_palette(256)
    yield "bmp-top-down-24.bmp", bmp(rgb24, width, -height, 24), "any"
    yield "bmp-top-down-8.bmp", bmp(grey, width, -height, 8, palette=table), "any"
    yield "bmp-negative-width.bmp", bmp(rgb24, -width, height, 24), "any"
    yield "bmp-gap.bmp", bmp(rgb24, width, height, 24, gap=8), "any"
    yield "bmp-gap-8.bmp", bmp(grey, width, height, 8, palette=table, gap=12), "any"
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
                yield f"bmp-16-{name}-{header}-{compression}.bmp", content, "any"
    for name, mask in {
        "bgrx": (0xFF0000, 0xFF00, 0xFF), "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        "rgbx": (0xFF, 0xFF00, 0xFF0000), "xbgr": (0xFF000000, 0xFF0000, 0xFF00),
        "101010": (0x3FF00000, 0xFFC00, 0x3FF), "zero": (0, 0, 0),
    }.items():  # fmt: skip
        for header in (40, 56, 108, 124):
            content = bmp(rgb32, width, height, 32, header=header, compression=3, masks=mask)
            yield f"bmp-32-{name}-{header}.bmp", content, "any"
    yield from _coded_bmps(grey, rgb24, table)


def _coded_bmps(grey: list[bytes], rgb24: list[bytes], table: bytes) -> Iterator[Specimen]:
    width, height = SIZE
    rows8, rows4 = (levels(bits)[::-1, :, 0].tolist() for bits in (8, 4))
    for name, bits, compression, coded in (
        ("rle8", 8, 1, rle(rows8, 8)), ("rle4", 4, 2, rle(rows4, 4)),
        ("rle8-cut", 8, 1, rle(rows8, 8)[:99]), ("rle8-jump", 8, 1, b"\0\2\5\5" + rle(rows8[5:], 8)),
    ):  # fmt: skip
        palette = bmp_palette(1 << bits)
        yield (
            f"bmp-{name}.bmp",
            bmp((), width, height, bits, compression=compression, palette=palette, whole=coded),
            "any",
        )
    for compression in (1, 2, 4, 5, 7, 11, 99):
        yield (
            f"bmp-24-compression-{compression}.bmp",
            bmp(rgb24, width, height, 24, compression=compression),
            "any",
        )
    for colours in (1, 16, 200, 255, 257, 300, 1000, 2**31, 2**32 - 1):
        kept = bmp_palette(min(colours, 1000))
        yield (
            f"bmp-8-colours-{colours}.bmp",
            bmp(grey, width, height, 8, palette=kept, colours=colours),
            "any",
        )
    yield "bmp-24-palette.bmp", bmp(rgb24, width, height, 24, palette=table, colours=256), "any"
    four = packed(levels(4)[::-1].reshape(height, -1), 4)
    for colours in (3, 17, 256):
        yield (
            f"bmp-4-colours-{colours}.bmp",
            bmp(four, width, height, 4, palette=bmp_palette(colours), colours=colours),
            "any",
        )
    grey_table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1).tobytes()
    yield "bmp-8-grey.bmp", bmp(grey, width, height, 8, palette=grey_table), "any"
    for bits in (0, 3, 5, 15, 48, 64):
        yield f"bmp-bits-{bits}.bmp", bmp(rgb24, width, height, bits), "any"
    for name, size in {
        "0x0": (0, 0),
        "0x9": (0, 9),
        "9x0": (9, 0),
        "huge": (2**31 - 1, 2**31 - 1),
        "lowest": (9, -(2**31)),
        "wide": (70000, 70000),
    }.items():
        yield f"bmp-{name}.bmp", bmp(rgb24, *size, 24), "any"
    good = bmp(rgb24, width, height, 24)
    yield "bmp-cut.bmp", good[:-300], "any"
    yield "bmp-cut-header.bmp", good[:30], "refused"
    yield "bmp-header-13.bmp", with_byte(good, 14, 13), "any"
    yield "bmp-header-200.bmp", with_byte(good, 14, 200), "any"
    yield "bmp-offset-0.bmp", with_byte(good, 10, 0), "any"
    yield "bmp-offset-beyond.bmp", with_byte(good, 12, 9), "any"
    yield "bmp-array.bmp", b"BA" + good[2:], "refused"
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"bmp-pillow-{mode}.bmp", saved(of_mode(mode), "BMP"), "good"


def _bmp_lines(bits: int) -> list[bytes]:
    rgb = picture(3)[::-1].astype(np.uint32)
    if bits == 16:
        numbers = (rgb[..., 0] >> 3) << 10 | (rgb[..., 1] >> 3) << 5 | rgb[..., 2] >> 3
        return [row.astype("<u2").tobytes() for row in numbers]
    blue_first = rgb[..., ::-1].astype(np.uint8)
    if bits == 32:
        blue_first = np.concatenate([blue_first, blue_first[..., :1]], -1)
    return [row.tobytes() for row in blue_first]


# WebP


def _webps() -> Iterator[Specimen]:
    for mode in ("RGB", "RGBA", "L"):
        for name, options in {
            "lossy": {}, "lossless": {"lossless": True}, "exact": {"lossless": True, "exact": True},
            "coarse": {"quality": 10}, "profile": {"icc_profile": b"p" * 500},
        }.items():  # fmt: skip
            yield f"webp-{mode}-{name}.webp", saved(of_mode(mode), "WEBP", **options), "good"
    for orientation in (3, 6, 8):
        content = saved(of_mode("RGB"), "WEBP", exif=_turned(orientation))
        yield f"webp-turned-{orientation}.webp", content, "good"
    frames = [Image.fromarray(np.roll(picture(3), k, 0)) for k in (3, 6)]
    for name, options in {"lossy": {}, "lossless": {"lossless": True}}.items():
        content = saved(of_mode("RGB"), "WEBP", save_all=True, append_images=frames, **options)
        yield f"webp-animated-{name}.webp", content, "any"
    single = saved(of_mode("RGBA"), "WEBP", save_all=True, append_images=[of_mode("RGBA")])
    yield "webp-animated-same.webp", single, "any"
    good, lossless = saved(of_mode("RGB"), "WEBP"), saved(of_mode("RGB"), "WEBP", lossless=True)
    extended = saved(of_mode("RGBA"), "WEBP", icc_profile=b"p" * 500)
    for name, content in {"lossy": good, "lossless": lossless, "extended": extended}.items():
        for cut in (11, 15, 20, 29, 40, len(content) // 2, len(content) - 1):
            yield f"webp-{name}-cut-{cut}.webp", content[:cut], "any"
    yield "webp-odd-length.webp", good + b"x", "any"
    yield "webp-longer-by-its-header.webp", with_byte(good, 5, 0x7F), "any"
    yield (
        "webp-shorter-by-its-header.webp",
        with_byte(good, 5, good[5] - 1 if good[5] else 0),
        "any",
    )
    yield "webp-wave.webp", good[:8] + b"WAVE" + good[12:], "refused"
    yield "webp-other-chunk.webp", good[:12] + b"VP8Z" + good[16:], "any"


# TIFF


def _tiffs() -> Iterator[Specimen]:
    for mode in (
        "1",
        "L",
        "LA",
        "P",
        "RGB",
        "RGBA",
        "RGBX",
        "CMYK",
        "YCbCr",
        "LAB",
        "I;16",
        "I",
        "F",
    ):
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"):
            if (compression == "group4" and mode != "1") or (
                compression == "jpeg" and mode not in ("L", "RGB", "CMYK", "YCbCr")
            ):
                continue
            content = saved(of_mode(mode), "TIFF", compression=compression)
            yield f"tiff-{mode.replace(';', '-')}-{compression}.tif", content, "any"
    for compression in ("group3", "tiff_ccitt"):
        yield (
            f"tiff-1-{compression}.tif",
            saved(of_mode("1"), "TIFF", compression=compression),
            "any",
        )
    for compression in ("lzma", "zstd", "tiff_deflate"):
        yield (
            f"tiff-RGB-{compression}.tif",
            saved(of_mode("RGB"), "TIFF", compression=compression),
            "any",
        )
    rgb, grey = picture(3), picture(1)
    for orientation in range(10):
        for name, pixels, photometric in (("RGB", rgb, 2), ("L", grey, 1)):
            content = tiff(pixels, photometric, tags={274: (3, [orientation])})
            yield f"tiff-turned-{orientation}-{name}.tif", content, "any"
    yield from _tiff_layouts(rgb, grey)
    yield from _tiff_samples()
    yield from _broken_tiffs(tiff(rgb, 2))


def _tiff_layouts(rgb: np.ndarray, grey: np.ndarray) -> Iterator[Specimen]:
    for order, letter in (("<", "II"), (">", "MM")):
        for big in (False, True):
            kind = f"tiff-{letter}{'-big' if big else ''}"
            more = {"order": order, "big": big}
            yield f"{kind}.tif", tiff(rgb, 2, **more), "any"
            yield f"{kind}-16.tif", tiff(levels(16, 3), 2, 16, **more), "any"
            yield f"{kind}-strips.tif", tiff(rgb, 2, rows_per_strip=7, **more), "any"
            yield f"{kind}-tiles.tif", tiff(rgb, 2, tile=16, **more), "any"
            yield f"{kind}-planar.tif", tiff(rgb, 2, planar=True, **more), "any"
            yield f"{kind}-planar-tiles.tif", tiff(rgb, 2, planar=True, tile=16, **more), "any"
            yield (
                f"{kind}-deflated.tif",
                tiff(rgb, 2, deflated=True, rows_per_strip=5, **more),
                "any",
            )
            yield (
                f"{kind}-predicted.tif",
                tiff(rgb, 2, deflated=True, predictor=True, **more),
                "any",
            )
            yield f"{kind}-pages.tif", tiff(rgb, 2, pages=3, **more), "any"
    yield "tiff-bits-reversed.tif", tiff(levels(1), 1, 1, fill_order=2), "any"
    yield "tiff-reduced-page.tif", tiff(rgb, 2, tags={254: (4, [1])}), "any"
    other = picture(3, (9, 9))
    first, second = ({256: (4, [w]), 257: (4, [h]), 258: (3, [8] * 3), 259: (3, [1]), 262: (3, [2]),
                      277: (3, [3]), 278: (4, [h])} for w, h in (SIZE, (9, 9)))  # fmt: skip
    yield (
        "tiff-pages-of-sizes.tif",
        tiff_pages([second, first], [[other.tobytes()], [rgb.tobytes()]]),
        "any",
    )


def _tiff_samples() -> Iterator[Specimen]:
    """Bits, kinds of numbers, and what the samples mean."""
    for bits in (1, 2, 4, 8, 16, 32):
        for photometric, name in ((0, "white0"), (1, "black0")):
            pixels = levels(min(bits, 16))
            yield f"tiff-{name}-{bits}.tif", tiff(pixels, photometric, bits), "any"
    for bits in (1, 2, 4, 8, 16):
        ramp = np.linspace(0, 65535, 1 << bits).astype(np.uint16)
        table = np.concatenate([ramp, ramp // 2, ramp[::-1]]).tolist()
        yield f"tiff-palette-{bits}.tif", tiff(levels(bits), 3, bits, tags={320: (3, table)}), "any"
        if bits == 8:
            more = {320: (3, table), 338: (3, [2])}
            yield "tiff-palette-alpha.tif", tiff(levels(8, 2), 3, 8, tags=more), "any"
            small = {320: (3, [v >> 8 for v in table])}
            yield "tiff-palette-8-of-bytes.tif", tiff(levels(8), 3, 8, tags=small), "any"
    for bits in (1, 2, 4, 16, 32):
        pixels = levels(min(bits, 16), 3)
        yield f"tiff-rgb-{bits}.tif", tiff(pixels, 2, bits), "any"
    for kind, name in ((2, "signed"), (3, "float"), (4, "void"), (5, "complex")):
        for bits in (8, 16, 32, 64):
            pixels = levels(8, 1)
            content = tiff(pixels, 1, bits, tags={339: (3, [kind])})
            yield f"tiff-{name}-{bits}.tif", content, "any"
    for extra in (0, 1, 2):
        yield f"tiff-grey-extra-{extra}.tif", tiff(levels(8, 2), 1, tags={338: (3, [extra])}), "any"
        yield f"tiff-rgb-extra-{extra}.tif", tiff(levels(8, 4), 2, tags={338: (3, [extra])}), "any"
        content = tiff(levels(16, 4), 2, 16, tags={338: (3, [extra])})
        yield f"tiff-rgb16-extra-{extra}.tif", content, "any"
        yield (
            f"tiff-rgb-planar-extra-{extra}.tif",
            tiff(levels(8, 4), 2, planar=True, tags={338: (3, [extra])}),
            "any",
        )
    yield "tiff-rgb-4-samples.tif", tiff(levels(8, 4), 2), "any"
    yield "tiff-grey-2-samples.tif", tiff(levels(8, 2), 1), "any"
    yield "tiff-grey-3-samples.tif", tiff(levels(8, 3), 1), "any"
    yield "tiff-rgb-5-samples.tif", tiff(levels(8, 5), 2, tags={338: (3, [0, 0])}), "any"
    yield "tiff-cmyk.tif", tiff(levels(8, 4), 5), "any"
    yield "tiff-cmyk-5.tif", tiff(levels(8, 5), 5, tags={338: (3, [0])}), "any"
    yield "tiff-ycbcr.tif", tiff(levels(8, 3), 6, tags={530: (3, [1, 1])}), "any"
    yield "tiff-ycbcr-half.tif", tiff(levels(8, 3), 6), "any"
    for photometric, name in (
        (4, "mask"),
        (8, "lab"),
        (9, "icclab"),
        (32803, "cfa"),
        (34892, "raw"),
    ):
        yield f"tiff-{name}.tif", tiff(levels(8, 3 if photometric < 10 else 1), photometric), "any"
    yield "tiff-mixed-bits.tif", tiff(picture(3), 2, tags={258: (3, [8, 8, 16])}), "any"
    yield "tiff-one-bits-value.tif", tiff(picture(3), 2, tags={258: (3, [8])}), "any"


def _broken_tiffs(good: bytes) -> Iterator[Specimen]:
    for cut in (4, 8, 30, 100, 150, len(good) // 2, len(good) - 1):
        yield f"tiff-cut-{cut}.tif", good[:cut], "any"
    yield "tiff-directory-beyond.tif", with_byte(good, 6, 9), "any"
    yield "tiff-mark-44.tif", with_byte(good, 2, 44), "any"
    for compression in (0, 2, 3, 4, 6, 7, 9, 99, 32809, 34661, 34712, 50000):
        content = tiff(picture(3), 2, tags={259: (3, [compression])})
        yield f"tiff-compression-{compression}.tif", content, "any"
    for name, tags in {
        "no-rows": {278: (4, [0])}, "all-rows": {278: (4, [2**32 - 1])}, "no-width": {256: (4, [0])},
        "wide": {256: (4, [2**31])}, "high": {257: (4, [70000])}, "no-bits": {258: (3, [0] * 3)},
        "photometric-99": {262: (3, [99])}, "no-samples": {277: (3, [0])}, "samples-999": {277: (3, [999])},
        "planar-3": {284: (3, [3])}, "width-short": {256: (3, [37])}, "wide-strip": {257: (4, [28])},
    }.items():  # fmt: skip
        yield f"tiff-{name}.tif", tiff(picture(3), 2, tags=tags), "any"


# Others and mutants


def _others() -> Iterator[Specimen]:
    image = of_mode("RGB")
    for kind in ("GIF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "SGI", "AVIF", "MPO"):
        if kind == "MPO":
            yield "other-mpo.jpg", saved(image, kind, save_all=True, append_images=[image]), "good"
        else:
            yield f"other-{kind.lower()}.jpg", saved(image, kind), "refused"
    for name, content in {
        "empty": b"", "text": b"not an image, sorry", "html": b"<html>404</html>", "zeros": bytes(4096),
        "magic-jpeg": b"\xff\xd8", "magic-jpeg-3": b"\xff\xd8\xff", "magic-png": b"\x89PNG\r\n\x1a\n",
        "magic-bmp": b"BM", "magic-riff": b"RIFF\x20\0\0\0WEBP", "magic-tiff": b"II*\0", "magic-ii": b"II",
        "magic-mm": b"MM\0*",
    }.items():  # fmt: skip
        yield f"other-{name}.jpg", content, "refused"


_MUTATED = (
    "jpeg-RGB-baseline.jpg", "jpeg-L-progressive.jpg", "jpeg-CMYK-baseline.jpg", "png-2-8.png",
    "png-3-4-interlaced-trns.png", "bmp-40-8.bmp", "bmp-124-24.bmp", "webp-RGB-lossy.webp",
    "webp-RGBA-lossless.webp", "tiff-RGB-None.tif", "tiff-MM-big-tiles.tif", "tiff-turned-1-L.tif",
)  # fmt: skip
_HEADER_BYTES = {"jpeg": 640, "png": 60, "bmp": 80, "webp": 60, "tiff": 200}


def _mutants(whole: list[Specimen], rng: np.random.Generator, each: int = 12) -> Iterator[Specimen]:
    """One to three bytes of a header changed."""
    contents = {name: content for name, content, _ in whole}
    for name in _MUTATED:
        stem, _, suffix = name.rpartition(".")
        reach = min(_HEADER_BYTES[name.partition("-")[0]], len(contents[name]))
        for number in range(each):
            mutant = bytearray(contents[name])
            for at in rng.integers(2, reach, rng.integers(1, 4)):
                mutant[at] = rng.choice([0, 1, 2, 8, 16, 127, 128, 255, rng.integers(256)])
            yield f"mutant-{stem}-{number:02}.{suffix}", bytes(mutant), "any"
