"""How a trained network is tested: views, networks, counting, and what is written of it.

protocol (which views) -> view_stream (which images, in which batches) -> ensemble (which networks;
fully_convolutional, true_average) -> counting -> tables, result.
"""
