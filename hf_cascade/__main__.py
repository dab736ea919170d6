"""`python -m hf_cascade`: the same as `hf-cascade`."""

import sys

from hf_cascade.cli import main

if __name__ == "__main__":
    sys.exit(main())
