"""Turn level logits into a clean mask: find the pieces, name them, and return to the grid of the scan."""
