"""The command line: `llm-gym list | fetch | train | evaluate | play | score | feedback | benchmark ...`.

Results go to standard output, progress and errors to standard error. A mistake of the user is one line and exit
code 2.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import gymnasium as gym

from llm_gym.cli.arguments import make_parser
from llm_gym.cli.memory import keep_freed_memory
from llm_gym.errors import LLMGymError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; the process's own if None.

    Returns:
        The exit code: 0, 1 if a part of a benchmark failed, 2 for a mistake told in one line, 130 when interrupted.
    """
    keep_freed_memory()
    try:
        arguments = make_parser().parse_args(argv)
        code = arguments.command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader (such as `head`) has seen enough; keep the interpreter from complaining when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (LLMGymError, gym.error.Error) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(_system_error(error))
    return code or 0


def _fail(message: str, code: int = 2) -> int:
    print("llm-gym:", " ".join(message.split()), file=sys.stderr)
    return code


def _system_error(error: OSError) -> str:
    what = error.strerror or str(error) or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}{what}; free some space and run it again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}{what}; choose a place that you may write to"
    return f"{where}{what}; check that path, or the network, and run it again"
