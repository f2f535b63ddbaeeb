"""A script that searches texts for patterns, one question per line, in a process that can be killed.

A question is {pattern, text, whole}; the reply true or false. A search holds Python's lock, so that no thread of this
process could end it.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys

MEMORY_BYTES = 4 * 2**30
ITEM_SECONDS = 60  # after which this process ends by itself, if nobody has killed it


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print("ready", flush=True)
    for line in sys.stdin:
        signal.alarm(ITEM_SECONDS)
        question = json.loads(line)
        compiled = re.compile(question["pattern"])
        match = compiled.fullmatch if question["whole"] else compiled.search
        found = match(question["text"]) is not None
        signal.alarm(0)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
