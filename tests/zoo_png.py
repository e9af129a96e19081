"""PNG files of every colour type and depth, WebP files, and both cut and damaged."""

import numpy as np
from image_writers import PNG_SIGNATURE, bmp_palette, png, png_chunk
from PIL import Image
from zoo_parts import Specimens, exif_turned, inserted, levels, of_mode, picture, saved, with_byte


def pngs() -> Specimens:
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
                )
                if clear is not None:
                    more = [*before, (b"tRNS", clear)]
                    yield (
                        f"{kind}-trns.png",
                        png(pixels, colour, bits, interlaced=interlaced, before=more),
                    )
    rgb, at = levels(8, 3), {"colour": 2, "bits": 8}
    for name, chunk in {
        "gamma": (b"gAMA", (45455).to_bytes(4, "big")),
        "gamma-1": (b"gAMA", (100000).to_bytes(4, "big")),
        "srgb": (b"sRGB", b"\0"),
        "background": (b"bKGD", b"\0\x80" * 3),
        "resolution": (b"pHYs", bytes(9)),
        "unknown": (b"abCd", b"xyz"),
        "bits": (b"sBIT", b"\5\6\5"),
        "chroma": (
            b"cHRM",
            b"".join(
                v.to_bytes(4, "big")
                for v in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
            ),
        ),
        "text": (b"tEXt", b"Title\0words"),
        "turned": (b"eXIf", exif_turned(6)[6:]),
        "suggested": (b"PLTE", bmp_palette(16, 3)),
    }.items():
        yield f"png-with-{name}.png", png(rgb, **at, before=[chunk])
    yield "png-critical-unknown.png", png(rgb, **at, before=[(b"ABCD", b"xyz")])
    yield "png-many-pieces.png", png(rgb, **at, pieces=40)
    yield "png-text-after.png", png(rgb, **at, after=[(b"tEXt", b"a\0b")])
    yield from _animated_and_broken_pngs(png(rgb, **at))


def _animated_and_broken_pngs(good: bytes) -> Specimens:
    frames = [Image.fromarray(np.roll(picture(3), k, 0)) for k in (3, 6)]
    animated = saved(of_mode("RGB"), "PNG", save_all=True, append_images=frames)
    yield "png-animated.png", animated
    hidden = saved(of_mode("RGB"), "PNG", save_all=True, append_images=frames, default_image=True)
    yield "png-animated-with-another.png", hidden
    palette_less = png(levels(8), 3, 8)
    yield "png-without-palette.png", palette_less
    yield (
        "png-palette-short.png",
        png(levels(8), 3, 8, before=[(b"PLTE", bmp_palette(16, 3))]),
    )
    yield "png-palette-odd.png", png(levels(8), 3, 8, before=[(b"PLTE", bytes(40))])
    for name in (b"IHDR", b"IDAT", b"IEND"):
        at = good.index(name)
        length = int.from_bytes(good[at - 4 : at], "big")
        crc = at + 4 + length
        yield f"png-crc-{name.decode()}.png", with_byte(good, crc, good[crc] ^ 1)
    flawed = [(b"gAMA", (45455).to_bytes(4, "big"), 1), (b"PLTE", bmp_palette(16, 3), 1)]
    for name, content, crc in flawed:
        chunk = png_chunk(name, content, crc)
        yield f"png-crc-{name.decode()}.png", inserted(good, chunk, 33)
    for cut in (8, 20, 33, 60, len(good) // 2, len(good) - 12, len(good) - 4):
        yield f"png-cut-{cut}.png", good[:cut]
    header = good[16:29]
    for name, at, value in (
        ("no-width", 3, 0),
        ("wide", 0, 1),
        ("very-wide", 0, 0x7F),
        ("negative", 0, 0x80),
        ("high", 5, 0x10),
        ("bits-3", 8, 3),
        ("bits-0", 8, 0),
        ("bits-32", 8, 32),
        ("colour-1", 9, 1),
        ("colour-5", 9, 5),
        ("colour-7", 9, 7),
        ("method", 10, 1),
        ("filter", 11, 1),
        ("interlace-2", 12, 2),
    ):
        chunk = png_chunk(b"IHDR", with_byte(header, at, value))
        yield f"png-header-{name}.png", PNG_SIGNATURE + chunk + good[33:]
    yield "png-no-data.png", good[:33] + good[-12:]
    yield "png-signature-only.png", b"\x89PNG" + good[8:]
    yield "png-jng.png", b"\x8aMNG\r\n\x1a\n" + good[8:]
    yield "png-trailing.png", good + b"more"
    stretched = good[: good.index(b"IDAT") - 4]
    stretched += png_chunk(b"IDAT", b"no zlib stream") + png_chunk(b"IEND", b"")
    yield "png-data-broken.png", stretched


def webps() -> Specimens:
    for mode in ("RGB", "RGBA", "L"):
        for name, options in {
            "lossy": {}, "lossless": {"lossless": True}, "exact": {"lossless": True, "exact": True},
            "coarse": {"quality": 10}, "profile": {"icc_profile": b"p" * 500},
        }.items():  # fmt: skip
            yield f"webp-{mode}-{name}.webp", saved(of_mode(mode), "WEBP", **options)
    for orientation in (3, 6, 8):
        content = saved(of_mode("RGB"), "WEBP", exif=exif_turned(orientation))
        yield f"webp-turned-{orientation}.webp", content
    frames = [Image.fromarray(np.roll(picture(3), k, 0)) for k in (3, 6)]
    for name, options in {"lossy": {}, "lossless": {"lossless": True}}.items():
        content = saved(of_mode("RGB"), "WEBP", save_all=True, append_images=frames, **options)
        yield f"webp-animated-{name}.webp", content
    single = saved(of_mode("RGBA"), "WEBP", save_all=True, append_images=[of_mode("RGBA")])
    yield "webp-animated-same.webp", single
    good, lossless = saved(of_mode("RGB"), "WEBP"), saved(of_mode("RGB"), "WEBP", lossless=True)
    extended = saved(of_mode("RGBA"), "WEBP", icc_profile=b"p" * 500)
    for name, content in {"lossy": good, "lossless": lossless, "extended": extended}.items():
        for cut in (11, 15, 20, 29, 40, len(content) // 2, len(content) - 1):
            yield f"webp-{name}-cut-{cut}.webp", content[:cut]
    yield "webp-odd-length.webp", good + b"x"
    yield "webp-longer-by-its-header.webp", with_byte(good, 5, 0x7F)
    yield (
        "webp-shorter-by-its-header.webp",
        with_byte(good, 5, good[5] - 1 if good[5] else 0),
    )
    yield "webp-wave.webp", good[:8] + b"WAVE" + good[12:]
    yield "webp-other-chunk.webp", good[:12] + b"VP8Z" + good[16:]
