"""python -m diffode: the command line, as the console script `diffode` and `python cli.py` are it."""

from cli import main

if __name__ == "__main__":
    main()
