"""resnetkit."""
