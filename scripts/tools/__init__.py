"""The commands of tools.yaml, but for phantoms and the benchmark."""
