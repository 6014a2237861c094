"""Correct paraphrases must survive the check, and invented figures, names and denials must not.

The claims are what careful and careless language models write about these passages. The passages are invented.
"""

import pytest

from deepwell.library.answers import claims, prompt
from deepwell.library.answers.facts import contradicts, facts_stand, unknown_names
from deepwell.library.answers.verify import Passage

HIVES = "The beekeeper counted forty hives behind the chapel in the spring of 1987."
BRIDGE = (
    "The Severn Bridge was opened on 8 September 1966 by Queen Elizabeth II. Construction took three and a half years "
    "and cost £8 million. It was not designed for the lorries of today, and in 1977 the deck was found to be too weak."
)
CAT = (
    "Biscuit came to the island in March 2019 in a crate of onions. She is a ginger tabby, weighs 4.6 kilograms, and "
    "has caught one mouse. She must not go into the glasshouse."
)
BIRDS = (
    "Of 438 burrows examined, 312 were occupied, which is 71 per cent. Adults carried sand eels in nine loads of ten. "
    "The count was led by Dr Ines Vale of the University of Bergen in Norway."
)
TRADE = (
    "Revenue rose to $2.4 billion in the year to March 2021, up from $1,950 million. The United Kingdom bought two "
    "dozen turbines. No dividend was paid in 2020, although profits had doubled."
)
PASSAGES = [Passage(n, text) for n, text in enumerate((HIVES, BRIDGE, CAT, BIRDS, TRADE), 1)]
PASSAGES.append(Passage(6, "It is 31 metres high and was first lit in 1854.", about="lighthouse of Harrow Skerry"))

TRUE = [
    ("How many hives were there?", "The beekeeper counted 40 hives. [1]"),
    ("How many hives were there?", "In the spring of 1987 there were forty hives behind the chapel. [1]"),
    ("How many hives were there?", 'There were forty. [1]\n\n[1] "counted forty hives"'),
    ("Where were the hives?", 'They stood behind the chapel. [1]\n\n[1] "forty hives behind the chapel"'),
    ("When did the bridge open?", "It was opened on 8 September 1966. [2]"),
    ("When did the bridge open?", "The Severn Bridge opened in September 1966. [2]"),
    ("When did the bridge open?", 'In 1966. [2]\n\n[2] "opened on 8 September 1966"'),
    ("Who opened the bridge?", 'Queen Elizabeth II opened it. [2]\n\n[2] "by Queen Elizabeth II"'),
    ("Who opened the bridge?", "The Queen opened the Severn Bridge. [2]"),
    ("What did the bridge cost?", "Construction cost £8 million. [2]"),
    ("What did the bridge cost?", 'It cost eight million pounds. [2]\n\n[2] "cost £8 million"'),
    ("What did the bridge cost?", 'Building it cost £8m. [2]\n\n[2] "cost £8 million"'),
    ("Was the deck strong?", "The deck was found to be too weak in 1977. [2]"),
    ("Was the deck strong?", 'No. The deck was too weak. [2]\n\n[2] "deck was found to be too weak"'),
    ("Was it made for lorries?", "The bridge was not designed for the lorries of today. [2]"),
    ("Was it made for lorries?", 'It was never meant for them. [2]\n\n[2] "not designed for the lorries of today"'),
    ("When did the cat come?", "Biscuit came in March 2019. [3]"),
    ("When did the cat come?", "She came to the island in a crate of onions in 2019. [3]"),
    ("What does the cat weigh?", "The cat weighs 4.6 kilograms. [3]"),
    ("What did the cat catch?", "Biscuit has caught only one mouse. [3]"),
    ("What did the cat catch?", 'One mouse. [3]\n\n[3] "has caught one mouse"'),
    ("May the cat enter the glasshouse?", "She must not go into the glasshouse. [3]"),
    ("May the cat enter?", 'The cat is kept out of the glasshouse. [3]\n\n[3] "must not go into the glasshouse"'),
    ("How many burrows were occupied?", "312 of 438 burrows were occupied. [4]"),
    ("How many burrows were occupied?", 'Seventy-one percent. [4]\n\n[4] "which is 71 per cent"'),
    ("How many burrows were occupied?", "Of the 438 burrows examined, 312 (71 %) were occupied. [4]"),
    ("What do they eat?", "Adults carried sand eels in 9 of 10 loads. [4]"),
    ("What do they eat?", 'Mostly sand eels. [4]\n\n[4] "Adults carried sand eels"'),
    ("Who led the count?", "Ines Vale led the count. [4]"),
    ("Who led the count?", 'It was led by Dr. Vale, a Norwegian scholar. [4]\n\n[4] "led by Dr Ines Vale"'),
    ("Who led the count?", "The count was led by Dr Ines Vale of Bergen University. [4]"),
    ("What was the revenue?", "Revenue rose to $2.4 billion. [5]"),
    ("What was the revenue?", 'It rose to 2,400 million dollars. [5]\n\n[5] "Revenue rose to $2.4 billion"'),
    ("What was the revenue?", 'Up from $1.95 billion. [5]\n\n[5] "up from $1,950 million"'),
    ("Who bought turbines?", 'The UK bought 24 turbines. [5]\n\n[5] "bought two dozen turbines"'),
    ("Who bought turbines?", "The United Kingdom bought two dozen turbines. [5]"),
    ("Was a dividend paid?", "No dividend was paid in 2020. [5]"),
    ("Was a dividend paid?", 'There was none in 2020. [5]\n\n[5] "No dividend was paid in 2020"'),
    ("Did profits grow?", "Profits had doubled. [5]"),
    ("When was it lit?", "The lighthouse of Harrow Skerry was first lit in 1854. [6]"),
    ("How high is the lighthouse?", 'The Harrow Skerry light is 31 metres high. [6]\n\n[6] "It is 31 metres high"'),
    ("Was it in the sixties?", 'The bridge was opened in the 1960s. [2]\n\n[2] "opened on 8 September 1966"'),
    ("Wo ist das?", 'Die Brücke wurde im Jahr 1966 eröffnet. [2]\n\n[2] "opened on 8 September 1966"'),
    ("How high is it?", 'The lighthouse is 31 m high. [6]\n\n[6] "It is 31 metres high"'),
    ("What happened?", "Several hives stood behind the chapel in 1987. The beekeeper counted them. [1]"),
]

FALSE = [
    ("How many hives?", 'The beekeeper had ninety hives. [1]\n\n[1] "ninety hives behind the chapel"', "ninety"),
    ("How many hives?", 'There were ninety hives. [1]\n\n[1] "counted forty hives behind"', "ninety"),
    ("How many hives?", "The beekeeper counted four hundred hives behind the chapel. [1]", "hundred"),
    ("How many hives?", "The beekeeper counted two dozen hives behind the chapel. [1]", "dozen"),
    ("How many hives?", "The beekeeper counted forty-one hives behind the chapel in 1987. [1]", "forty-one"),
    ("How many hives?", "The beekeeper did not count the forty hives behind the chapel. [1]", "not"),
    ("How many hives?", "The beekeeper never counted forty hives in the spring of 1987.", "never"),
    ("Who opened it?", 'Prince Philip opened it. [2]\n\n[2] "opened on 8 September 1966"', "Philip"),
    ("Who opened it?", 'Napoleon opened it. [2]\n\n[2] "opened on 8 September 1966"', "Napoleon"),
    ("Who opened it?", "The Severn Bridge was opened on 8 September 1966 by Queen Victoria. [2]", "Victoria"),
    ("When?", "The Severn Bridge was opened in October 1966. [2]", "October"),
    ("What did it cost?", 'It cost £8 billion. [2]\n\n[2] "cost £8 million"', "billion"),
    ("What did it cost?", 'It cost nine million. [2]\n\n[2] "cost £8 million"', "nine"),
    ("Lorries?", "The Severn Bridge was designed for the lorries of today. [2]", "designed"),
    ("Where?", 'Biscuit lives in Glasgow. [3]\n\n[3] "Biscuit came to the island"', "Glasgow"),
    ("The cat?", "She must go into the glasshouse. [3]", "must go"),
    ("The cat?", 'She has caught fifteen. [3]\n\n[3] "has caught one mouse"', "fifteen"),
    ("Who led it?", 'It was led by Dr Vale of Oxford. [4]\n\n[4] "led by Dr Ines Vale"', "Oxford"),
    ("Who led it?", 'Tomas Berg led the count. [4]\n\n[4] "The count was led by"', "Berg"),
    ("How many?", 'Eighty percent were occupied. [4]\n\n[4] "312 were occupied"', "Eighty"),
    ("Revenue?", 'Revenue rose to $2.4 million. [5]\n\n[5] "Revenue rose to $2.4 billion"', "million"),
    ("Dividend?", "A dividend was paid in 2020. [5]", "A dividend"),
    ("Who bought?", 'The USA bought turbines. [5]\n\n[5] "bought two dozen turbines"', "USA"),
    ("Hives?", 'The beekeeper kept hives near the church. [1]\n\n[1] "hives near the old church"', "church"),
]


def check(question, reply):
    return claims.check(prompt.parse(reply), question, PASSAGES)


@pytest.mark.parametrize(("question", "reply"), TRUE)
def test_a_correct_paraphrase_survives(question, reply):
    checked = check(question, reply)
    assert (checked.left_out, checked.dropped) == (0, 0), checked


@pytest.mark.parametrize(("question", "reply", "invented"), FALSE)
def test_an_invention_does_not_survive(question, reply, invented):
    assert invented not in check(question, reply).text


@pytest.mark.parametrize(
    ("claim", "source", "stands"),
    [
        ("forty-three seals", "I counted 43 grey seals", True),
        ("43 seals", "forty three grey seals", True),
        ("two hundred and five", "205", True),
        ("a dozen eggs", "12 eggs", True),
        ("half a dozen eggs", "six eggs", True),
        ("in nineteen eighty-four", "1984", True),
        ("three thousand", "3,000", True),
        ("1.5 million", "1,500,000 people", True),
        ("the new one is better", "the new engine is better", True),
        ("no one came", "nobody came", True),
        ("one hundred", "ten", False),
        ("two dozen", "two boxes", False),
        ("ninety", "forty", False),
        ("three hundred", "three", False),
        ("5 degrees", "-5 degrees", True),
        ("-5 degrees", "5 degrees", False),
    ],
)
def test_numbers_are_compared_by_value(claim, source, stands):
    assert facts_stand(claim, source, "") is stands


@pytest.mark.parametrize(
    ("claim", "source", "unknown"),
    [
        ("It was built by Brunel.", "built by Isambard Brunel", ()),
        ("It was built by Telford.", "built by Isambard Brunel", ("Telford",)),
        ("British trade grew.", "the trade of Britain grew", ()),
        ("The U.S. paid.", "the United States paid", ()),
        ("It opened in Sept. 1966.", "in September 1966", ()),
        ("It opened in June.", "on 2024-06-04", ()),
        ("Zoë wrote it.", "ZOE WROTE IT", ()),
        ("Das ist ein Haus und nicht der Turm.", "this is a house", ()),
    ],
)
def test_names_must_stand_in_the_source(claim, source, unknown):
    assert unknown_names(claim, source, "") == unknown


def test_a_claim_may_rest_on_two_neighbouring_sentences():
    page = Passage(1, "4th November 1911. The barometer fell to 27.94 inches. The goat is missing.")
    checked = claims.check(prompt.parse("The barometer fell to 27.94 inches on 4 November 1911 [1]."), "", [page])
    assert [quote.text for quote in checked.quotes] == ["4th November 1911. The barometer fell to 27.94 inches."]


def test_denial_is_looked_for_where_the_claim_speaks():
    opened = "It was opened in 1966, though not by the Queen."
    assert not contradicts("It was opened in 1966.", opened)
    assert contradicts("The Queen opened it.", opened)
    assert not contradicts("It has no tolls.", "There are no tolls.")
    assert not contradicts("The road is wide.", "Not only the road is wide.")
    assert contradicts("The road isn't wide.", "The road is wide.")
