"""`python -m llmtrain VERB`, the same as `llmtrain VERB`."""

import os
import signal

if "RANK" in os.environ and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the recipe handles it, no traceback of imports per process

from llmtrain.cli.main import main

main()
