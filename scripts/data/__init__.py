"""Read and check scans, labels and datalists, and draw the random samples of a training."""
