"""Commands of tools.yaml that have no folder of their own, and what draws the batch of `show_batch` in train.yaml."""
