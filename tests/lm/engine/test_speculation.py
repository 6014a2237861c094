"""Guesses: from the last place that reads the same, fewer when they are bad, none while they rest."""

from deepwell.lm.engine.speculation import Drafter, Trust


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


def test_a_guess_is_as_long_as_is_worth_its_time() -> None:
    drafter, asked = Drafter(), []

    def worth(rate: float, most: int) -> int:
        asked.append((round(rate, 2), most))
        return 2

    text = [1, 2, 3] * 4
    assert drafter.propose(text, 99, worth) == [1, 2]
    drafter.learn(text, 2, 0)
    assert drafter.propose([*text, 1], 99, worth) == [2, 3]
    assert asked == [(0.7, 4), (0.47, 2)]


def test_what_does_not_pay_rests_and_is_tried_again_when_it_was_long_ago() -> None:
    trust = Trust(believed=0.7, length=4, longest=16)
    trust.learn(10, 4, 1)
    trust.learn(11, 4, 1)
    low = trust.rate
    assert low < 0.62
    count, tries = 12, []
    while trust.rate < 0.69:
        if not trust.resting(count):
            assert trust.allowed(count, 9, lambda rate, most: 0) == 0
            tries.append(count)
        count += 1
    assert tries == [12, 13, 16, 23, 38, 69]
    assert trust.allowed(count, 9, lambda rate, most: most) == 0  # it rests
    assert trust.allowed(count + 99, 9, lambda rate, most: most) == 2


def test_text_and_module_are_trusted_apart() -> None:
    drafter = Drafter()
    text = [1, 2, 3] * 4
    assert drafter.depth(text, 9) == 1
    drafter.learn(text, 1, 1)
    assert drafter.depth(text, 9) == 2
    drafter.learn(text, 2, 2)
    assert drafter.depth(text, 9) == 4
    drafter.learn(text, 4, 4)
    assert drafter.depth(text, 9) == 4
    assert drafter.depth(text, 3) == 3
    assert len(drafter.propose(text, 9)) == 4
    drafter.learn(text, 4, 0)
    assert drafter.propose(text, 9) == []
    assert drafter.depth(text, 9) == 4
    assert drafter.depth(text, 0) == 0
