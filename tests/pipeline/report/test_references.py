"""The stated numbers, and that the paper's configurations are what they are of."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.config.reading import CONFIGS, load_config
from pipeline.model.network import network_of
from pipeline.report import references

PAPER = sorted(p for p in (CONFIGS / "paper").rglob("*.yaml") if p.stem != "common")


def stated(network: str, protocol: str, source: str) -> list[tuple[float | None, float | None]]:
    return [
        (row.top1, row.top5)
        for table in references.tables()
        for row in table.rows
        if row.network and (row.network.label, row.protocol) == (network, protocol)
        if row.source.startswith(source)
    ]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_each_of_the_papers_configurations_has_a_row_of_the_paper(path):
    config = load_config([f"--config={path}"], "", "")
    network = network_of(dataclasses.asdict(config.model))
    rows = [
        row
        for table in references.tables()
        for row in table.rows
        if table.data == config.data.dataset and row.network == network
    ]
    assert any(row.source.startswith("paper") for row in rows), network.label


def test_the_papers_numbers_are_those_of_its_tables():
    assert stated("plain-34", "10-crop", "paper") == [(28.54, 10.02)]
    assert stated("ResNet-34 A", "10-crop", "paper") == [(25.03, 7.76)]
    assert stated("ResNet-152 v1", "multi-scale", "paper") == [(19.38, 4.49)]
    assert stated("ResNet-50 v1", "1-crop", "released") == [(24.7, 7.8)]
    assert stated("CIFAR ResNet-110 A", "1-crop", "paper") == [(6.43, None)]
    assert stated("CIFAR plain-56", "1-crop", "paper") == [(None, None)]  # only drawn


def test_stated_accuracies_are_given_as_errors():
    ((error, _),) = stated("ResNet-152 v1.5", "1-crop", "torchvision")
    assert error == pytest.approx(21.688)
    ffcv = [error for error, _ in stated("ResNet-50 v1.5", "1-crop", "FFCV")]
    assert ffcv == pytest.approx([26.2, 22.8, 21.6])


def test_errors_are_percentages():
    for table in references.tables():
        for row in table.rows:
            assert row.top1 is None or 5 < row.top1 < 40
            assert row.top5 is None or 3 < row.top5 < (row.top1 or 100)
            assert row.source
