"""What is said of an SAE follows from its figures."""

from __future__ import annotations

import dataclasses

import pytest
from judged_world import fidelity_of, meaning_of, same

from sae_steer_retriever.evaluate.agreement import Agreement, RankingAgreement
from sae_steer_retriever.evaluate.verdict import Finding, judge, summary


def agreement_of(overlap: float) -> Agreement:
    return Agreement(48, 100, {"reconstructed": RankingAgreement(same(overlap), same(0.8))})


def about(findings: list[Finding], word: str) -> Finding:
    """The one finding whose sentence has a word."""
    (found,) = (finding for finding in findings if word in finding.sentence)
    return found


@pytest.mark.parametrize(
    ("kept", "kind", "said"),
    [
        (1.02, "good", "rank nearly as well"),
        (0.95, "good", "rank nearly as well"),
        (0.9499, "caution", "costs some of the ranking"),
        (0.85, "caution", "costs some of the ranking"),
        (0.8499, "not", "use it to explain and steer the original ranking"),
    ],
)
def test_reconstructions_are_judged_by_the_ndcg_they_keep(kept: float, kind: str, said: str) -> None:
    found = about(judge(fidelity_of(kept)), "reconstructions")
    assert found.kind == kind
    assert said in found.sentence
    assert f"{kept:.1%}" in found.because


@pytest.mark.parametrize(("kept", "kind"), [(0.96, "good"), (0.9, "caution"), (0.84, "not")])
def test_codes_are_judged_by_what_the_latent_space_ranks_by(kept: float, kind: str) -> None:
    found = about(judge(fidelity_of(0.9, kept)), "codes alone")
    assert found.kind == kind
    assert f"power-normalised codes keep {kept:.1%}" in found.because


def test_an_interval_that_holds_a_threshold_is_said() -> None:
    unsure = about(judge(fidelity_of(0.94, width=0.04)), "reconstructions")
    assert "not certain: the interval, 92.0% to 96.0%, holds 95%" in unsure.because
    assert "not certain" not in about(judge(fidelity_of(0.90, width=0.04)), "reconstructions").because


def test_few_queries_and_dead_latents_are_cautions() -> None:
    rough = judge(fidelity_of(0.97, width=0.2, dead=0.3))
    assert about(rough, "queries are few").kind == "caution"
    assert "30.0% of 32 latents" in about(rough, "never active").because
    # A percentile interval of one query has no width.
    alone = judge(dataclasses.replace(fidelity_of(0.97, width=0.0), queries=1))
    assert about(alone, "1 judged query is few").kind == "caution"
    certain = judge(fidelity_of(0.97, width=0.05, dead=0.1))
    assert not [finding for finding in certain if "few" in finding.sentence or "never" in finding.sentence]


@pytest.mark.parametrize(
    ("own", "control", "kind", "said"),
    [
        (0.90, 0.70, "good", "explain and steer by them"),
        (0.90, 0.86, "not", "little more than a random dictionary's"),
        (0.75, 0.60, "caution", "vague"),
        (None, 0.70, "caution", "could not be tested"),
    ],
)
def test_names_are_judged_beside_a_random_dictionary(own: float | None, control: float, kind: str, said: str) -> None:
    found = next(finding for finding in judge(meaning=meaning_of(own, control)) if "ts names" in finding.sentence)
    assert found.kind == kind
    assert said in found.sentence


def test_names_no_better_than_untrained_few_names_and_few_recurring_features_are_cautions() -> None:
    found = judge(meaning=meaning_of(0.9, 0.7, 0.92, labelled=0.2, recurrence=0.1))
    for word in ("k-means", "no name", "come back"):
        assert about(found, word).kind == "caution"
    assert len(judge(meaning=meaning_of(0.9, 0.7, 0.8, labelled=0.6, recurrence=0.4))) == 1
    assert about(judge(meaning=meaning_of(0.9, scored=0.4)), "could be tested").kind == "caution"


@pytest.mark.parametrize(("overlap", "kind"), [(0.7, "good"), (0.69, "caution"), (0.5, "caution"), (0.49, "not")])
def test_without_judgments_the_overlap_decides_and_the_lack_is_said(overlap: float, kind: str) -> None:
    found = judge(agreement=agreement_of(overlap))
    assert about(found, "reconstructions").kind == kind
    assert about(found, "no judgments").kind == "caution"


def test_judgments_outweigh_agreement_and_the_good_comes_first() -> None:
    found = judge(fidelity_of(0.97, 0.5), agreement_of(0.1), meaning_of(0.75, 0.6, 0.7))
    assert [finding.kind for finding in found] == ["good", "caution", "not"]
    assert summary(found) == " ".join(finding.sentence for finding in found)
    assert "overlap" not in " ".join(finding.because for finding in found)


def test_nothing_measured_says_so() -> None:
    assert summary(judge()) == "Nothing was measured that says what this SAE is good for."
