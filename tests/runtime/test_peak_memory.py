"""Peak memory, measured in a process of its own."""

import pytest
from onnx_tools import copied, exported

import dsee
from dsee import DseeError
from dsee.runtime import peak_memory


@pytest.fixture(scope="module")
def with_onnx():
    return peak_memory(exported("bert").folder, batch=2, sequence=16)


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory):
    folder = dsee.save(exported("bert").model, tmp_path_factory.mktemp("memory") / "out")
    return peak_memory(folder, batch=2, sequence=16)


def test_figures_are_bytes_of_a_real_process(with_onnx, with_torch):
    for found in (with_onnx, with_torch):
        # an interpreter alone takes 8 MB, and no machine of ours has a TB
        assert 2**23 < found.imports <= found.peak < 2**40


def test_the_models_share_is_the_difference(with_onnx, with_torch):
    for found in (with_onnx, with_torch):
        assert found.model == found.peak - found.imports >= 0


def test_an_onnx_model_is_measured_without_torch(with_onnx, with_torch):
    # importing torch and transformers takes hundreds of megabytes
    assert with_onnx.peak < with_torch.imports / 2


def test_a_failing_child_passes_its_reason_on(tmp_path):
    folder = copied(exported("bert"), tmp_path / "out")
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(DseeError, match=r"Measuring the memory of .* failed: .*model\.onnx is truncated"):
        peak_memory(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DseeError, match="nowhere: there is no such folder"):
        peak_memory(tmp_path / "nowhere")
