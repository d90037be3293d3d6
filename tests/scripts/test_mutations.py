"""Every fault that scripts/mutations.py would plant has its place in the code as it is, and its tests."""

import importlib


def test_each_mutation_has_one_place_and_tests(pytestconfig, monkeypatch):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "scripts")
    script = importlib.import_module("mutations")
    for mutation in script.MUTATIONS:
        text = script.source(script.CHECKOUT, mutation).read_text(encoding="utf-8")
        assert text.count(mutation.old) == 1, mutation
        assert all((script.CHECKOUT / "tests" / name).exists() for name in mutation.tests.split()), mutation
