"""Bytes on disk."""

from dsee.measure import folder_bytes


def test_all_files_or_only_weights(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    sizes = {
        "model.safetensors": 1000,
        "deep/model.onnx": 200,
        "deep/er/model.onnx.data": 30,
        "config.json": 7,
        "deep/README.md": 5,
    }
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert folder_bytes(tmp_path) == 1242
    assert folder_bytes(str(tmp_path), weights_only=True) == 1230


def test_an_empty_folder_is_nothing(tmp_path):
    assert folder_bytes(tmp_path) == 0
