"""The claims of the paper that can be checked without training, beside what we find."""

import pytest

from experiments.results import claims


@pytest.mark.slow
def test_the_claims_stand_beside_what_we_find():
    made = claims.table()
    found = made.data.set_index("claim")
    layers = {"Eff-B0": (199, 197), "Eff-B2": (281, 279), "Mix-L": (291, 289), "ReX": (183, 184), "Eff-B8": (733, 731)}
    for label, (paper, ours) in layers.items():
        row = found.loc[f"layers of {label}"]
        assert (row["paper"], row["found"], row["note"]) == (str(paper), str(ours), f"{ours - paper:+d}")
    pairs = found.loc["mean effectiveness of Table 12's 20 pairs, clip and dp"]
    assert (pairs["paper"], pairs["found"]) == ("1.59", "1.605")
    imagenet = found.loc["accuracy on ImageNet after 50 epochs, over random init's"]
    assert (imagenet["paper"], imagenet["found"]) == ("1.6", "1.12") and "section 4.3" in imagenet["note"]


def test_the_times_are_of_the_81_pairs():
    times = claims.pair_seconds()
    assert len(times.drop_duplicates(["source", "target"])) == 81 and (times["seconds"] > 0).all()
    assert (
        f"takes {times['seconds'].mean():.3f} s on average and {times['seconds'].max():.3f} s at most"
        in claims.seconds_line()
    )
    assert "the paper says 0.9 s and 1.9 s" in claims.seconds_line().replace("The", "the")
