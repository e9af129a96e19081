"""The containers that images may lie in; each is walked once, when a data set is indexed.

A walk finds where every image begins, how long it is and what class it is of, by reading the
container's own headers and the image's first bytes only. From then on an image is a byte range.
"""
