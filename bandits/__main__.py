"""Let ``python -m bandits`` be the command."""

from bandits.cli import main

if __name__ == "__main__":
    main()
