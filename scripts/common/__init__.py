"""Code shared by all commands: errors, checks before a run, whole files, several processes."""
