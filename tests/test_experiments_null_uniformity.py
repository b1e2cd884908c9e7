import json

import numpy as np
import pytest

from dal_jax import DalConfig, dal_localizer
from dal_jax.models import UNetConfig, init_unet
from experiments.null_uniformity import Settings, main, run, summary


def _row(p: float, status: str = "OK") -> dict[str, object]:
    methods = dict.fromkeys(("selective", "over_conditioned", "naive", "bonferroni"), p)
    counts = dict.fromkeys(("windows", "evaluations", "intervals", "disagreements"), 1)
    return {"status": status, **counts, **methods}


def test_summary_counts_every_image():
    rows = [_row(p) for p in (0.005, 0.03, 0.5, 0.9)]
    out = summary([*rows, _row(float("nan"), "NO_REGION"), _row(float("nan"), "NON_FINITE")])
    assert (out["images"], out["no_region"], out["other"]) == (6, 1, 1)
    assert out["methods"]["selective"]["rejection"] == {"0.01": 0.25, "0.05": 0.5, "0.1": 0.5}


def test_a_run_continues_with_the_same_numbers():
    config = DalConfig(UNetConfig(channels=(4, 6)), image_size=4)
    localizer = dal_localizer(init_unet(config.unet, 0), config, 0.3)
    settings = Settings(size=4, images=4)
    whole: list[dict[str, object]] = []
    run(localizer, settings, whole)
    parts: list[dict[str, object]] = []
    run(localizer, settings._replace(images=1), parts)
    run(localizer, settings, parts)
    for row in (*whole, *parts):
        del row["seconds"]
    assert json.dumps(whole) == json.dumps(parts)


def test_another_run_is_not_continued(tmp_path, monkeypatch, capsys):
    out = tmp_path / "null.json"
    out.write_text(json.dumps({"settings": Settings(seed=1)._asdict(), "rows": []}))
    monkeypatch.setattr("sys.argv", ["null_uniformity", "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.study
def test_null_p_values_are_uniform(tmp_path, monkeypatch):
    """Some minutes: a model of this project's training, 5000 null images of size 8."""
    out = tmp_path / "null.json"
    monkeypatch.setattr("sys.argv", ["null_uniformity", "--out", str(out)])
    main()
    result = json.loads(out.read_text())["summary"]
    assert result["other"] == 0
    selective = result["methods"]["selective"]
    for level, rate in selective["rejection"].items():
        assert abs(rate - float(level)) <= 2 * selective["standard_error"][level]
    assert selective["ks_p"] > 0.01
    naive = result["methods"]["naive"]
    excess = naive["rejection"]["0.05"] - 0.05
    assert excess > 5 * naive["standard_error"]["0.05"]
    assert np.isfinite(result["windows_median"])
