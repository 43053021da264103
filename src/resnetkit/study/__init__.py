"""The paper, measured: why residual networks work, shown on the reader's own machine."""
