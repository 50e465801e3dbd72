"""From level logits to a clean mask: pieces, their names, and the grid of the scan."""
