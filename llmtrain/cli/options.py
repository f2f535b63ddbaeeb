"""Options that several verbs take."""

from __future__ import annotations

import argparse


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How answers are drawn."""
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.95, help="share of the likeliest tokens (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")


def check_sampling(arguments: argparse.Namespace) -> None:
    """Raises ValueError for an option out of its range."""
    ranges = {
        "--max-new-tokens": (arguments.max_new_tokens, arguments.max_new_tokens >= 1, "at least 1"),
        "--temperature": (arguments.temperature, arguments.temperature >= 0, "0 or more"),
        "--top-p": (arguments.top_p, 0 < arguments.top_p <= 1, "above 0 and at most 1"),
    }
    for name, (value, holds, allowed) in ranges.items():
        if not holds:
            raise ValueError(f"{name}={value}: must be {allowed}")
