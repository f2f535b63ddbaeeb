"""Parameter groups, state made beforehand, and the L1 step."""

import pytest
import torch
from torch import nn

from llmtrain.config.sections import OptimConfig
from llmtrain.train.optim import make_optimizer, make_state, param_groups, shrink_l1


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))))


def test_only_hidden_matrices_and_an_untied_head_are_decayed() -> None:
    roles = {role: [parameter(4, 4)] for role in ("hidden", "head", "embedding", "vector")}
    decay = {i: group["weight_decay"] for i, group in enumerate(param_groups(roles, OptimConfig(weight_decay=0.3)))}
    assert decay == {0: 0.3, 1: 0.3, 2: 0.0, 3: 0.0}


def test_muon_takes_only_hidden_matrices() -> None:
    roles = {role: [parameter(4, 4)] for role in ("hidden", "head", "embedding", "vector")}
    groups = param_groups(roles, OptimConfig(name="muon", lr=1e-3, muon_lr=0.02))
    assert [(group["muon"], group["lr"]) for group in groups] == [
        (True, 0.02),
        (False, 1e-3),
        (False, 1e-3),
        (False, 1e-3),
    ]


def test_l1_shrinks_decayed_weights_to_zero_and_leaves_others() -> None:
    weight, norm = nn.Parameter(torch.tensor([[0.5, -0.5, 0.01]])), nn.Parameter(torch.tensor([0.01]))
    optimizer = make_optimizer({"hidden": [weight], "vector": [norm]}, OptimConfig(lr=0.1))
    shrink_l1(optimizer, l1=1.0)
    torch.testing.assert_close(weight.data, torch.tensor([[0.4, -0.4, 0.0]]))
    assert norm.item() == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw8bit"])
def test_state_that_is_made_beforehand_changes_no_step(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: make test-quantize")
    ends = []
    for beforehand in (False, True):
        torch.manual_seed(0)
        weights = {"hidden": [parameter(4, 3)], "vector": [parameter(5)]}
        optimizer = make_optimizer(weights, OptimConfig(name=name, lr=0.1))
        if beforehand:
            make_state(optimizer)
            assert set(optimizer.state) == {weight for group in weights.values() for weight in group}
        made = {
            id(tensor) for state in optimizer.state.values() for tensor in state.values() if torch.is_tensor(tensor)
        }
        for _ in range(3):
            for group in weights.values():
                for weight in group:
                    weight.grad = torch.randn_like(weight)
            optimizer.step()
        kept = {
            id(tensor) for state in optimizer.state.values() for tensor in state.values() if torch.is_tensor(tensor)
        }
        assert made <= kept and bool(made) == beforehand
        ends.append([weight.detach().clone() for group in weights.values() for weight in group])
    for early, late in zip(*ends, strict=True):
        torch.testing.assert_close(early, late, rtol=0, atol=0)
