"""How much each source helped each target, in the paper's tables and in ours, and whether similarity predicts it."""

from __future__ import annotations

from experiments.results import cells, method_effects, ours, paper, reproduction, source_choice
from experiments.results.cells import NOT_RUN, Table, markdown
from experiments.results.source_choice import SourceEffects


def table11(records: cells.Records, own: list[str]) -> Table:
    """Build Table 11 from the paper's own numbers and from our records."""
    not_run = [str(int(table[5:])) for table in paper.TABLE_11 if reproduction.run_cells(table, records).empty]
    return source_choice.table11(all_effects(records, own), not_run)


def all_effects(records: cells.Records, own: list[str]) -> list[SourceEffects]:
    """Collect the effects of sources: each of the paper's tables, the same tables of ours, and our own grids."""
    printed = paper.printed("table11_correlation").set_index(["dataset", "source_weights"])["correlation"]
    found = []
    for table, (dataset, weights) in paper.TABLE_11.items():
        name = f"Table {int(table[5:])}: {dataset}, sources from {paper.STARTS[weights]}"
        found.append(SourceEffects(name, paper.matrix(table), printed[dataset, weights]))
        for scale, run in reproduction.run_cells(table, records).groupby("scale"):
            values = run[["target", "source", "ours"]].rename(columns={"ours": "value"})
            found.append(SourceEffects(f"ours, scale {scale}: {name}", values))
    for experiment in own:
        trials = ours.trials(experiment, records)
        values = ours.transfers(trials)
        if not method_effects.varies_method(trials) and len(values) > len(values["target"].unique()) > 1:
            name = f"ours: {experiment}, random init at {paper.RANDOM_LR:g}"
            found.append(SourceEffects(name, values.drop(columns="similarity")))
    return found


def similarity_in_words(experiment: str, records: cells.Records) -> str:
    """Put into words how well the paper's similarity predicts the effects in a grid of ours."""
    values = ours.transfers(ours.trials(experiment, records))[["target", "source", "value"]]
    if len(values) < 3:
        return f"{NOT_RUN}\n"
    numbers = source_choice.measures_of_results([SourceEffects(experiment, values)])
    similarity = numbers[numbers["measure"] == "similarity, paper mode"]
    return source_choice.in_words(
        "our own grid", source_choice.prediction_quality(values.merge(similarity, on=["source", "target"]))
    )


def scale_of_similarity(experiment: str, records: cells.Records) -> str:
    """Write the table of the library guide that says what a similarity is worth, in the paper's Table 1 and in ours."""
    values = ours.transfers(ours.trials(experiment, records))[["target", "source", "value"]]
    results = [
        SourceEffects("the paper's Table 1 (pairs)", paper.matrix("table01")),
        SourceEffects("ImageNet weights on Imagenette (pairs)", values),
    ]
    return markdown(source_choice.scale(results))
