"""Muon against its equation, torch's Muon, and AdamW."""

import pytest
import torch
from torch import nn

from llmtrain.config.sections import OptimConfig
from llmtrain.protocols import MatrixLayout
from llmtrain.train.muon import Muon, orthogonalise
from llmtrain.train.optim import make_optimizer


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))))


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


def one_update(weight: torch.Tensor, grad: torch.Tensor, layout: MatrixLayout) -> torch.Tensor:
    """What two steps of Muon add to a weight."""
    trained = nn.Parameter(weight.clone())
    config = OptimConfig(name="muon", muon_lr=0.1, weight_decay=0.1)
    optimizer = make_optimizer({"hidden": [trained]}, config, layouts={trained: layout})
    for factor in (1.0, -2.0):
        trained.grad = grad + factor * weight
        optimizer.step()
    return trained.detach() - weight


@pytest.mark.parametrize("shape", [(12, 4), (4, 12), (6, 6)])
def test_a_transposed_matrix_gets_the_update_of_the_matrix(shape: tuple[int, int]) -> None:
    weight, grad = torch.randn(2, *shape)
    plain = one_update(weight, grad, MatrixLayout())
    assert torch.equal(one_update(weight.T.contiguous(), grad.T.contiguous(), MatrixLayout(transposed=True)).T, plain)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("groups", "parts"), [(1, (6, 6, 6)), (1, (6, 2, 2)), (3, (2, 2, 2)), (2, (6, 1, 1)), (5, (1, 1))]
)
def test_matrices_side_by_side_get_the_updates_of_separate_ones(
    groups: int, parts: tuple[int, ...], transposed: bool
) -> None:
    torch.manual_seed(0)
    fused = torch.randn(2, groups, sum(parts), 5)  # weight and gradient
    separate = [part.flatten(1, 2) for part in fused.split(parts, dim=2)]
    updates = [one_update(weight, grad, MatrixLayout()).unflatten(0, (groups, -1)) for weight, grad in separate]
    wanted = torch.cat(updates, dim=1).flatten(0, 1)
    weight, grad = (half.T.contiguous() if transposed else half for half in fused.flatten(1, 2))
    found = one_update(weight, grad, MatrixLayout(transposed, groups=groups, parts=parts))
    torch.testing.assert_close(found.T if transposed else found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_matrices_get_the_updates_of_separate_ones(transposed: bool) -> None:
    torch.manual_seed(0)
    weight, grad = torch.randn(2, 3, 8, 5)
    wanted = torch.stack([one_update(w, g, MatrixLayout(transposed)) for w, g in zip(weight, grad, strict=True)])
    torch.testing.assert_close(one_update(weight, grad, MatrixLayout(transposed, stacked=True)), wanted)
