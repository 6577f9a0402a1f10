"""Codecs: how frozen numbers are kept. One file each; the file name is the name."""
