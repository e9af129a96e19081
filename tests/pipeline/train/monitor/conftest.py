import pytest

from pipeline.train.monitor import sender


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """W&B without a network, and no variable or key of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sender, "CLOSE_SEC", 100.0)  # the machine may be busy
