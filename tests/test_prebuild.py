"""`python -m qfleet.prebuild`: what there is nothing to build for."""

from __future__ import annotations

from qfleet import prebuild


def test_a_network_of_convolutions_is_not_built(monkeypatch, capsys):
    def refuse(*arguments, **options):
        raise AssertionError("nothing may be started")

    monkeypatch.setattr(prebuild.subprocess, "run", refuse)

    assert prebuild.main(["cartpole-pixels"]) == 1
    assert capsys.readouterr().err == (
        "qfleet: preset cartpole-pixels: network.kind tiny is not compiled on a CPU, where "
        "convolutions take the time; there is nothing to build\n"
    )
