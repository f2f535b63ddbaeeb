"""Checkpoints: what is saved comes back to the bit, and nothing that goes wrong loses the last good one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import fork, run_script
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from llmtrain.train import checkpoint_writer as writer_module
from llmtrain.train.checkpoint import Checkpoint, CheckpointError, Checkpoints, find_checkpoint
from llmtrain.train.runtime import Runtime


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(precision="fp32", max_grad_norm=None, seed=0, timeout_minutes=1)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.fixture
def optimizer(model: nn.Module) -> Optimizer:
    optimizer = AdamW([{"params": [p], "lr": 0.1} for p in model.parameters()])
    train(model, optimizer, 3)
    return optimizer


@pytest.fixture
def checkpoints(tmp_path: Path, runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> Checkpoints:
    prepared = runtime.prepare(model, optimizer)
    assert prepared[0] is model
    return Checkpoints(tmp_path / "checkpoints", keep=2, keep_best=True)


def train(model: nn.Module, optimizer: Optimizer, num_steps: int) -> None:
    for step in range(num_steps):
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def snapshot(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    named = runtime.named_state()
    return {f"{name}/{key}": value.clone() for name, tensors in named for key, value in tensors.items()}


def test_weights_buffers_and_optimizer_state_come_back_to_the_bit(checkpoints, runtime, model, optimizer) -> None:
    checkpoints.save(runtime, 3, {}, extra={})
    saved = snapshot(runtime, model, optimizer)
    train(model, optimizer, 2)
    wanted = snapshot(runtime, model, optimizer)

    runtime.load_named_state(checkpoints.latest(runtime).read_parameter)

    restored = snapshot(runtime, model, optimizer)
    assert restored.keys() == saved.keys() and "1.running_mean/param" in saved and "0.weight/exp_avg_sq" in saved
    assert all(torch.equal(restored[key], saved[key]) and restored[key].dtype == saved[key].dtype for key in saved)
    train(model, optimizer, 2)
    went_on = snapshot(runtime, model, optimizer)
    assert all(torch.equal(went_on[key], wanted[key]) for key in wanted)


def test_a_checkpoint_of_before_the_first_step_takes_the_optimizer_state_back_to_zero(runtime, tmp_path) -> None:
    model = nn.Linear(2, 2)
    _, optimizer = runtime.prepare(model, AdamW(model.parameters()))
    runtime.make_state()
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=False)
    checkpoints.save(runtime, 0, {}, extra={})
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert all(tensor.any() for state in optimizer.state.values() for tensor in state.values())

    runtime.load_named_state(checkpoints.latest(runtime).read_parameter)

    assert len(optimizer.state) == 2
    assert not any(tensor.any() for state in optimizer.state.values() for tensor in state.values())


@pytest.mark.parametrize("lost", [["0.weight"], ["2.bias", "1.weight"], None], ids=["one", "two", "all"])
def test_a_checkpoint_that_would_lose_optimizer_state_is_not_written(
    checkpoints, runtime, model, optimizer, lost
) -> None:
    checkpoints.save(runtime, 3, {}, extra={})
    for name, parameter in model.named_parameters():
        if lost is None or name in lost:
            del optimizer.state[parameter]
    with pytest.raises(ValueError, match=f"the optimizer has no state of {min(lost) if lost else '0.bias'}"):
        checkpoints.save(runtime, 4, {}, extra={})
    assert checkpoints.latest(runtime).step == 3


@pytest.mark.parametrize("lost", [["0.weight"], ["2.bias"], None], ids=["first", "last", "all"])
def test_a_checkpoint_that_lost_optimizer_state_is_not_continued(checkpoints, runtime, lost) -> None:
    checkpoint = Checkpoint(checkpoints.save(runtime, 3, {}, extra={}))

    def read(name: str) -> dict[str, Tensor]:
        tensors = checkpoint.read_parameter(name)
        return {"param": tensors["param"]} if lost is None or name in lost else tensors

    with pytest.raises(ValueError, match=f"no optimizer state of {lost[0] if lost else '0.weight'}, which is trained"):
        runtime.load_named_state(read)


def test_a_parameter_that_never_got_a_gradient_is_saved_and_continued(runtime, tmp_path) -> None:
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    _, optimizer = runtime.prepare(model, AdamW(model.parameters()))
    runtime.make_state()
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=False)
    checkpoints.save(runtime, 1, {}, extra={})
    saved = snapshot(runtime, model, optimizer)
    runtime.load_named_state(checkpoints.latest(runtime).read_parameter)
    restored = snapshot(runtime, model, optimizer)
    assert all(torch.equal(restored[key], saved[key]) for key in saved) and not saved["1.weight/step"]


def test_state_keeps_plain_values_and_tensors_at_any_depth(checkpoints, runtime, model, optimizer) -> None:
    base = torch.arange(6, dtype=torch.int64)
    state = {
        "step": 7,
        "best_loss": float("inf"),
        "third": 1 / 3,
        "none": None,
        "source": {"cursor": [1, {"experience": base[:3]}], "flags": torch.tensor([True, False]), "tail": base[2:]},
    }
    checkpoints.save(runtime, 1, state, extra={})

    read = checkpoints.latest(runtime).state

    assert {key: read[key] for key in ("step", "best_loss", "third", "none")} == {
        key: state[key] for key in ("step", "best_loss", "third", "none")
    }
    assert torch.equal(read["source"]["cursor"][1]["experience"], base[:3])
    assert torch.equal(read["source"]["tail"], base[2:])
    assert read["source"]["flags"].dtype == torch.bool


def test_a_state_that_json_would_change_is_refused(checkpoints, runtime, model, optimizer) -> None:
    with pytest.raises(TypeError, match=r"state source: keys must be strings"):
        checkpoints.save(runtime, 1, {"source": {3: "x"}}, extra={})
    with pytest.raises(TypeError, match=r"state a\.0: set"):
        checkpoints.save(runtime, 1, {"a": [{1}]}, extra={})
    assert checkpoints.latest(runtime) is None


def test_further_kinds_are_read_by_name(checkpoints, runtime, model, optimizer) -> None:
    ema = {name: p.detach() * 2 for name, p in model.named_parameters()}
    checkpoints.save(runtime, 1, {}, extra={"ema": ema})

    latest = checkpoints.latest(runtime)

    assert latest.kinds == ["model", "optimizer", "ema"]
    assert all(torch.equal(tensor, ema[name]) for name, tensor in latest.read_all("ema").items())
    assert latest.names("ema") == list(ema)


def test_large_states_are_written_in_pieces(checkpoints, runtime, model, optimizer, monkeypatch) -> None:
    monkeypatch.setattr(writer_module, "PIECE_BYTES", 100)
    path = checkpoints.save(runtime, 1, {}, extra={})
    assert len(list(path.glob("model-*.safetensors"))) > 2
    saved = snapshot(runtime, model, optimizer)
    read = {name: checkpoints.latest(runtime).read("model", name) for name in ("0.weight", "2.bias")}
    assert all(torch.equal(read[name], saved[f"{name}/param"]) for name in read)


def test_a_first_tensor_larger_than_a_piece_leaves_no_empty_file(
    checkpoints, runtime, model, optimizer, monkeypatch
) -> None:
    monkeypatch.setattr(writer_module, "PIECE_BYTES", 1)
    path = checkpoints.save(runtime, 1, {}, extra={})
    manifest = json.loads((path / "manifest.json").read_text())
    holders = {file for tensors in manifest["tensors"].values() for file in tensors.values()}
    assert {file.name for file in path.glob("*.safetensors")} == holders


def test_the_newest_and_the_best_are_kept(checkpoints, runtime, model, optimizer) -> None:
    for step, best in [(1, True), (2, True), (3, False), (4, False), (5, False)]:
        checkpoints.save(runtime, step, {}, extra={}, best=best)
    assert steps(checkpoints) == [2, 4, 5]
    assert checkpoints.latest(runtime).step == 5
    assert checkpoints.best(runtime).step == 2


def test_the_best_may_be_among_the_newest(checkpoints, runtime, model, optimizer) -> None:
    for step, best in [(1, False), (2, True), (3, False)]:
        checkpoints.save(runtime, step, {}, extra={}, best=best)
    assert steps(checkpoints) == [2, 3]


def test_no_checkpoint_is_none(checkpoints, runtime, model, optimizer) -> None:
    assert checkpoints.latest(runtime) is None
    checkpoints.save(runtime, 1, {}, extra={})
    assert checkpoints.best(runtime) is None


def truncate(path: Path) -> None:
    file = path / "optimizer-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    file = path / "model-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def remove_a_file(path: Path) -> None:
    (path / "state.json").unlink()


def edit_the_state(path: Path) -> None:
    file = path / "state.json"
    file.write_text(file.read_text().replace("20", "30"))


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove_a_file, edit_the_state, empty_the_manifest])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(
    damage, checkpoints, runtime, model, optimizer, capsys
) -> None:
    checkpoints.save(runtime, 10, {"step": 10}, extra={})
    damage(checkpoints.save(runtime, 20, {"step": 20}, extra={}))

    assert checkpoints.latest(runtime).state == {"step": 10}

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "step-00000020" in lines[0] and "the one before" in lines[0]


def test_a_checkpoint_of_another_format_is_refused_and_left_as_it_is(checkpoints, runtime, model, optimizer) -> None:
    checkpoints.save(runtime, 10, {}, extra={})
    later = checkpoints.save(runtime, 20, {}, extra={})
    manifest = json.loads((later / "manifest.json").read_text())
    (later / "manifest.json").write_text(json.dumps(manifest | {"format": writer_module.FORMAT + 1}))
    read = r"step-00000020 is of format 2, this version of llmtrain reads format 1: continue with the version that"
    with pytest.raises(ValueError, match=rf"{read} wrote it, or remove .* to start from the beginning"):
        checkpoints.latest(runtime)
    with pytest.raises(ValueError, match=read):
        Checkpoint(later)
    assert steps(checkpoints) == [10, 20]


def test_what_a_checkpoint_did_not_write_is_left_alone(checkpoints, runtime, model, optimizer) -> None:
    folder = checkpoints.save(runtime, 10, {}, extra={}).parent
    for name in ("step-00000010.backup", "step-1.partial", "step-00000010-copy", "step-best"):
        (folder / name).mkdir()
    for name in ("step-00000020", "step-00000030.partial", "step-notes.txt"):
        (folder / name).write_text("mine")
    (folder / "step-00000040.partial").mkdir()
    before = {path.name for path in folder.iterdir()}
    assert checkpoints.latest(runtime).step == 10
    for step in (11, 12, 13):
        checkpoints.save(runtime, step, {}, extra={})
    assert checkpoints.latest(runtime).step == 13
    written = {f"step-{step:08d}" for step in (10, 12, 13)}
    after = {path.name for path in folder.iterdir()}
    assert after - written == before - written - {"step-00000040.partial"}


def test_where_every_checkpoint_is_damaged_the_run_does_not_start_over(checkpoints, runtime, model, optimizer) -> None:
    flip_a_bit(checkpoints.save(runtime, 10, {}, extra={}))
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        checkpoints.latest(runtime)


def test_a_damaged_later_checkpoint_never_displaces_a_good_one(runtime, tmp_path, model, optimizer) -> None:
    runtime.prepare(model, optimizer)
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=False)
    empty_the_manifest(checkpoints.save(runtime, 20, {}, extra={}))
    checkpoints.save(runtime, 15, {}, extra={})
    assert steps(checkpoints) == [15]


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits_these_have(
    checkpoints, runtime, model, optimizer
) -> None:
    for step in (999_999, 1_000_000, 99_999_999, 100_000_000, 100_000_001):
        checkpoints.save(runtime, step, {"step": step}, extra={})
        assert checkpoints.latest(runtime).step == step
    assert steps(checkpoints) == [100_000_000, 100_000_001]


def test_who_reads_while_a_run_prunes_gets_a_whole_checkpoint_or_one_line(runtime, tmp_path, model, optimizer) -> None:
    runtime.prepare(model, optimizer)
    runtime.make_state()
    checkpoints = Checkpoints(tmp_path, keep=1, keep_best=False)
    checkpoints.save(runtime, 1, {"step": 1}, extra={})
    wanted = snapshot(runtime, model, optimizer)["0.weight/param"]
    refusals, num_read = [], 0

    def train_on() -> None:
        for step in range(2, 80):
            checkpoints.save(runtime, step, {"step": step}, extra={})

    running = threading.Thread(target=train_on)
    running.start()
    while running.is_alive() or not num_read:
        try:
            found = find_checkpoint(tmp_path, "latest")
            weights, state = found.read_all("model"), found.state
        except ValueError as error:
            refusals.append(str(error))
            continue
        num_read += 1
        assert state["step"] == found.step and torch.equal(weights["0.weight"], wanted)
    running.join()
    known = ("has no good manifest", "is incomplete", "cannot be read", "no checkpoint latest")
    assert all(any(each in line for each in known) for line in refusals), refusals


def test_the_clocks_of_machines_decide_nothing(checkpoints, runtime, model, optimizer) -> None:
    for step, hour in ((10, 3), (20, 2), (30, 1)):
        path = checkpoints.save(runtime, step, {"step": step}, extra={})
        for each in (path, *path.iterdir()):
            os.utime(each, (hour * 3600, hour * 3600))
    assert steps(checkpoints) == [20, 30]
    assert checkpoints.latest(runtime).state == {"step": 30}


def test_what_of_a_removed_checkpoint_cannot_be_deleted_never_stops_a_run(
    checkpoints, runtime, model, optimizer, monkeypatch, capsys
) -> None:
    """NFS keeps the files that another process has open, and with them their folder."""
    folder = checkpoints.save(runtime, 5, {"turn": 0}, extra={}).parent

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(39, "Directory not empty", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        for turn in (1, 2, 3):
            checkpoints.save(runtime, 5, {"turn": turn}, extra={})
            assert checkpoints.latest(runtime).state == {"turn": turn}
        for step in (6, 7):
            checkpoints.save(runtime, step, {}, extra={})
    assert "cannot remove the old checkpoint" in capsys.readouterr().out
    checkpoints.latest(runtime)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000006", "step-00000007"]


def test_a_checkpoint_that_is_removed_while_it_is_read_is_one_line(checkpoints, runtime, model, optimizer) -> None:
    path = checkpoints.save(runtime, 1, {}, extra={})
    read = Checkpoint(path)
    shutil.rmtree(path)
    for reading in (lambda: read.read_all("model"), lambda: read.read("model", "0.bias"), lambda: read.state):
        with pytest.raises(ValueError, match=r"step-00000001 cannot be read .*: if the run has gone on and removed it"):
            reading()
    with pytest.raises(ValueError, match=r"step-00000001 is incomplete"):
        read.verify()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what a process maps")
def test_a_resumed_run_holds_no_file_of_the_checkpoint_so_that_its_space_is_free_once_it_is_removed(
    checkpoints, runtime, model, optimizer
) -> None:
    path = checkpoints.save(runtime, 1, {"source": torch.ones(3)}, extra={})
    latest = checkpoints.latest(runtime)
    runtime.load_named_state(latest.read_parameter)
    state = latest.state
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    assert torch.equal(state["source"], torch.ones(3))


def test_a_tensor_that_a_checkpoint_does_not_have_is_named(checkpoints, runtime, model, optimizer) -> None:
    saved = Checkpoint(checkpoints.save(runtime, 1, {}, extra={}))
    with pytest.raises(ValueError, match=r"has no model tensor head\.weight: it is of another model"):
        saved.read_parameter("head.weight")
    with pytest.raises(ValueError, match=r"has no ema: it is of another run"):
        saved.read_all("ema")


def test_a_step_saved_again_replaces_the_one_before(checkpoints, runtime, model, optimizer) -> None:
    checkpoints.save(runtime, 5, {"turn": 1}, extra={})
    checkpoints.save(runtime, 5, {"turn": 2}, extra={})
    assert checkpoints.latest(runtime).state == {"turn": 2}


def test_all_files_of_a_checkpoint_can_be_read_by_the_same_people(checkpoints, runtime, model, optimizer) -> None:
    before = os.umask(0o027)
    try:
        saved = checkpoints.save(runtime, 1, {}, extra={})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o640}


def test_a_full_disk_leaves_the_last_good_checkpoint_and_nothing_else(
    tmp_path, runtime, model, optimizer, full_disk
) -> None:
    runtime.prepare(model, optimizer)
    checkpoints = Checkpoints(full_disk, keep=2, keep_best=False)
    checkpoints.save(runtime, 1, {}, extra={})
    filler = full_disk / "filler"
    fill(filler)

    with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*step-00000002.*No space left"):
        checkpoints.save(runtime, 2, {}, extra={})

    assert sorted(path.name for path in full_disk.iterdir()) == ["filler", "step-00000001"]
    assert checkpoints.latest(runtime).step == 1
    filler.unlink()
    checkpoints.save(runtime, 2, {}, extra={})
    assert checkpoints.latest(runtime).step == 2


def fill(file: Path) -> None:
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(b"\0" * 4096)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own; skipped where one may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_that_may_not_grow_leaves_the_last_good_checkpoint(checkpoints, runtime, model, optimizer) -> None:
    checkpoints.save(runtime, 1, {}, extra={})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoints.save(runtime, 2, {}, extra={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert steps(checkpoints) == [1]


SAVE_FOREVER = """
import sys
from pathlib import Path
import torch
from llmtrain.train.checkpoint import Checkpoints
from llmtrain.train.runtime import Runtime

runtime = Runtime(precision="fp32", max_grad_norm=None, seed=0, timeout_minutes=1)
model = torch.nn.Linear(512, 512)
model, optimizer = runtime.prepare(model, torch.optim.AdamW(model.parameters()))
runtime.make_state()
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2, keep_best=False)
latest = checkpoints.latest(runtime)
step = latest.step if latest else 0
while True:
    step += 1
    torch.nn.init.constant_(model.weight, step)
    checkpoints.save(runtime, step, {"step": step}, extra={})
"""


def test_kill_dash_nine_inside_a_save_leaves_a_whole_checkpoint(tmp_path, runtime) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    script = tmp_path / "script.py"
    script.write_text(SAVE_FOREVER)
    folder, last, torn = tmp_path / "checkpoints", 0, 0
    for _ in range(3):
        process = fork(run_script, script, [str(folder)], output=tmp_path / "process")
        wanted = last + moments.randint(1, 3)
        assert process.wait_until(lambda step=wanted: (folder / f"step-{step:08d}").exists())
        file = moments.choice(["model-00001.safetensors", "state.json"])
        assert process.wait_until(lambda file=file: any(folder.glob(f"step-*.partial/{file}")))
        assert process.kill().code == -signal.SIGKILL
        torn += any(folder.glob("*.partial"))

        latest = Checkpoints(folder, keep=2, keep_best=False).latest(runtime)

        assert latest is not None and latest.step >= wanted > last
        assert latest.state == {"step": latest.step}
        assert torch.equal(latest.read("model", "weight"), torch.full((512, 512), float(latest.step)))
        assert not any(folder.glob("*.partial"))
        last = latest.step
    assert torn, "no kill came inside a save"


def test_the_manifest_lists_every_file(checkpoints, runtime, model, optimizer) -> None:
    path = checkpoints.save(runtime, 1, {"t": torch.ones(1)}, extra={})
    manifest = json.loads((path / "manifest.json").read_text())
    assert {file.name for file in path.iterdir()} == set(manifest["files"]) | {"manifest.json"}
    assert not list(path.glob("*.pt")) and not list(path.glob("*.pkl"))
    Checkpoint(path).verify()


def steps(checkpoints: Checkpoints) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints._paths()]
