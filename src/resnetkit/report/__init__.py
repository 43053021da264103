"""Evidence -> something to look at."""
