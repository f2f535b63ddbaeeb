"""A script that compares formulas by math-verify, one question per line, in a process that can be killed.

A question is {gold, answer}, two texts; the reply true or false. math-verify's own time limits use signals, which
belong to training: they are off here, and `limited` kills this process instead.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading

MEMORY_BYTES = 4 * 2**30
ITEM_SECONDS = 60.0  # after which this process ends by itself, if nobody has killed it


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.ERROR)  # "timeouts are disabled", for every item
    latex = LatexExtractionConfig(normalization_config=NormalizationConfig(units=True), boxed_match_priority=0)
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what the libraries print is no reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        end = threading.Timer(ITEM_SECONDS, os._exit, (1,))
        end.daemon = True
        end.start()
        question = json.loads(line)
        gold, answer = (
            parse(f"\\boxed{{{question[name]}}}", [latex, ExprExtractionConfig()], parsing_timeout=None)
            for name in ("gold", "answer")
        )
        is_equal = bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)
        end.cancel()
        print(json.dumps(bool(is_equal)), file=replies, flush=True)


if __name__ == "__main__":
    main()
