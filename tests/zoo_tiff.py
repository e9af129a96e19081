"""TIFF files of every kind of samples, layout and compression."""

import numpy as np
from image_writers import tiff, tiff_pages
from zoo_parts import SIZE, Specimens, levels, of_mode, picture, saved, with_byte


def tiffs() -> Specimens:
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
            yield f"tiff-{mode.replace(';', '-')}-{compression}.tif", content
    for compression in ("group3", "tiff_ccitt"):
        yield (
            f"tiff-1-{compression}.tif",
            saved(of_mode("1"), "TIFF", compression=compression),
        )
    for compression in ("lzma", "zstd", "tiff_deflate"):
        yield (
            f"tiff-RGB-{compression}.tif",
            saved(of_mode("RGB"), "TIFF", compression=compression),
        )
    rgb, grey = picture(3), picture(1)
    for orientation in range(10):
        for name, pixels, photometric in (("RGB", rgb, 2), ("L", grey, 1)):
            content = tiff(pixels, photometric, tags={274: (3, [orientation])})
            yield f"tiff-turned-{orientation}-{name}.tif", content
    yield from _tiff_layouts(rgb, grey)
    yield from _tiff_samples()
    yield from _broken_tiffs(tiff(rgb, 2))


def _tiff_layouts(rgb: np.ndarray, grey: np.ndarray) -> Specimens:
    for order, letter in (("<", "II"), (">", "MM")):
        for big in (False, True):
            kind = f"tiff-{letter}{'-big' if big else ''}"
            more = {"order": order, "big": big}
            yield f"{kind}.tif", tiff(rgb, 2, **more)
            yield f"{kind}-16.tif", tiff(levels(16, 3), 2, 16, **more)
            yield f"{kind}-strips.tif", tiff(rgb, 2, rows_per_strip=7, **more)
            yield f"{kind}-tiles.tif", tiff(rgb, 2, tile=16, **more)
            yield f"{kind}-planar.tif", tiff(rgb, 2, planar=True, **more)
            yield f"{kind}-planar-tiles.tif", tiff(rgb, 2, planar=True, tile=16, **more)
            yield (
                f"{kind}-deflated.tif",
                tiff(rgb, 2, deflated=True, rows_per_strip=5, **more),
            )
            yield (
                f"{kind}-predicted.tif",
                tiff(rgb, 2, deflated=True, predictor=True, **more),
            )
            yield f"{kind}-pages.tif", tiff(rgb, 2, pages=3, **more)
    yield "tiff-bits-reversed.tif", tiff(levels(1), 1, 1, fill_order=2)
    yield "tiff-reduced-page.tif", tiff(rgb, 2, tags={254: (4, [1])})
    other = picture(3, (9, 9))
    first, second = ({256: (4, [w]), 257: (4, [h]), 258: (3, [8] * 3), 259: (3, [1]), 262: (3, [2]),
                      277: (3, [3]), 278: (4, [h])} for w, h in (SIZE, (9, 9)))  # fmt: skip
    yield (
        "tiff-pages-of-sizes.tif",
        tiff_pages([second, first], [[other.tobytes()], [rgb.tobytes()]]),
    )


def _tiff_samples() -> Specimens:
    """Bits, kinds of numbers, and what the samples mean."""
    for bits in (1, 2, 4, 8, 16, 32):
        for photometric, name in ((0, "white0"), (1, "black0")):
            pixels = levels(min(bits, 16))
            yield f"tiff-{name}-{bits}.tif", tiff(pixels, photometric, bits)
    for bits in (1, 2, 4, 8, 16):
        ramp = np.linspace(0, 65535, 1 << bits).astype(np.uint16)
        table = np.concatenate([ramp, ramp // 2, ramp[::-1]]).tolist()
        yield f"tiff-palette-{bits}.tif", tiff(levels(bits), 3, bits, tags={320: (3, table)})
        if bits == 8:
            more = {320: (3, table), 338: (3, [2])}
            yield "tiff-palette-alpha.tif", tiff(levels(8, 2), 3, 8, tags=more)
            small = {320: (3, [v >> 8 for v in table])}
            yield "tiff-palette-8-of-bytes.tif", tiff(levels(8), 3, 8, tags=small)
    for bits in (1, 2, 4, 16, 32):
        pixels = levels(min(bits, 16), 3)
        yield f"tiff-rgb-{bits}.tif", tiff(pixels, 2, bits)
    for kind, name in ((2, "signed"), (3, "float"), (4, "void"), (5, "complex")):
        for bits in (8, 16, 32, 64):
            pixels = levels(8, 1)
            content = tiff(pixels, 1, bits, tags={339: (3, [kind])})
            yield f"tiff-{name}-{bits}.tif", content
    for extra in (0, 1, 2):
        yield f"tiff-grey-extra-{extra}.tif", tiff(levels(8, 2), 1, tags={338: (3, [extra])})
        yield f"tiff-rgb-extra-{extra}.tif", tiff(levels(8, 4), 2, tags={338: (3, [extra])})
        content = tiff(levels(16, 4), 2, 16, tags={338: (3, [extra])})
        yield f"tiff-rgb16-extra-{extra}.tif", content
        yield (
            f"tiff-rgb-planar-extra-{extra}.tif",
            tiff(levels(8, 4), 2, planar=True, tags={338: (3, [extra])}),
        )
    yield "tiff-rgb-4-samples.tif", tiff(levels(8, 4), 2)
    yield "tiff-grey-2-samples.tif", tiff(levels(8, 2), 1)
    yield "tiff-grey-3-samples.tif", tiff(levels(8, 3), 1)
    yield "tiff-rgb-5-samples.tif", tiff(levels(8, 5), 2, tags={338: (3, [0, 0])})
    yield "tiff-cmyk.tif", tiff(levels(8, 4), 5)
    yield "tiff-cmyk-5.tif", tiff(levels(8, 5), 5, tags={338: (3, [0])})
    yield "tiff-ycbcr.tif", tiff(levels(8, 3), 6, tags={530: (3, [1, 1])})
    yield "tiff-ycbcr-half.tif", tiff(levels(8, 3), 6)
    for photometric, name in (
        (4, "mask"),
        (8, "lab"),
        (9, "icclab"),
        (32803, "cfa"),
        (34892, "raw"),
    ):
        yield f"tiff-{name}.tif", tiff(levels(8, 3 if photometric < 10 else 1), photometric)
    for name, extra in {"alpha-x": [2, 0], "x-alpha": [0, 2], "x-x": [0, 0]}.items():
        yield f"tiff-rgb-{name}.tif", tiff(levels(8, 5), 2, tags={338: (3, extra)})
    yield "tiff-cmyk-16.tif", tiff(levels(16, 4), 5, 16)
    yield "tiff-grey-planar.tif", tiff(picture(1), 1, tags={284: (3, [2])})
    yield "tiff-rgb16-planar.tif", tiff(levels(16, 3), 2, 16, planar=True)
    yield "tiff-rgb-planar-deflated.tif", tiff(picture(3), 2, planar=True, deflated=True)
    yield "tiff-cmyk-planar.tif", tiff(levels(8, 4), 5, planar=True)
    yield "tiff-white0-tiles.tif", tiff(picture(1), 0, tile=16)
    yield "tiff-cmyk-tiles.tif", tiff(levels(8, 4), 5, tile=16)
    yield (
        "tiff-palette-tiles.tif",
        tiff(levels(8), 3, tile=16, tags={320: (3, [*range(0, 65536, 256)] * 3)}),
    )
    yield "tiff-1-tiles.tif", tiff(levels(1), 1, 1, tile=16)
    yield "tiff-rgb16-tiles-deflated.tif", tiff(levels(16, 3), 2, 16, tile=32, deflated=True)
    yield "tiff-tiles-of-24.tif", tiff(picture(3), 2, tile=24)
    yield "tiff-one-tile.tif", tiff(picture(3), 2, tile=64)
    yield "tiff-one-row-strips.tif", tiff(picture(3), 2, rows_per_strip=1, deflated=True)
    yield "tiff-mixed-bits.tif", tiff(picture(3), 2, tags={258: (3, [8, 8, 16])})
    yield "tiff-one-bits-value.tif", tiff(picture(3), 2, tags={258: (3, [8])})


def _broken_tiffs(good: bytes) -> Specimens:
    for cut in (4, 8, 30, 100, 150, len(good) // 2, len(good) - 1):
        yield f"tiff-cut-{cut}.tif", good[:cut]
    yield "tiff-directory-beyond.tif", with_byte(good, 6, 9)
    yield "tiff-mark-44.tif", with_byte(good, 2, 44)
    for compression in (0, 2, 3, 4, 6, 7, 9, 99, 32809, 34661, 34712, 50000):
        content = tiff(picture(3), 2, tags={259: (3, [compression])})
        yield f"tiff-compression-{compression}.tif", content
    for name, tags in {
        "no-rows": {278: (4, [0])},
        "all-rows": {278: (4, [2**32 - 1])},
        "no-width": {256: (4, [0])},
        "wide": {256: (4, [2**31])},
        "high": {257: (4, [70000])},
        "no-bits": {258: (3, [0] * 3)},
        "photometric-99": {262: (3, [99])},
        "no-samples": {277: (3, [0])},
        "samples-999": {277: (3, [999])},
        "planar-3": {284: (3, [3])},
        "width-short": {256: (3, [37])},
        "wide-strip": {257: (4, [28])},
    }.items():
        yield f"tiff-{name}.tif", tiff(picture(3), 2, tags=tags)
