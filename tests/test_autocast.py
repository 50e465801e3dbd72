"""bfloat16 where the hardware is faster in it, float32 elsewhere."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from scripts import inferers
from scripts.inferers import AutocastInferer, has_bfloat16

CPU = torch.device("cpu")


def network_and_input() -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1).eval(), torch.randn(1, 1, 6, 10, 9)


@pytest.mark.parametrize("inferer", [SimpleInferer(), SlidingWindowInferer((4, 8, 8), 2, 0.25, mode="gaussian")])
def test_without_amp_it_is_the_plain_inferer(inferer):
    network, image = network_and_input()
    with torch.no_grad():
        result = AutocastInferer(inferer, amp=False)(image, network)
        assert result.dtype == torch.float32
        assert torch.equal(result, inferer(image, network))


@pytest.mark.parametrize("hardware", [True, False])
def test_amp_follows_the_hardware_and_returns_float32(monkeypatch, hardware):
    network, image = network_and_input()
    seen = []
    monkeypatch.setattr(inferers, "has_bfloat16", lambda device: hardware)
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.no_grad():
        result = AutocastInferer(SimpleInferer(), amp=True)(image, network)
        assert result.dtype == torch.float32
        assert seen == [torch.bfloat16 if hardware else torch.float32]
        exact = network(image)
    assert torch.equal(result, exact) is not hardware
    torch.testing.assert_close(result, exact, atol=0.05, rtol=0.05)


def test_inferer_passes_arguments_on():
    def network(x, factor, offset=0.0):
        return x * factor + offset

    result = AutocastInferer(SimpleInferer(), amp=False)(torch.ones(1, 1, 2, 2, 2), network, 3.0, offset=0.5)
    assert torch.equal(result, torch.full((1, 1, 2, 2, 2), 3.5))


def test_has_bfloat16(monkeypatch):
    assert isinstance(has_bfloat16(CPU), bool)
    for capabilities, expected in (
        ({"avx512_bf16": True, "amx_bf16": False, "sse4a": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False, "sse4a": True}, True),
        ({"avx512_bf16": False, "sse4a": True}, False),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert has_bfloat16(CPU) is expected
    assert has_bfloat16(torch.device("mps")) is False
