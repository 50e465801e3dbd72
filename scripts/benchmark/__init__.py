"""Speed beside other ways, each measured in a process of its own."""
