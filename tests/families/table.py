"""Every family through every step -> tests/families/results.json and docs/families.md.

python tests/families/table.py                  # all of them, about half an hour on one core
python tests/families/table.py llama qwen3_moe  # these again; the others stay as they were
python tests/families/table.py --write          # only docs/families.md, from results.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULTS, DOCS = Path(__file__).with_name("results.json"), ROOT / "docs" / "families.md"
RIGHT = ("exact", "slower")
COLUMNS = ("pretrain", "sft", "lora", "reward", "ppo")

Results = dict[str, Any]
"""`transformers`: the version; `families`: name -> step -> [verdict, detail]."""


def run(names: list[str]) -> None:
    """Run families, each result kept as soon as it is there."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from families.steps import run_family
    from families.tiny import VARIANTS, model_types

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    kept: Results = read() if RESULTS.exists() else {"families": {}}
    kept["transformers"] = transformers.__version__
    with tempfile.TemporaryDirectory() as place:
        os.environ["LLMTRAIN_CACHE"] = f"{place}/cache"
        known = [*model_types(), *VARIANTS]
        if unknown := [name for name in names if name not in known]:
            sys.exit(f"{unknown[0]}: no family of that name; there are {', '.join(known)}")
        for name in names or known:
            outcome = run_family(name, Path(place) / name)
            kept["families"][name] = {step: [each.verdict, each.detail] for step, each in outcome.items()}
            print(name, *(f"{step}: {each}" for step, each in outcome.items()), sep="\n    ", flush=True)
            lines = ",\n".join(f'"{each}": {json.dumps(kept["families"][each])}' for each in sorted(kept["families"]))
            RESULTS.write_text(f'{{"transformers": "{kept["transformers"]}", "families": {{\n{lines}\n}}}}\n')


def read() -> Results:
    """The results that are kept."""
    found: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def page(results: Results) -> str:
    """The page of the results."""
    families = results["families"]
    built = {name: steps for name, steps in families.items() if "built" not in steps}
    right = [name for name, steps in built.items() if all(verdict in RIGHT for verdict, _ in steps.values())]
    counts = Counter(verdict for steps in built.values() for verdict, _ in steps.values())
    unbuilt = {name: steps["built"][1] for name, steps in families.items() if "built" in steps}
    return "\n".join(
        [
            HEAD.format(
                transformers=results["transformers"],
                num_built=len(built),
                num_right=len(right),
                num_wrong=counts["WRONG"],
                num_crashed=counts["crash"],
            ),
            f"| family | {' | '.join(COLUMNS)} | how, or why not |",
            f"|---|{'---|' * (len(COLUMNS) + 1)}",
            *(_row(name, built[name]) for name in sorted(built)),
            "",
            "## Not built\n",
            "These need more than a tiny configuration, or a library that is not installed here.\n",
            *(f"- `{name}`: {_cell(reason)}" for name, reason in sorted(unbuilt.items())),
            "",
            *_asked(families),
            "",
        ]
    )


HEAD = """# Families

Which model types of `transformers` {transformers} train here, and how. Made by `python tests/families/table.py`; do not
edit.

Each family is a tiny random model. Each step is a run of the real recipe: two optimizer steps on one pack of eight
documents of 2 to 40 tokens, longer and shorter than the model's windows of 8. What the run logs for its second step is
compared with the folder that `llmtrain export --step 1` wrote, in plain `transformers` (or `peft`), one document at a
time: loss to 2e-5, norm of the gradient to 2e-3, relative. PPO compares the logprobs of generation with those of
training, and loads the exported policy.

- **exact**: packs, computed as one by one. Layers that are no attention run per group of documents of about one length.
- **slower**: also right, documents as rows of a batch.
- **refused**: one line says why, exit code 2.

Of {num_built} families and variants {num_right} are right in every step; {num_wrong} steps are wrong, {num_crashed}
crash. A variant, such as `phi3_longrope`, turns on what the default configuration leaves off.
"""


def _row(name: str, steps: dict[str, list[str]]) -> str:
    verdicts = [
        f"**{steps[each][0]}**" if steps[each][0] not in (*RIGHT, "refused") else steps[each][0] for each in COLUMNS
    ]
    notes: dict[str, list[str]] = {}
    for each in COLUMNS:
        verdict, detail = steps[each]
        reason = "; ".join(part for part in detail.split("; ") if not part.startswith(("loss ", "logprobs ")))
        note = detail if verdict in ("WRONG", "crash") else reason
        if note:
            notes.setdefault(note, []).append(each)
    said = [note if len(steps_of) > 2 else f"{', '.join(steps_of)}: {note}" for note, steps_of in notes.items()]
    return f"| {name} | {' | '.join(verdicts)} | {_cell('; '.join(said))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")[:300]


def _asked(families: dict[str, Any]) -> list[str]:
    from families.asked import ASKED, COUNTED, NO_TEXT, REMOTE

    def runs(name: str) -> bool:
        steps = families.get(name, {"built": ["not built", ""]})
        return all(steps.get(each, ["", ""])[0] in RIGHT for each in ("sft", "lora"))

    totals = [sum(counts[i] for counts in ASKED.values()) for i in range(2)]
    with_text = [totals[i] - ASKED[NO_TEXT][i] for i in range(2)]
    trained = [sum(counts[i] for name, counts in ASKED.items() if runs(name)) for i in range(2)]
    sources = "; ".join(f"{name} of {date} ({commit})" for name, (date, commit) in COUNTED.items())
    return [
        "## What people fine-tune\n",
        f"How often the examples of two projects name each type: {sources}. A type counts as trained if SFT and LoRA "
        "are right above.\n",
        *(
            f"- {kind}: {trained[i]} of {with_text[i]} with a text model ({trained[i] / with_text[i]:.0%}); "
            f"{totals[i]} in all"
            for i, kind in enumerate(("notebooks", "configurations"))
        ),
        f"- not trained: {', '.join(f'{name} ({a}, {b})' for name, (a, b) in ASKED.items() if not runs(name))}",
        f"\n`{REMOTE}`: trains with `model.trust_remote_code` if it is computed rightly; none of it is tried here.",
    ]


if __name__ == "__main__":
    if "--write" not in sys.argv:
        run(sys.argv[1:])
    DOCS.write_text(page(read()), encoding="utf-8")
