"""The paper, measured on the reader's own machine: why residual networks work."""
