"""What trains beside a frozen base: LoRA and DoRA, rows of new tokens, a base in 4 bits, weights shared by models."""
