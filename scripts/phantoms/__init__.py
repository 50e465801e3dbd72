"""Draw synthetic spines with exact labels."""
