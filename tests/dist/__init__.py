"""What make dist builds: the files themselves, and what they do where they are installed."""
