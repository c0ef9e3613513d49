"""A share of the fuzzer for every run of the tests; ``python -m honesty.fuzz 10000`` is more."""

import pytest

from honesty import fuzz


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("generator", [fuzz.inputs, fuzz.configs])
def test_every_input_ends_in_a_right_answer_or_an_error_of_ours(generator, seed):
    assert [str(finding) for finding in generator(100, seed)] == []


def test_the_fuzzer_finds_what_is_wrong():
    """Each kind of finding, from a call that has it."""
    from honesty.finding import Case, examine

    def fails():
        raise KeyError("x")

    def long():
        from implicitcore import InputError

        class Long(InputError):
            def __str__(self):
                return "x" * 6000

        raise Long

    found = [
        examine(Case("a", lambda: 1, lambda found: "wrong" if found == 1 else ""), "0/1"),
        examine(Case("b", fails, lambda found: ""), "0/2"),
        examine(Case("c", fails, lambda found: "", fails), "0/3"),
        examine(Case("d", long, lambda found: ""), "0/4"),
        examine(Case("e", lambda: 1, lambda found: ""), "0/5"),
    ]
    assert [finding and finding.kind for finding in found] == ["lie", "bare", None, "text", None]
