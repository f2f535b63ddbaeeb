"""What is minimised: objectives (counts, loss), and the pure loss functions that they are made of.

`next_token` is pretraining and SFT, `reward` the reward model, `preference` DPO and variants, `kto` KTO, `policy` PPO
and variants; `preference_losses`, `policy_losses` and `advantages` hold their functions.
"""
