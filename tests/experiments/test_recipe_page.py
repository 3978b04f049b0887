"""The ablation of default mode: its page is what its runs give, and its command says what is wrong."""

from types import SimpleNamespace

import pytest

from experiments import recipe
from experiments.results import verdicts


def test_the_page_is_what_the_runs_give():
    found = recipe.read(recipe.FOLDER / "runs.csv")
    assert (recipe.FOLDER / "README.md").read_text() == recipe.page(found)
    assert len(recipe.known(found)) == len(found)  # no run twice, and none of settings that its row no longer has


def test_readme_says_what_the_runs_give():
    said = recipe.sentence(recipe.read(recipe.FOLDER / "runs.csv"))
    assert f"<!-- recipe -->\n{said}<!-- /recipe -->" in recipe.README.read_text()


def test_a_ratio_is_over_the_seeds_that_both_rows_have():
    row = {"source": "a", "target": "b"}
    runs = [
        {**row, "row": name, "seed": seed, "accuracy": accuracy, "settings": recipe.settings_of(name)}
        for name, seed, accuracy in [("paper", "0", "0.2"), ("all", "0", "0.3"), ("all", "1", "0.9")]
    ]
    found = recipe.by_cell(runs)
    assert recipe.ratios(found, "all", "paper", [("a", "b"), ("a", "c")]) == pytest.approx([1.5])
    assert recipe.ratios(found, "paper", "random", [("a", "b")]) == []


def test_the_interval_is_that_of_t():
    assert verdicts.geometric_mean([1.0, 2.0, 4.0], 3) == "2.000 (0.357 to 11.190)"
    assert verdicts.geometric_mean([1.25]) == "1.25"  # one ratio has no spread


def test_a_run_is_added_to_those_that_are_there(tmp_path):
    row = dict.fromkeys(recipe.FIELDS, "1")
    for count in (1, 2):
        recipe.add(tmp_path / "recipe" / "runs.csv", row)
        assert recipe.read(tmp_path / "recipe" / "runs.csv") == [row] * count


@pytest.mark.slow
def test_a_rule_is_left_out_where_it_changes_the_start(tmp_path, monkeypatch, capsys):
    rows = "all but gates", "all but leading"  # the target has no gates, and is wider than the source in places
    monkeypatch.setattr(recipe, "record", lambda run, *_: dict.fromkeys(recipe.FIELDS, "1") | {"row": run.row})
    runs = [recipe.Run(row, "eff_lite0", "mnas", 0) for row in rows]
    recipe.run_all(runs, (None, SimpleNamespace(classes=range(10))), tmp_path / "runs.csv", "")
    assert [run["row"] for run in recipe.read(tmp_path / "runs.csv")] == ["all but leading"]
    assert "the rule changes nothing" in capsys.readouterr().out


def test_rules_left_out_have_a_table_of_their_own():
    accuracies = {recipe.DEFAULT: 0.5, "all but gates": 0.4, "paper": 0.2}
    runs = [
        {"row": row, "source": "eff_lite0", "target": target, "seed": "0", "accuracy": accuracy}
        | {"settings": recipe.settings_of(row)}
        for row, accuracy in accuracies.items()
        for target in ("rex", "rex_150", "semnas")
    ]
    whole, without = recipe.page(runs).split("## Default mode without one of its rules")
    assert "all but" not in whole and "| eff_lite0 | rex | 0.500 | 0.400 |" in without
    assert "| all but gates | all, new, head | 3 | 0.800" in without and "paper" not in without.partition("## Rows")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "best"], "invalid choice: 'best'"),
        (["--pairs", "eff_lite0"], "a pair is source:target, got 'eff_lite0'"),
        (["--seeds", "one"], "invalid int value: 'one'"),
        (["--pairs", "eff_lite0:no_such_network"], "no_such_network"),
        (["--root", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe.main(words)
    said = capsys.readouterr().err.splitlines()[-1:] or [str(stopped.value)]
    assert message in said[0] and "Traceback" not in said[0]
