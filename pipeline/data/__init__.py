"""Which image, at which position, cut how, executed by DALI."""
