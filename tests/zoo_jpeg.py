"""JPEG files of every mode, and headers of every marker."""

from image_writers import lossless_jpeg
from PIL import Image
from zoo_parts import Specimens, exif_turned, inserted, of_mode, picture, saved, with_byte


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def adobe(transform: int) -> bytes:
    return segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def frame_of(content: bytes) -> int:
    """Where the marker of the first frame is."""
    return min(at for at in (content.find(bytes([0xFF, n])) for n in (0xC0, 0xC2)) if at > 0)


def jpegs() -> Specimens:
    for mode in ("L", "RGB", "CMYK"):
        for name, options in {
            "baseline": {}, "progressive": {"progressive": True}, "unsampled": {"subsampling": 0},
            "half": {"subsampling": 1}, "optimised": {"optimize": True}, "coarse": {"quality": 5},
            "restarts": {"restart_marker_blocks": 2}, "commented": {"comment": b"words " * 99},
            "profile": {"icc_profile": bytes(range(256)) * 300},
        }.items():  # fmt: skip
            yield f"jpeg-{mode}-{name}.jpg", saved(of_mode(mode), "JPEG", **options)
    for orientation in range(1, 9):
        content = saved(of_mode("RGB"), "JPEG", exif=exif_turned(orientation))
        yield f"jpeg-turned-{orientation}.jpg", content
    rgb, grey, cmyk = (saved(of_mode(mode), "JPEG") for mode in ("RGB", "L", "CMYK"))
    yield "jpeg-adobe-ycc.jpg", inserted(rgb, adobe(1))
    plain = rgb[:2] + rgb[rgb.index(b"\xff\xdb") :]  # no JFIF
    yield "jpeg-without-jfif.jpg", plain
    yield "jpeg-adobe-rgb.jpg", inserted(plain, adobe(0))
    named = frame_of(plain)
    scan = plain.index(b"\xff\xda")
    for name, letters in {"rgb": b"RGB", "bgr": b"BGR", "odd": b"\x09\x0a\x0b"}.items():
        odd = bytearray(plain)
        for k in range(3):
            odd[named + 10 + 3 * k] = odd[scan + 5 + 2 * k] = letters[k]
        yield f"jpeg-components-{name}.jpg", bytes(odd)
    for transform in (0, 2):
        found = cmyk.index(b"Adobe")
        content = with_byte(cmyk, found + 11, transform)
        yield f"jpeg-cmyk-adobe-{transform}.jpg", content
    without = cmyk.index(b"\xff\xee")
    yield "jpeg-cmyk-without-adobe.jpg", cmyk[:without] + cmyk[without + 16 :]
    for size in ((1, 1), (1, 500), (500, 1), (8, 8), (2, 3)):
        content = saved(Image.fromarray(picture(3, size)), "JPEG")
        yield f"jpeg-{size[0]}x{size[1]}.jpg", content
    yield from _jpeg_headers(rgb, grey)


def _jpeg_headers(rgb: bytes, grey: bytes) -> Specimens:
    """What stands between the markers; RST and other markers without a length included."""
    for marker in (0x00, 0x01, 0x02, 0x4F, 0xBF, 0xC8, 0xCC, *range(0xD0, 0xDA), 0xDC, 0xDE, 0xDF,
                   *range(0xE0, 0x100)):  # fmt: skip
        yield f"jpeg-bare-{marker:02X}.jpg", inserted(rgb, bytes([0xFF, marker]))
        if marker not in (0xFF,):
            content = inserted(rgb, segment(marker, b"some content"))
            yield f"jpeg-segment-{marker:02X}.jpg", content
    yield "jpeg-lossless.jpg", lossless_jpeg(picture(1))
    frame = frame_of(rgb)
    for marker in (0xC1, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF):
        yield f"jpeg-frame-{marker:02X}.jpg", with_byte(rgb, frame + 1, marker)
        content = with_byte(grey, frame_of(grey) + 1, marker)
        yield f"jpeg-grey-frame-{marker:02X}.jpg", content
    for bits in (0, 1, 12, 16):
        yield f"jpeg-{bits}-bits.jpg", with_byte(rgb, frame + 4, bits)
        content = with_byte(rgb, frame + 4, bits)
        yield f"jpeg-{bits}-bits-extended.jpg", with_byte(content, frame + 1, 0xC1)
    for side, text in ((0, "0"), (1, "1"), (65500, "65500"), (65501, "65501"), (65535, "65535")):
        both = side.to_bytes(2, "big")
        yield f"jpeg-{text}-high.jpg", rgb[: frame + 5] + both + rgb[frame + 7 :]
        yield f"jpeg-{text}-wide.jpg", rgb[: frame + 7] + both + rgb[frame + 9 :]
        yield f"jpeg-{text}-square.jpg", rgb[: frame + 5] + both * 2 + rgb[frame + 9 :]
    for count in (0, 2, 4, 5, 255):
        yield f"jpeg-{count}-components.jpg", with_byte(rgb, frame + 9, count)
    for factors in (0x00, 0x12, 0x21, 0x41, 0x14, 0x31, 0x44, 0x55, 0xFF):
        yield f"jpeg-factors-{factors:02X}.jpg", with_byte(rgb, frame + 11, factors)
    block = rgb[frame : frame + 19]
    yield "jpeg-two-frames.jpg", inserted(rgb, block, frame)
    yield "jpeg-frame-too-short.jpg", with_byte(rgb, frame + 3, 14)
    yield "jpeg-frame-too-long.jpg", with_byte(rgb, frame + 3, 20)
    for name, fill in {"one": b"\xff", "three": b"\xff" * 3, "many": b"\xff" * 999}.items():
        yield f"jpeg-fill-{name}.jpg", inserted(rgb, fill)
    for name, junk in {"zero": b"\0", "text": b"abc", "zeros": bytes(9)}.items():
        yield f"jpeg-junk-{name}.jpg", inserted(rgb, junk)
        yield f"jpeg-junk-{name}-later.jpg", inserted(rgb, junk, rgb.index(b"\xff\xdb"))
    for name, cut in {
        "half": len(rgb) // 2,
        "no-end": -2,
        "half-an-end": -1,
        "scan": rgb.index(b"\xff\xda") + 14,
    }.items():
        yield f"jpeg-cut-{name}.jpg", rgb[:cut]
    for name, cut in {
        "header": rgb.index(b"\xff\xda"),
        "frame": frame + 6,
        "start": 3,
        "30": 30,
    }.items():
        yield f"jpeg-cut-{name}.jpg", rgb[:cut]
    yield "jpeg-trailing.jpg", rgb + b"\xff\xd8 and more"
    inner = saved(Image.fromarray(picture(3, (8, 8))), "JPEG")
    yield "jpeg-thumbnail.jpg", inserted(rgb, segment(0xE1, inner))
    yield "jpeg-twice.jpg", rgb + rgb
    tables = rgb.index(b"\xff\xdb")
    length = int.from_bytes(rgb[tables + 2 : tables + 4], "big") + 2
    yield "jpeg-no-quantisation.jpg", rgb[:tables] + rgb[tables + length :]
