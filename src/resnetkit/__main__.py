"""``python -m resnetkit`` is the command ``resnet``."""

from .cli import main

if __name__ == "__main__":
    main()
