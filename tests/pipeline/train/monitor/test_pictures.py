"""Pictures: their size, what is in them, and names that are too long."""

import numpy as np

from pipeline.train.monitor.pictures import caption, captioned, class_bars, grid


def test_a_grid_is_the_largest_square():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 7, 6, 3), np.uint8)
    found = grid(images)
    assert found.shape == (14, 12, 3)
    assert [found[0, 0, 0], found[0, 6, 0], found[7, 0, 0], found[7, 6, 0]] == [0, 1, 2, 3]


def test_mistakes_stand_three_in_a_row_over_their_captions():
    images = np.full((5, 32, 32, 3), 40, np.uint8)
    page = captioned(images, [caption("cat", "dog", 0.97)] * 5)
    assert page.shape == (2 * (114 + 34), 350, 3)
    assert (page[10, 10] == 40).all()
    assert (page[114 + 34 + 10, 2 * 118 + 10] == 255).all()  # the second row has two images
    assert (page[114:148, :114] < 255).any()


def test_captions_name_both_classes_and_are_cut_to_what_fits():
    assert caption("cat", "dog", 0.973) == ("is cat", "not dog 97%")
    true, guess = caption("a very long name of a class", "another very long name", 1.0)
    assert true.startswith("is a very") and guess.endswith("\N{HORIZONTAL ELLIPSIS} 100%")
    assert max(len(true), len(guess)) <= 18


def test_classes_are_bars_from_the_worst_to_the_best_and_empty_ones_are_left_out():
    page = class_bars(["a", "b", "c"], [1, 0, 2], [2, 0, 2])
    assert page.shape == (2 * 18 + 8, 350, 3)
    green = (page == (0, 158, 115)).all(-1)
    assert [int(green[12 + 18 * row].sum()) for row in range(2)] == [56, 111]


def test_of_many_classes_the_ends_are_shown():
    count = 1000
    names = [f"class {number}" for number in range(count)]
    page = class_bars(names, list(range(count)), [count] * count)
    assert page.shape[0] == 21 * 18 + 8
