"""A wheel in a fresh environment, outside the checkout: the verbs, the shipped configurations, a trained model."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from tiny_chat import write_model, write_rows
from tiny_run import ROOT

pytestmark = pytest.mark.slow

SOURCES = ("llmtrain", "recipes", "tokenizer", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
UNWANTED = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and, by a path file, the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=UNWANTED)
        else:
            shutil.copyfile(path, source / name)
    build = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run([sys.executable, *build], check=True, env=clean_environment(), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    interpreter = folder / "venv" / "bin" / "python"
    packages = next((folder / "venv" / "lib").glob("python3*/site-packages"))
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    install = ["-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", "--target", str(packages), str(wheel)]
    subprocess.run([sys.executable, *install], check=True, env=clean_environment(), cwd=folder)
    shutil.rmtree(source)
    return interpreter


def clean_environment() -> dict[str, str]:
    """The environment without this checkout on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def llmtrain(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, run in a folder."""
    return subprocess.run(
        [str(python), "-m", "llmtrain", *arguments],
        capture_output=True,
        text=True,
        env=clean_environment(),
        cwd=folder,
        timeout=150,
        check=False,
    )


def test_the_installed_package_lists_its_verbs_and_configurations(python: Path, tmp_path: Path) -> None:
    shown = llmtrain(python, tmp_path, "--help")
    assert shown.returncode == 0 and "pretrain" in shown.stdout, shown.stderr
    listed = llmtrain(python, tmp_path, "configs")
    paths: list[Path] = []
    folder = tmp_path
    for line in listed.stdout.splitlines():  # FOR WHAT, in FOLDER: then its configurations, each with what it is for
        folder = folder if line.startswith("  ") else Path(line.removesuffix(":").split(", in ")[1])
        paths += [folder / f"{line.split()[0]}.yaml"] if line.startswith("  ") else []
    kept = {
        path.name
        for folder in ("recipes/configs", "recipes/accelerate", "tokenizer")
        for path in (ROOT / folder).glob("*.yaml")
    }
    assert {path.name for path in paths} == kept
    assert all(path.is_file() and not path.is_relative_to(ROOT) for path in paths)


def test_the_installed_package_trains_a_configuration_found_by_name(python: Path, tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / "rows.jsonl", seed=1), write_model(tmp_path / "chat")
    overrides = {
        "model.path": model,
        "data.train": rows,
        "data.max_seq_len": 128,
        "data.cache_dir": tmp_path / "cache",
        "train.epochs": "null",
        "train.steps": 2,
        "train.global_batch_tokens": 256,
        "train.microbatch_tokens": 256,
    }
    words = [f"{key}={value}" for key, value in overrides.items()]
    done = llmtrain(python, tmp_path, "sft", "sft_smollm2_lora", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "sft_smollm2_lora"
    assert (folder / "model" / "adapter_model.safetensors").is_file()
    assert (folder / "report.html").is_file(), done.stdout
