"""`python -m kquant_cli` is `kquant`."""

from kquant_cli.cli import main

if __name__ == "__main__":
    main()
