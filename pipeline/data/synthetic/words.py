"""What the speaker says: sentences that mean something or nothing; and a lexicon.

A glad word is said in joy, in jest at a mishap's end and in irony alike: the words of a sentence do
not tell how it is meant. `script.py` says who says what, and how.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

POINT = "*"  # stands in a sentence for the word that makes the point

# A slot `{bus|train}` takes one of its words.
EMPTY = (
    "i took the {bus|train} to the office this morning",
    "the {meeting|class} starts at {nine|ten} on {monday|thursday} i think",
    "we usually go to the {market|library} on {saturday|sunday}",
    "then i put the {boxes|papers} on the table in the {kitchen|hall}",
    "it is about {two|five} miles from the station to the {bridge|river}",
    "my {brother|neighbour} works at the {bank|school} across the street now",
    "the second part was a little longer than the first",
    "so i turned {right|round} at the corner and walked on to the {square|park}",
    "they changed the {number|address} some time last {week|month}",
    "you need the {key|form} for the other room on the {first|second} floor",
    "my {sister|cousin} lives in a street with {tall|many} trees",
    "we sat by the {window|door} until about half past {six|seven}",
    "the {blue|green} one stands next to the {copier|printer} in the hall",
    "on {tuesday|wednesday} i do the shopping before i go to work",
)

# Where the word that makes the point comes from, and the sentences it stands in.
ADJECTIVE = (
    "the whole evening at my {sister|cousin} was *",
    "and the food they gave us on the {boat|train} was *",
    "so my very first day at the {bank|school} was *",
    "what he said to me on the {stairs|phone} was *",
    "the {trip|journey} to the mountains was *",
    "then the {letter|answer} came and it was *",
    "you know how that {evening|morning} ended it was *",
    "i must say the weather up there was *",
)
VERB = (
    "in the end all of us *",
    "and by the {evening|morning} my {brother|cousin} *",
    "so on the very last day the whole team *",
    "and right there in the street she *",
    "then in front of the {class|office} i *",
    "i looked round and the {children|neighbours} *",
)
NOUN = (
    "moving to the other {house|flat} was a *",
    "the last {week|month} at work was a *",
    "to all of us that call was a *",
    "well the second {half|part} of it was a *",
    "and his {visit|speech} on {sunday|monday} was a *",
    "i think for my {sister|brother} it was a *",
)
TOPIC = (
    "i wanted to tell you about the *",
    "so there is still this thing with the *",
    "you asked me last week about the *",
    "yes and then we talked about the *",
)
OUTCOME = (
    "and this morning it was *",
    "well since {yesterday|monday} it is *",
    "i looked again and it was *",
    "and you know what it is *",
    "so by the weekend it was *",
)


@dataclass(frozen=True)
class Pool:
    """Words for a slot, some of which are said in test conversations only.

    Args:
        known: said in all conversations.
        held_out: said in test conversations only, about a quarter of all.
    """

    known: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """All of them."""
        return self.known + self.held_out

    def draw(self, rng: np.random.Generator, held_out: bool) -> str:
        """One of them; with `held_out` one of all."""
        choices = self.words if held_out else self.known
        return choices[rng.integers(len(choices))]


# By sentences, then by sign: words that are good (1) and bad (-1) to most people.
VALENCE_WORDS: tuple[tuple[tuple[str, ...], dict[int, Pool]], ...] = (
    (
        ADJECTIVE,
        {
            1: Pool(
                ("wonderful", "lovely", "perfect", "amazing", "great", "beautiful"),
                ("brilliant", "delightful"),
            ),
            -1: Pool(
                ("terrible", "awful", "horrible", "painful", "cruel", "disgusting"),
                ("dreadful", "miserable"),
            ),
        },
    ),
    (
        VERB,
        {
            1: Pool(
                ("won", "celebrated", "cheered", "danced", "succeeded", "rejoiced"),
                ("triumphed", "sang"),
            ),
            -1: Pool(
                ("lost", "failed", "cried", "suffered", "crashed", "wept"),
                ("despaired", "drowned"),
            ),
        },
    ),
    (
        NOUN,
        {
            1: Pool(
                ("joy", "blessing", "treat", "pleasure", "success", "delight"),
                ("triumph", "dream"),
            ),
            -1: Pool(
                ("disaster", "nightmare", "shame", "misery", "failure", "torment"),
                ("catastrophe", "tragedy"),
            ),
        },
    ),
)
# What is named, and whether one likes to have it.
TOPICS = {
    1: Pool(("money", "ring", "puppy", "passport", "bicycle", "medal"), ("necklace", "kitten")),
    -1: Pool(("pain", "fever", "debt", "rash", "cough", "mould"), ("leak", "itch")),
}
# Whether it is there now (1) or not (-1).
OUTCOMES = {
    1: Pool(("back", "here", "around"), ("returned",)),
    -1: Pool(("gone", "missing", "nowhere"), ("vanished",)),
}
FILLERS = ("um", "uh")

# Valence in [-1, 1] of words as most people would rate them: ours, in steps of a tenth, not from a
# rating study. Raters read recordings with it, too: it has more words than are said here.
LEXICON: dict[str, float] = {
    **dict.fromkeys(
        ("wonderful", "amazing", "love", "loved", "perfect", "hilarious", "funniest"), 0.9
    ),
    **dict.fromkeys(("brilliant", "rejoiced", "triumph", "triumphed", "joy", "delight"), 0.9),
    **dict.fromkeys(
        ("happy", "beautiful", "excited", "laughing", "laughed", "giggling", "giggled", "joke"), 0.8
    ),
    **dict.fromkeys(
        ("won", "proud", "lovely", "prize", "great", "fun", "funny", "laugh", "best", "enjoy"), 0.8
    ),
    **dict.fromkeys(("delightful", "celebrated", "cheered", "succeeded", "blessing"), 0.8),
    **dict.fromkeys(("success", "pleasure", "treat", "danced", "sang", "dream"), 0.7),
    **dict.fromkeys(
        ("glad", "grateful", "kind", "good", "party", "wedding", "baby", "present", "smiled"), 0.7
    ),
    **dict.fromkeys(("puppy", "kitten", "medal"), 0.5),
    **dict.fromkeys(("passed", "liked", "surprise", "silly", "silliest", "cake", "finally"), 0.5),
    **dict.fromkeys(("craziest", "ridiculous", "garden", "view", "felt", "better", "thanks"), 0.3),
    **dict.fromkeys(("money", "ring", "necklace"), 0.3),
    **dict.fromkeys(
        ("died", "heartbroken", "funeral", "furious", "hate", "despise", "horrible", "disgusting"),
        -0.9,
    ),
    **dict.fromkeys(("disaster", "nightmare", "catastrophe", "tragedy", "torment"), -0.9),
    **dict.fromkeys(
        ("lost", "cried", "wept", "sad", "lonely", "painful", "terrible", "awful", "cruel"), -0.8
    ),
    **dict.fromkeys(("dreadful", "miserable", "misery", "suffered", "despaired", "drowned"), -0.8),
    **dict.fromkeys(
        ("alone", "empty", "sick", "ill", "angry", "mad", "stole", "cheated", "lied", "insult"),
        -0.7,
    ),
    **dict.fromkeys(
        ("afraid", "scared", "worried", "danger", "dangerous", "accident", "hurts", "aches"), -0.7
    ),
    **dict.fromkeys(("failed", "failure", "crashed", "shame"), -0.7),
    **dict.fromkeys(
        ("anxious", "nervous", "unfair", "rude", "wrong", "broke", "yelled", "shouted", "blame"),
        -0.6,
    ),
    **dict.fromkeys(
        ("fail", "lose", "miss", "trouble", "problem", "risky", "alarm", "cheat", "pain"), -0.6
    ),
    **dict.fromkeys(("goodbye", "farewell", "hard", "tired", "refuse", "mess", "rent"), -0.4),
    **dict.fromkeys(("fever", "debt", "rash", "mould", "leak", "itch", "cough"), -0.4),
    **dict.fromkeys(("operation", "test", "doctor", "boss", "landlord", "nobody", "short"), -0.2),
}


def say(rng: np.random.Generator, sentences: tuple[str, ...], point: str = "") -> list[str]:
    """The words of one of `sentences`, with `point` where it has its `POINT`."""
    template = sentences[rng.integers(len(sentences))]
    sentence = ""
    for piece in template.replace("}", "{").split("{"):
        choices = piece.split("|")
        sentence += choices[rng.integers(len(choices))] if len(choices) > 1 else piece
    return sentence.replace(POINT, point).split()


def syllables(word: str) -> str:
    """The vowel of each syllable, counted by vowel groups: "beautiful" -> "eiu".

    A final e is silent: "table" -> "a".
    """
    spoken = word[:-1] if word.endswith("e") and len(word) > 3 else word
    vowels = ""
    after_vowel = False
    for letter in spoken:
        is_vowel = letter in "aeiouy"
        if is_vowel and not after_vowel:
            vowels += letter
        after_vowel = is_vowel
    return vowels or "e"
