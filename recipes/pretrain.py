"""`python recipes/pretrain.py CONFIG.yaml [key=value ...]`: the recipe is llmtrain/recipes/pretrain.py."""

from llmtrain.config.recipes import PretrainConfig
from llmtrain.recipes.command import run_recipe
from llmtrain.recipes.pretrain import main

if __name__ == "__main__":
    run_recipe(PretrainConfig, main)
