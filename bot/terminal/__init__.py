"""What a person at a terminal or a log reads and writes: streams, progress, events as lines, options and their spellings."""
