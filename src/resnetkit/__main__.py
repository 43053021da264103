"""Run the ``resnet`` command as ``python -m resnetkit``."""

from .cli import main

if __name__ == "__main__":
    main()
