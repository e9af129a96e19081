"""The two pages hold the same and nothing from outside."""

import re

from PIL import Image

from pipeline.report.pages import (
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
    write_pages,
)

NASTY = 'a <b>|*x* & "q" `c` [l](u) _e_ in_name'
BLOCKS = [Heading("Title", 1), Paragraph(NASTY), Table(("n", "error"), [(NASTY, "1.0")], (1,))]


def test_html_escapes_what_it_shows(tmp_path):
    page = to_html([*BLOCKS, Heading(NASTY)], tmp_path)
    assert "<b>" not in page
    assert page.count("a &lt;b&gt;|*x* &amp; &quot;q&quot;") == 3
    assert "<title>Title</title>" in page
    assert '<td class="number">1.0</td>' in page


def test_markdown_escapes_what_it_shows():
    text = to_markdown(BLOCKS)
    assert r"a \<b\>\|\*x\*" in text
    assert r"\`c\` \[l\](u) \_e\_ in_name" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[1] == "| --- | ---: |"
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_a_name_of_any_bytes_is_on_both_pages_and_moves_no_cursor(tmp_path):
    name = "caf\udce9\n<b>\x1b[2J"
    write_pages(tmp_path, [Heading(name), Paragraph(name), Table(("n",), [(name,)])])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count(r"caf\xe9\n&lt;b&gt;\x1b[2J") == 3
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count(r"caf\\xe9\\n\<b\>\\x1b\[2J") == 3


def test_a_picture_is_inside_the_html_and_next_to_the_markdown(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "curve.png")
    picture = Picture("curve.png", "A < B", 'the "curve"')
    page = to_html([picture], tmp_path)
    assert 'width="60" alt="the &quot;curve&quot;" src="data:image/png;base64,iVBOR' in page
    assert "A &lt; B" in page
    assert "(curve.png)\n\nA \\< B" in to_markdown([picture])


def test_html_needs_nothing_from_outside(tmp_path):
    page = to_html(BLOCKS, tmp_path)
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
