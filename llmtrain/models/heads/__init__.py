"""What reads hidden states: the output projection, its loss and its logprobs in chunks, the scalar head."""
