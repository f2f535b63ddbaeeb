"""The page of `llmtrain data --report`: what is in the data, as findings first, each with its evidence."""
