"""Data sets that are drawn: the demo's and the one of `make paper-mini`."""
