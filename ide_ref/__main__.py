"""``python -m ide_ref`` is ``ide-ref``."""

import sys

from ide_ref.cli import main

sys.exit(main())
