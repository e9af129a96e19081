"""The drawing of the data flow is true to the source."""

import re

from jobs import REPOSITORY

DOCS = REPOSITORY / "docs"


def test_the_modules_in_the_drawing_exist():
    drawing = (DOCS / "architecture.svg").read_text()
    text = " ".join(re.findall(r">([^<>]+)</text>", drawing))
    modules = re.findall(r"[\w/]+\.py\b|[\w/]+/(?=\s)", text)
    assert len(modules) > 20
    places = [REPOSITORY, REPOSITORY / "pipeline"]
    assert [m for m in modules if not any((place / m).exists() for place in places)] == []


def boxes_and_arrows() -> tuple[dict[str, tuple[int, ...]], set[tuple[str, str]]]:
    """The boxes of the drawing, by the first text in each, and which of them an arrow joins."""
    drawing = (DOCS / "architecture.svg").read_text()
    texts = re.findall(r'<text(?: class="name")? x="(\d+)" y="(\d+)">(.*?)</text>', drawing)
    found = re.findall(
        r'<rect class="(?:part|store)" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', drawing
    )
    boxes = {}
    for x, y, width, height in (tuple(map(int, box)) for box in found):
        first = [t for a, b, t in texts if x < int(a) < x + width and y < int(b) < y + height][0]
        boxes[first] = (x, y, x + width, y + height)
    paths = re.findall(r'<path class="arrow[^"]*" d="M(\d+) (\d+)(?:.*)L(\d+) (\d+)"', drawing)
    ends = [tuple(map(int, path)) for path in paths]
    return boxes, {(at(boxes, a, b), at(boxes, c, d)) for a, b, c, d in ends}


def at(boxes: dict[str, tuple[int, ...]], x: int, y: int) -> str:
    (name,) = [n for n, (a, b, c, d) in boxes.items() if a <= x <= c and b <= y <= d]
    return name


def test_every_box_of_the_drawing_is_joined_to_what_feeds_it():
    boxes, arrows = boxes_and_arrows()
    joined = {name for arrow in arrows for name in arrow}
    assert joined == set(boxes)
    fed_by = {to: start for start, to in arrows}
    # Loss and top-1 are counted from the logits; World holds the heartbeat that the watchdog sees.
    assert fed_by["train/metrics.py"] == "model/network.py"
    assert fed_by["ranks/watchdog.py"] == "ranks/averaging.py"


def test_the_drawing_needs_no_network():
    drawing = (DOCS / "architecture.svg").read_text()
    assert set(re.findall(r"https?://[^\"' ]+", drawing)) == {"http://www.w3.org/2000/svg"}
