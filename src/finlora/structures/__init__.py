"""Structures: how trainable numbers make a linear map. One file each; the file name is the name."""
