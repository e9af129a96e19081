"""Which TIFF files DALI decodes to Pillow's pixels, by their first directory.

Its decoder reads some kinds of samples as others without a word (floats, an alpha channel beside
grey) and fails outside the image's own stage for more; see `decodable`. Sizes are those of the
stored pixels: Pillow gives them as turned by the orientation tag, which DALI does not apply.
"""

from __future__ import annotations

from typing import Any

from PIL.TiffImagePlugin import TiffImageFile

from pipeline.data.index.decodable import refuse

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 259, 262, 274
_SAMPLES, _ROWS, _PLANAR, _EXTRA, _SAMPLE_FORMAT = 277, 278, 284, 338, 339
_STRIPS, _TILES = (273, 279), (324, 325)  # where they lie, how many bytes they have
_TILE_WIDTH, _TILE_HEIGHT, _SUBSAMPLING = 322, 323, 530
_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {
    _WHITE_IS_0: "grey", _BLACK_IS_0: "grey", _RGB: "RGB", _PALETTE: "palette", _CMYK: "CMYK",
    _YCBCR: "YCbCr",
}  # fmt: skip
_DEPTHS = {
    _WHITE_IS_0: (1, 8, 16), _BLACK_IS_0: (1, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8),
    _CMYK: (8,), _YCBCR: (8,),
}  # fmt: skip
_CHANNELS = {_WHITE_IS_0: 1, _BLACK_IS_0: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
# none, three of fax, LZW, JPEG, deflate, packed bits, deflate by its older number, Zstandard
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000)
_FAX, _JPEG = (2, 3, 4), 7
_UNSIGNED, _SEPARATE, _PREMULTIPLIED = 1, 2, 1
_KINDS = {2: "signed", 3: "floating point", 5: "complex", 6: "complex"}
_TILE_STEP = 16


def tiff_size(image: TiffImageFile, length: int) -> tuple[int, int]:
    """Return (width, height) as stored, of a file of `length` bytes.

    BadHeader if it cannot be decoded to Pillow's pixels.
    """
    tags: Any = image.tag_v2
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    orientation = tags.get(_ORIENTATION, 1)
    if orientation in range(2, 9):
        refuse(f"is a TIFF turned by its orientation tag ({orientation}); save it upright")
    _check_samples(tags)
    _check_layout(tags, width, height, length)
    return width, height


def _check_samples(tags: Any) -> None:
    """Refuse what is decoded to other pixels, or not at all."""
    kinds = set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)))
    if kinds != {_UNSIGNED}:
        kind = _KINDS.get(max(kinds), f"undefined ({max(kinds)})")
        refuse(f"is a TIFF of {kind} numbers, where unsigned ones are decoded; save it as PNG")
    if _BITS not in tags:  # which may be left out for 1
        refuse("is a TIFF that leaves out its bits a sample (tag 258), as one of 1 bit may without "
               "compression; save it as PNG, or with a compression")  # fmt: skip
    photometric, bits = tags.get(_PHOTOMETRIC), set(tags[_BITS])
    colours = _COLOURS.get(photometric, f"photometric {photometric}")
    if len(bits) != 1 or min(bits) not in _DEPTHS.get(photometric, ()):
        words = " and ".join(map(str, sorted(bits)))
        refuse(
            f"is a {colours} TIFF of {words} bits a sample, which is not decoded; save it as PNG"
        )
    samples, wanted = tags.get(_SAMPLES, 1), _CHANNELS[photometric]
    extra = tuple(tags.get(_EXTRA, ()))
    more = samples - wanted
    if more < 0 or (more > 0 and photometric != _RGB):
        refuse(f"is a {colours} TIFF of {samples} samples a pixel, where {wanted} are decoded; "
               "save it without alpha")  # fmt: skip
    if more and extra[:1] == (_PREMULTIPLIED,):
        refuse("is a TIFF whose colours are multiplied by its alpha; save it without alpha")
    plain = photometric == _YCBCR and tags.get(_COMPRESSION, 1) == 1
    if plain and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        refuse("is a YCbCr TIFF with fewer samples of colour than of light and no compression, "
               "which is not decoded; save it as RGB")  # fmt: skip


def _check_layout(tags: Any, width: int, height: int, length: int) -> None:
    """Refuse compressions, tiles and planes that are not decoded, and strips that are not there."""
    compression, bits = tags.get(_COMPRESSION, 1), tags[_BITS][0]
    if compression not in _COMPRESSIONS or (compression in _FAX and bits != 1):
        refuse(f"is a TIFF of {bits} bits a sample with compression {compression}, which is not "
               "decoded; save it as PNG")  # fmt: skip
    planes = 1
    separate = tags.get(_PLANAR, 1)
    if separate != 1:
        planes = tags.get(_SAMPLES, 1)
        usual = planes == _CHANNELS[tags[_PHOTOMETRIC]] and bits <= 8
        if separate != _SEPARATE or not usual or _TILES[0] in tags:
            refuse("is a TIFF whose colours lie apart, in tiles, with alpha or of 16 bits, which "
                   "is not decoded; save it anew")  # fmt: skip
    if _TILES[0] in tags:
        across, down = int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])
        if across % _TILE_STEP or down % _TILE_STEP or not (across and down):
            refuse(f"is a TIFF in tiles of {across} x {down}; their sides must be multiples of 16")
        if bits < 8 or tags[_PHOTOMETRIC] == _WHITE_IS_0:
            refuse("is a TIFF in tiles, of less than 8 bits or with white as 0, which is not "
                   "decoded; save it as PNG")  # fmt: skip
        needed, where = -(-width // across) * -(-height // down), _TILES
    else:
        rows = int(tags.get(_ROWS, height))
        if rows < 1:
            refuse("is a TIFF with strips of 0 rows: it is damaged")
        needed, where = -(-height // rows), _STRIPS
    places = tuple(tags.get(where[0], ()))
    sizes = tuple(tags.get(where[1], ())) or (0,) * len(places)  # which may be left out
    if len(places) != len(sizes) or len(places) < needed * planes:
        refuse(f"has {len(places)} strips or tiles of pixels, its size needs {needed * planes}")
    end = max(map(sum, zip(places, sizes, strict=True)))
    if end > length:
        refuse(f"has {length} bytes, its header needs {end}: it is cut off")
