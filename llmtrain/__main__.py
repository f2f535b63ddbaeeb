"""`python -m llmtrain VERB`, the same as `llmtrain VERB`."""

from llmtrain.cli.main import main

main()
