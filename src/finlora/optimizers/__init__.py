"""Optimisers: what turns gradients into steps. One file each; the file name is the name."""
