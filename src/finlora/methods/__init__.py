"""Methods: how a frozen base is adapted. One file each; the file name is the name."""
