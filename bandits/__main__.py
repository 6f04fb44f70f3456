"""Enter the command: an interrupt while it is loaded costs no traceback."""

import sys


def main() -> None:
    """Load the command and run it."""
    try:
        from bandits import cli
    except KeyboardInterrupt:
        print("modeseek: interrupted", file=sys.stderr)
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
