"""The committed tables, figures and READMEs are what the records give."""

import pytest

from experiments import figures, tables


@pytest.mark.slow
@pytest.mark.parametrize("module", [tables, figures], ids=["tables", "figures"])
def test_generated_files_are_up_to_date(module, monkeypatch):
    monkeypatch.setattr("sys.argv", [module.__name__, "--check"])
    module.main()  # exits with the names of the files that are not
