"""The throughput protocol on small models: what is measured, that intervals are nested, that a busy machine shows."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dskd import get_method, replace
from dskd.costs import of_method
from dskd.size import Size
from harness.run.device import open_device
from harness.run.machine import Watch
from harness.run.throughput import STAGES, throughput
from harness.spec import BENCH_REVISION, BenchSpec
from tests.run.small import SMALL


def bench(method: str, size: Size = 64, backbone: str = SMALL, **settings: object) -> dict[str, object]:
    options = {"batch_sizes": (1, 3), "seconds": 0.05} | settings
    spec = BenchSpec(get_method(method), backbone, size, "fp32", "cpu", 1, **options)
    return throughput(spec, open_device("cpu", "fp32"))


@pytest.mark.parametrize(("method", "backbone"), [("dskd", "resnet18"), ("student_ensemble", SMALL)])
def test_what_a_measurement_holds(method: str, backbone: str) -> None:
    found = bench(method, backbone=backbone)
    single = found["single_stream"]
    latencies = [single[f"latency_p{p}_ms"] for p in (50, 90, 95, 99)]
    assert latencies == sorted(latencies)
    assert min(latencies[0], single["latency_std_ms"]) > 0
    assert single["iterations"] >= 10
    assert [batch["batch_size"] for batch in found["offline"]] == [1, 3]
    assert found["images_per_s"] == max(batch["images_per_s"] for batch in found["offline"])
    for stages in (single["stages"], found["best_batch_stages"]):
        intervals = [stages[f"{stage}_ms"] for stage in STAGES]
        assert intervals == sorted(intervals)
        assert intervals[0] > 0
    assert found["protocol"] == BENCH_REVISION
    assert min(found["gmac"], found["peak_host_memory_mib"]) > 0


def test_a_strip_is_measured_at_its_size() -> None:
    found = bench("stfpm", (32, 64), "resnet18", batch_sizes=(1,))
    assert found["gmac"] == pytest.approx(of_method(get_method("stfpm"), "resnet18", (32, 64)).gmac, abs=1e-3)


def test_maps_are_smoothed_once_as_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    sigmas = []
    for module in ("dskd.anomaly_map", "harness.run.throughput"):
        name = f"{module}.gaussian_filter"
        monkeypatch.setattr(name, lambda maps, sigma, own=module: sigmas.append((own, sigma)) or maps)
    for name, least in (("WARM_UP", 1), ("LEAST", 2)):
        monkeypatch.setattr(f"harness.run.throughput.{name}", least)
    for changes in ({}, {"map.sigma_share": 1 / 32}):
        method = replace(get_method("dskd"), changes)
        spec = BenchSpec(method, SMALL, (64, 96), "fp32", "cpu", 1, batch_sizes=(1,), seconds=0.01)
        throughput(spec, open_device("cpu", "fp32"))
    assert set(sigmas) == {("harness.run.throughput", 4.0), ("harness.run.throughput", 2.0)}


def test_a_compiled_model_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    assert "first_pass_s" in bench("stfpm", compile=True)
    assert len(compiled) == 1


def test_every_batch_size_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, compile_ = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        shapes.append(max(one.shape for one in inputs if one.ndim == 4 and one.shape[1:] == (3, 64, 64)))
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))
    for name, least in (("WARM_UP", 1), ("LEAST", 2), ("INPUTS", 1)):
        monkeypatch.setattr(f"harness.run.throughput.{name}", least)
    sizes = (1, 2, 3)
    with torch._dynamo.config.patch(recompile_limit=2):  # it then runs eager, after 8 by default
        bench("stfpm", compile=True, batch_sizes=sizes, seconds=0.01)
    assert sorted(shape[0] for shape in shapes) == list(sizes)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc")
def test_others_on_the_cores_are_seen() -> None:
    watch = Watch(torch.device("cpu"))
    burn = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        time.sleep(1)
        found = watch.read()
    finally:
        for process in burn:
            process.kill()
            process.wait()
    assert found["foreign_cpu_share"] > 0.05
    assert found["disturbed"]
