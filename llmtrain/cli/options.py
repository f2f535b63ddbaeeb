"""Options that several verbs take."""

from __future__ import annotations

import argparse


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How answers are drawn."""
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: 512)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.95, help="share of the likeliest tokens (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
