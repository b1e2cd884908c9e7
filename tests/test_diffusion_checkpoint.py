import contextlib
import json
import os
import signal

import jax
import numpy as np
import pytest
from helpers import with_devices

from dal_jax import CheckpointError, InputError, RunError
from dal_jax.diffusion import (
    DalConfig,
    ReverseConfig,
    Schedule,
    load_checkpoint,
    save_checkpoint,
)
from dal_jax.models import UNetConfig, init_unet

CONFIG = DalConfig(
    UNetConfig(3, (4, 8), 6, "pl-silu:9"),
    Schedule(200, 1e-3, 0.03),
    ReverseConfig(90, 3, 0.5),
    5,
    (4, 6),
)


@pytest.fixture
def saved(tmp_path):
    save_checkpoint(tmp_path / "model", init_unet(CONFIG.unet, 0), CONFIG)
    return tmp_path / "model"


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith("checkpoint")
    assert "\n" not in message
    return message


def test_round_trip_and_replacement(saved):
    variables, config = load_checkpoint(saved)
    assert config == CONFIG
    assert all(type(a) is np.ndarray and a.dtype == np.float32 for a in jax.tree.leaves(variables))
    jax.tree.map(np.testing.assert_array_equal, variables, init_unet(CONFIG.unet, 0))
    save_checkpoint(saved, init_unet(CONFIG.unet, 1), CONFIG)
    jax.tree.map(
        np.testing.assert_array_equal, load_checkpoint(saved)[0], init_unet(CONFIG.unet, 1)
    )
    assert len(list(saved.iterdir())) == 2  # config.json and one set of arrays


def test_only_what_was_stored_is_replaced(saved):
    own, left = saved / "model-brick" / "notes.txt", saved / "model-000007.orbax-checkpoint-tmp"
    own.parent.mkdir()
    own.write_text("of the user's")
    left.mkdir()  # of a writer that was stopped
    save_checkpoint(saved, init_unet(CONFIG.unet, 1), CONFIG)
    assert own.read_text() == "of the user's"
    found = sorted(path.name for path in saved.iterdir())
    assert found == ["config.json", "model-000008", "model-brick"]


def test_configuration_survives_json():
    assert DalConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    assert DalConfig.from_dict({}) == DalConfig()
    assert DalConfig(image_size=16).image_shape == (16, 16, 1)
    assert CONFIG.draws_shape == (4, 4, 6, 3)
    for bad in ({"unet": {"depth": 3}}, {"colour": 1}, {"unet": 3}, {"filter_size": "x"}):
        with pytest.raises(InputError, match=r"^config"):
            DalConfig.from_dict(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"image_size": 12},
        {"image_size": (8, 8, 1)},
        {"filter_size": 2},
        {"reverse": ReverseConfig(start=1000)},
    ],
)
def test_parts_that_do_not_fit_are_refused(bad):
    with pytest.raises(InputError, match="got"):
        DalConfig(**bad)


def test_missing_foreign_and_newer_checkpoints(tmp_path, saved):
    assert "is not a directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no config.json in" in refusal(tmp_path / "empty")
    record = saved / "config.json"
    whole = record.read_text()
    record.write_text(whole[:-20])
    assert "config.json': damaged" in refusal(saved)
    record.write_text('{"model_type": "bert"}')
    assert "is not of format 1" in refusal(saved)
    record.write_text(whole.replace('"format": 1', '"format": 2'))
    assert "is not of format 1" in refusal(saved)
    record.write_text(json.dumps({**json.loads(whole), "config": 3}))
    assert "config.json: " in refusal(saved)
    record.write_text(whole.replace("pl-silu:9", "tanh"))
    assert "activation: got 'tanh'" in refusal(saved)


@pytest.mark.slow
def test_any_truncated_or_missing_file_is_noticed(saved):
    (arrays,) = saved.glob("model-*")
    for path in [p for p in arrays.rglob("*") if p.is_file()]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] if content else b"x")
        assert "is truncated or changed" in refusal(saved)
        path.unlink()
        assert "is missing" in refusal(saved)
        path.write_bytes(content)
    load_checkpoint(saved)
    arrays.rename(saved / "elsewhere")
    assert "is missing" in refusal(saved)


def test_configuration_of_another_network_is_noticed(saved):
    record = saved / "config.json"
    entries = json.loads(record.read_text())
    entries["config"]["unet"]["channels"] = [4, 9]
    record.write_text(json.dumps(entries))
    assert "has shape [8], expected [9]" in refusal(saved)


def test_variables_of_another_network_are_refused(tmp_path):
    variables = init_unet(UNetConfig(3, (4, 9), 6), 0)
    with pytest.raises(InputError, match="expected"):
        save_checkpoint(tmp_path / "model", variables, CONFIG)
    assert not (tmp_path / "model").exists()


def test_interrupted_save_leaves_the_former_checkpoint(saved, monkeypatch):
    def stop(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(RunError, match=r"disk full.*the same command goes on"):
        save_checkpoint(saved, init_unet(CONFIG.unet, 1), CONFIG)
    monkeypatch.undo()
    jax.tree.map(
        np.testing.assert_array_equal, load_checkpoint(saved)[0], init_unet(CONFIG.unet, 0)
    )


@contextlib.contextmanager
def full_disk(size):
    """Let no file grow beyond a size, which every writer meets as it meets a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 300, 2000])
def test_a_full_disk_is_one_line_and_keeps_the_former_checkpoint(saved, size, capfd):
    with full_disk(size), pytest.raises(RunError, match=r"cannot write to .*too large") as caught:
        save_checkpoint(saved, init_unet(CONFIG.unet, 1), CONFIG)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")
    kept = load_checkpoint(saved)[0]
    jax.tree.map(np.testing.assert_array_equal, kept, init_unet(CONFIG.unet, 0))
    save_checkpoint(saved, init_unet(CONFIG.unet, 1), CONFIG)
    found = load_checkpoint(saved)[0]
    jax.tree.map(np.testing.assert_array_equal, found, init_unet(CONFIG.unet, 1))
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model-000002"]


def test_an_interruption_waits_for_the_checkpoint(saved, monkeypatch, request):
    # Processes in the background may have been started with the signal ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    real = os.replace

    def replace(*places):
        signal.raise_signal(signal.SIGINT)
        real(*places)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, init_unet(CONFIG.unet, 1), CONFIG)
    monkeypatch.undo()
    found = load_checkpoint(saved)[0]
    jax.tree.map(np.testing.assert_array_equal, found, init_unet(CONFIG.unet, 1))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


SAVE = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dal_jax.diffusion import DalConfig, save_checkpoint
from dal_jax.models import UNetConfig, init_unet
config = DalConfig(UNetConfig(1, (4, 8), 6), image_size=4)
mesh = Mesh(np.array(jax.devices()), ("device",))
assert jax.device_count() == 4
def place(a):  # the last axis over the devices where it divides, else a copy on each
    split = [None] * (a.ndim - 1) + ["device" if a.shape[-1] % 4 == 0 else None]
    return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*split)))
save_checkpoint(sys.argv[1], jax.tree.map(place, init_unet(config.unet, 0)), config)
"""

LOAD = """
import sys
import jax
import numpy as np
from dal_jax.diffusion import load_checkpoint
from dal_jax.models import init_unet
assert jax.device_count() == int(sys.argv[2])
variables, config = load_checkpoint(sys.argv[1])
jax.tree.map(np.testing.assert_array_equal, variables, init_unet(config.unet, 0))
"""


@pytest.mark.slow
def test_restores_on_another_number_of_devices(tmp_path):
    with_devices(4, SAVE, tmp_path / "model")
    with_devices(8, LOAD, tmp_path / "model", 8)
    variables, config = load_checkpoint(tmp_path / "model")  # here: one device
    jax.tree.map(np.testing.assert_array_equal, variables, init_unet(config.unet, 0))
