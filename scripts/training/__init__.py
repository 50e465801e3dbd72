"""Add to MONAI's training: resuming, faults, tracking."""
