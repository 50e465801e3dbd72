"""What every command shares: errors, checks before a run, whole files, several processes."""
