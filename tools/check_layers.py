"""Run import-linter on the contracts of pyproject.toml: `python tools/check_layers.py`.

The console script `lint-imports` would do, but console scripts break in a folder whose name
holds a space; this calls the same function.
"""

import sys

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def main() -> int:
    """Return 0 where every contract is kept, else 1; import-linter prints what is broken."""
    status = lint_imports(cache_dir=None, no_cache=True, no_logo=True)
    return 0 if status == EXIT_STATUS_SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main())
