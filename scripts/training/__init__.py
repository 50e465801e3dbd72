"""What a training needs beside MONAI: resuming, faults, curves."""
