"""A grown network leaves its run: it loads in another process, and goes through torch.export."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nets import Insert, Network, Widen, WidenStage, build, grow, preset, seed_of
from policies import Periodic
from training.keeping.checkpoint import load_checkpoint, network_of
from training.running.loop import train
from training.settings.train_settings import Train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_loop.md").read_text()


def grown(order: str) -> Network:
    start = seed_of(preset("resnet8", image=(1, 8, 8), order=order))
    actions = [Widen("stage1.block1", 3), Insert("stage2.block1", 4, 0.5), WidenStage("stage3", 4)]
    probe = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return grow(build(start), actions, probe=probe).network.eval()


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_grown_network_goes_through_torch_export(order):
    net, inputs = grown(order), torch.randn(5, 1, 8, 8)
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (inputs[:2],), dynamic_shapes={"x": {0: batch}})
    with torch.no_grad():
        assert torch.allclose(program.module()(inputs), net(inputs), atol=1e-6)


def test_the_lines_of_the_page_load_a_grown_network_in_another_process(tmp_path):
    settings = Train(net="resnet8", epochs=0.5, batch_size=64, device="cpu", policy=Periodic())
    summary = train(Train(**vars(settings) | {"out": str(tmp_path / "runs/first")}), lambda _: None)
    assert summary["growth"]
    (code,) = re.findall(r"```python\n(import json\n.*?)```", PAGE, re.DOTALL)
    code += "print(sum(value.numel() for value in net.parameters()))\n"
    code += "print(program.module()(torch.ones(1, 1, 8, 8)).tolist())\n"
    (tmp_path / "elsewhere.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "elsewhere.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parameters, outputs = done.stdout.splitlines()
    assert int(parameters) == summary["parameters"]
    path = tmp_path / "runs/first/checkpoint.pt"
    net = network_of(load_checkpoint(path, {}), path).eval()
    with torch.no_grad():
        expected = net(torch.ones(1, 1, 8, 8))
    assert torch.allclose(torch.tensor(json.loads(outputs)), expected, atol=1e-5)
