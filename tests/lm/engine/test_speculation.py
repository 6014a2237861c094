"""Guesses: from the last place that reads the same, fewer when they are bad, none while they rest."""

from deepwell.lm.engine.speculation import Drafter


def test_a_guess_is_what_followed_the_longest_and_latest_agreement() -> None:
    text = [1, 2, 3, 4, 5, 9, 2, 3, 6, 7, 8, 1, 2, 3]
    assert Drafter().propose(text, 2) == [4, 5]  # three tokens agree with the beginning, and two with a later place
    assert Drafter().propose([9, 2, 3, 6, 0, 2, 3, 7, 1, 2, 3], 1) == [7]
    assert Drafter().propose([1, 2, 3, 4], 4) == []
    assert Drafter().propose([1, 2], 4) == []
    assert Drafter().propose(text, 0) == []


def test_what_goes_round_in_circles_is_guessed_to_go_on() -> None:
    assert Drafter().propose([7, 1, 2, 1, 2, 1, 2], 4) == [1, 2, 1, 2]
    assert Drafter().propose([5, 5, 5, 5], 3) == [5, 5, 5]


def test_a_growing_text_is_found_as_a_whole_one_is() -> None:
    text = [3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4, 1, 5, 3, 1, 4]
    growing = Drafter()
    for end in range(1, len(text) + 1):
        assert growing.propose(text[:end], 3) == Drafter().propose(text[:end], 3)


def test_good_guesses_grow_bad_ones_shrink_and_many_bad_ones_rest_longer_each_time() -> None:
    drafter, text = Drafter(), [1, 2, 3] * 30
    assert len(drafter.propose(text, 99)) == 4
    drafter.learn(text, 4, 4)
    assert len(drafter.propose(text, 99)) == 8
    drafter.learn(text, 8, 2)
    assert len(drafter.propose(text, 99)) == 3
    rests = []
    for _ in range(8):
        drafter.learn(text, 3, 0)
        assert drafter.resting(text)
        assert drafter.propose(text, 99) == []
        rest = 0
        while drafter.resting(text):
            text.append(text[-3])
            rest += 1
        rests.append(rest)
    assert rests == [1, 3, 7, 15, 31, 63, 63, 63]
    assert len(drafter.propose(text, 99)) == 1
    assert (drafter.counts.proposed, drafter.counts.accepted) == (4 + 8 + 24, 4 + 2)
    drafter.learn(text, 1, 1)
    assert not drafter.resting(text)
