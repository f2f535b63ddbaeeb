"""Which features an engine refuses, and in which words."""

from __future__ import annotations

import pytest

from llmtrain.train.engines.table import ENGINES, FEATURES, NEED_CUDA, check_features

ON_CPU = {"precision": "fp32", "device_type": "cpu"}


def test_a_feature_that_the_engine_lacks_is_refused_by_name() -> None:
    check_features({name: name not in NEED_CUDA for name in FEATURES}, engine="single", **ON_CPU)
    check_features(dict.fromkeys(FEATURES, False), engine="zero3", **ON_CPU)
    with pytest.raises(ValueError, match=r"ema does not work under zero3: .*; use single or ddp or zero1 or zero2"):
        check_features({"ema": True, "muon": False}, engine="zero3", **ON_CPU)


@pytest.mark.parametrize("feature", NEED_CUDA)
def test_what_needs_an_nvidia_gpu_is_refused_on_a_cpu(feature: str) -> None:
    with pytest.raises(ValueError, match=f"{feature} needs an NVIDIA GPU, this is cpu"):
        check_features({feature: True}, engine="single", **ON_CPU)


def test_ema_under_zero_needs_fp32() -> None:
    check_features({"ema": True}, engine="zero2", **ON_CPU)
    with pytest.raises(ValueError, match=r"ema does not work under zero2: .* are bf16 there, .*; use single or ddp$"):
        check_features({"ema": True}, engine="zero2", precision="bf16", device_type="cpu")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_supports_or_refuses_each_feature_by_name(engine: str) -> None:
    row = ENGINES[engine]
    assert row.supports | {*row.refuses, *row.refuses_unless_fp32} == set(FEATURES)
    assert not row.supports & {*row.refuses, *row.refuses_unless_fp32}
