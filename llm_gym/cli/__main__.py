"""`python -m llm_gym.cli`."""

import sys

from llm_gym.cli import main

sys.exit(main())
