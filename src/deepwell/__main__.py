"""``python -m deepwell``: the command line, for launchers that start modules: ``torchrun -m deepwell train``."""

from deepwell.cli.main import main

if __name__ == "__main__":
    main()
