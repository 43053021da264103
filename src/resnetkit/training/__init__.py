"""Evidence -> better weights."""
