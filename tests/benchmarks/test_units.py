"""The benchmark of handing out work runs, at a size that says little."""

from harcache.benchmarks import units


def test_units_that_do_nothing_are_timed_and_the_memory_of_the_client_measured() -> None:
    results = units.measure(200)
    assert results["units"] == 200
    assert results["unit.seconds"] > 0
    assert results["client.bytes"] >= 0
    assert units.as_table(results).startswith("200 units of 32 clips: ")
