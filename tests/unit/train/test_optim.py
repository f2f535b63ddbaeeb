"""Optimizers against references; what acts on weights besides."""

import pytest
import torch
from torch import nn

from llmtrain.config.sections import OptimConfig
from llmtrain.train.optim import Ema, Muon, make_optimizer, make_state, orthogonalise, param_groups, shrink_l1


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


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    batch = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(batch))
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(batch, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalise(batch).flatten(1), (left @ right).flatten(1)).min() > 0.95
    )


def test_batched_muon_equals_one_matrix_at_a_time() -> None:
    together, alone = [parameter(6, 6), parameter(6, 6), parameter(6, 3)], None
    group = {"lr": 0.02, "weight_decay": 0.1, "decayed": True, "muon": True}
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    one = Muon([{"params": together, **group}], betas=(0.9, 0.95), eps=1e-8, momentum=0.95)
    several = [Muon([{"params": [p], **group}], betas=(0.9, 0.95), eps=1e-8, momentum=0.95) for p in alone]
    for step in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(step))
            b.grad = a.grad.clone()
        one.step()
        for optimizer in several:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_muon_equals_torch_muon_but_for_its_precision() -> None:
    ours, theirs = parameter(16, 8), parameter(16, 8)
    group = {"params": [ours], "lr": 0.02, "weight_decay": 0.1, "decayed": True, "muon": True}
    optimizer = Muon([group], betas=(0.9, 0.95), eps=1e-8, momentum=0.95)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    for step in range(3):
        ours.grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # bf16 against fp32 over steps of 0.02


def test_muon_runs_adamw_on_the_rest() -> None:
    ours, theirs = parameter(5, 3), parameter(5, 3)
    settings = OptimConfig(name="muon", lr=1e-2, weight_decay=0.0)
    optimizer = make_optimizer({"embedding": [ours]}, settings)
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        ours.grad = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_l1_shrinks_decayed_weights_to_zero_and_leaves_others() -> None:
    weight, norm = nn.Parameter(torch.tensor([[0.5, -0.5, 0.01]])), nn.Parameter(torch.tensor([0.01]))
    optimizer = make_optimizer({"hidden": [weight], "vector": [norm]}, OptimConfig(lr=0.1))
    shrink_l1(optimizer, l1=1.0)
    torch.testing.assert_close(weight.data, torch.tensor([[0.4, -0.4, 0.0]]))
    assert norm.item() == pytest.approx(0.01)


def test_ema_follows_its_equation_and_swaps_exactly() -> None:
    model = nn.Linear(2, 2, bias=False)
    ema = Ema(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            model.weight.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        ema.update(step)
    torch.testing.assert_close(ema.average["weight"], expected)
    before, average = model.weight.detach().clone(), ema.average["weight"].clone()
    ema.swap()
    assert torch.equal(model.weight, average)
    ema.swap()
    assert torch.equal(model.weight, before) and torch.equal(ema.average["weight"], average)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_that_is_made_beforehand_changes_no_step(name: str) -> None:
    ends = []
    for beforehand in (False, True):
        torch.manual_seed(0)
        weights = {"hidden": [parameter(4, 3)], "vector": [parameter(5)]}
        optimizer = make_optimizer(weights, OptimConfig(name=name, lr=0.1))
        if beforehand:
            make_state(optimizer)
            assert set(optimizer.state) == {weight for group in weights.values() for weight in group}
        made = {id(tensor) for state in optimizer.state.values() for tensor in state.values()}
        for _ in range(3):
            for group in weights.values():
                for weight in group:
                    weight.grad = torch.randn_like(weight)
            optimizer.step()
        kept = {id(tensor) for state in optimizer.state.values() for tensor in state.values()}
        assert made <= kept and bool(made) == beforehand
        ends.append([weight.detach().clone() for group in weights.values() for weight in group])
    for early, late in zip(*ends, strict=True):
        torch.testing.assert_close(early, late, rtol=0, atol=0)
