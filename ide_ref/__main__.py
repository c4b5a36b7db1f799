"""``python -m ide_ref`` is ``ide-ref``."""

import sys


def main() -> int:
    """The command; Ctrl-C while it is only being read, or its options are, ends it without a traceback."""
    try:
        from ide_ref.cli import main as command

        return command()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
