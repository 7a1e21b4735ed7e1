"""Run the command line as `python -m fewstep`."""

import sys

from fewstep.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
