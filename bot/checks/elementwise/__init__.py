"""Every element of the merged weights, compared with what it must be."""
