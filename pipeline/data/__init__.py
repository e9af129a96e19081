"""The data path: which image is at which position, how it is cropped, decoded by DALI."""
