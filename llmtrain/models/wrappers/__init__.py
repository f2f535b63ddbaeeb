"""The modules that train: a model with its loss, with a value head or with a score, in one call per microbatch.

`causal_lm`, `reward_model` and `actor_critic` are the wrappers; `checks` compares a model with itself before it is
wrapped, `prepare` does that for a run's device, `roles` builds all models of a policy run, `critic_init` starts a
critic as a reward model, `neftune` adds noise.
"""
