"""Heights, angles and slips of the vertebrae in a mask."""
