"""Run the command ``resnet`` as ``python -m resnetkit``."""

from .cli import main

if __name__ == "__main__":
    main()
