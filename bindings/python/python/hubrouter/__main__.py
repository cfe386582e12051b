"""The command: `python -m hubrouter`, and the script `hubrouter`."""

import os
import signal
import sys
from pathlib import Path

from hubrouter import _native


def main() -> int:
    """Runs the command with the arguments of this process and returns its exit code."""
    # The command has its own signal handlers, or none. Python's would only be heard at its end.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Where the command looks for the weights; a folder that the user names counts first.
    if not os.environ.get("HUBROUTER_HOME"):
        os.environ["HUBROUTER_HOME"] = str(Path(__file__).resolve().parent)
    return _native.run_command(["hubrouter", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
