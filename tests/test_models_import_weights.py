import importlib.util

import jax
import numpy as np
import pytest
import reference_unet

from dal_jax import CheckpointError
from dal_jax.models import UNetConfig, import_state_dict, infer_unet_config, unet_shapes

CONFIG = UNetConfig(2, (3, 4, 5), 10)


@pytest.fixture
def arrays():
    return reference_unet.random_state_dict(np.random.default_rng(0), 2, (3, 4, 5), 10)


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".safetensors":
        pytest.importorskip("safetensors.numpy").save_file(arrays, path)
    else:
        torch = pytest.importorskip("torch")
        torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_every_format_with_and_without_prefix(tmp_path, arrays, suffix, prefix):
    named = {prefix + name: array for name, array in arrays.items()}
    named[prefix + "down1.convs.1.num_batches_tracked"] = np.array(7)
    path = write(tmp_path / f"w{suffix}", named)
    variables = import_state_dict(path, CONFIG)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), unet_shapes(CONFIG))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == shapes
    kernel = variables["params"]["up2"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 2, 1], arrays["up2.convs.0.weight"][:, 1, 0, 2])
    linear = variables["params"]["bot1"]["mlp_0"]["kernel"]
    np.testing.assert_array_equal(linear, arrays["bot1.mlp.0.weight"].T)
    var = variables["batch_stats"]["down2"]["norm"]["var"]
    np.testing.assert_array_equal(var, arrays["down2.convs.1.running_var"])
    assert infer_unet_config(path) == CONFIG


def refusal(path, config=CONFIG):
    with pytest.raises(CheckpointError) as caught:
        import_state_dict(path, config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("weights")
    return message


def test_missing_misshapen_extra_and_non_finite_arrays_are_named(tmp_path, arrays):
    file = tmp_path / "w.npz"
    without = {k: v for k, v in arrays.items() if k != "up1.convs.1.bias"}
    assert "no array up1.convs.1.bias, expected shape (3,)" in refusal(write(file, without))
    wrong = arrays | {"out.weight": np.zeros((2, 4, 1, 1), np.float32)}
    message = refusal(write(file, wrong))
    assert "out.weight has shape (2, 4, 1, 1), expected (2, 3, 1, 1)" in message
    extra = arrays | {"down9.mlp.0.bias": np.zeros(3, np.float32)}
    assert "unexpected array down9.mlp.0.bias of shape (3,)" in refusal(write(file, extra))
    infinite = arrays | {"out.bias": np.array([0.0, np.inf], np.float32)}
    assert "out.bias has values that are not finite" in refusal(write(file, infinite))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_truncated_file_is_refused(tmp_path, arrays, suffix):
    path = write(tmp_path / f"w{suffix}", arrays)
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged (" in refusal(path)


def test_pickled_arrays_are_refused(tmp_path, arrays):
    path = tmp_path / "w.npz"
    np.savez(path, allow_pickle=True, **arrays, odd=np.array([{}], object))
    assert "damaged (" in refusal(path)


def test_unknown_format_missing_file_and_foreign_arrays(tmp_path):
    assert "expected .npz, .safetensors or .pt" in refusal(tmp_path / "w.h5")
    assert "no such file" in refusal(tmp_path / "w.npz")
    path = write(tmp_path / "other.npz", {"layer.weight": np.zeros(3)})
    with pytest.raises(CheckpointError, match=r"has no array bot1\.convs\.0\.weight"):
        infer_unet_config(path)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is there")
def test_missing_torch_is_explained(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"anything")
    assert "pip install 'dal-jax[torch]'" in refusal(tmp_path / "w.pt")
