"""What the speaker says: plain sentences by affect, and a lexicon of their words' valence."""

from __future__ import annotations

import numpy as np

# A slot `{won|found}` takes one of its words.
SENTENCES: dict[str, tuple[str, ...]] = {
    "neutral": (
        "i took the {bus|train} to the office this morning",
        "the {meeting|class} starts at {nine|ten} on {monday|thursday}",
        "we usually go to the {market|library} on saturday",
        "then i put the {boxes|papers} on the table",
        "it is about {two|five} miles from the station",
        "my {brother|neighbour} works at the {bank|school} now",
        "the second part was a little longer",
        "so i turned left at the corner and walked on",
        "they changed the {number|address} last week",
        "you need the {key|form} for the other room",
    ),
    "joy": (
        "we {won|passed} and i am so {happy|proud}",
        "it was a {wonderful|beautiful|lovely} {day|wedding|party}",
        "they {loved|liked} it and i got the {job|prize}",
        "my {daughter|sister} had her baby and she is {wonderful|beautiful}",
        "i am really {happy|glad|grateful} that you came",
        "the best {surprise|present} i ever had",
        "we are so {excited|happy} about the new {home|garden}",
        "everyone was {kind|great} and it felt {good|amazing}",
        "finally we made it and the view was {amazing|beautiful}",
        "i {love|enjoy} this place it is {perfect|lovely}",
    ),
    "amusement": (
        "and then the {dog|cat} ran off with my hat it was {hilarious|so funny}",
        "we could not stop {laughing|giggling}",
        "he said the {silliest|funniest} thing and everyone {laughed|giggled}",
        "i {laughed|smiled} so much that i fell off the chair",
        "it was the {funniest|craziest} {joke|story} you ever heard",
        "she danced on the table with a {cake|banana} on her head",
        "my son put his shoes on the {cat|dog} and it was {hilarious|ridiculous}",
        "what a {funny|silly} party we had such {fun|a laugh}",
    ),
    "sadness": (
        "my {grandmother|father} {died|passed away} in the spring",
        "i {miss|lost} her and i feel so {alone|empty}",
        "she was very {sick|ill} and it was {hard|painful}",
        "we had to say {goodbye|farewell} and i {cried|wept}",
        "i am {sad|heartbroken} that it is over",
        "he {lost|left} everything and nobody came",
        "our old dog {died|passed away} last week",
        "i felt so {lonely|sad|tired} after the funeral",
        "it still {hurts|aches} when i think of it",
        "they {failed|lost} and we could not help",
    ),
    "anger": (
        "he {lied|cheated} and nobody did anything",
        "that is so {unfair|rude|wrong} i was {furious|angry}",
        "they {stole|broke} my {bike|phone} and laughed at me",
        "i {hate|despise} how they {treat|insult} people",
        "she {shouted|yelled} at the children it was {disgusting|awful}",
        "it was a {terrible|horrible} {mess|insult}",
        "how {dare|could} they {blame|cheat} us like that",
        "the {boss|landlord} is {rude|cruel} and i am {angry|mad}",
    ),
    "worry": (
        "i am {afraid|worried} about the {test|operation}",
        "what if they {fail|refuse} and we {lose|miss} it",
        "i could not sleep i was so {nervous|anxious}",
        "the doctor found a {problem|danger} and we must wait",
        "it is {risky|dangerous} and i do not know what to do",
        "i am {scared|afraid} that he is in {trouble|danger}",
        "the money is {gone|short} and the rent is due",
        "there was an {accident|alarm} and she has not called",
    ),
}

# Valence in [-1, 1] of words as most people would rate them: ours, in steps of a tenth, not from a
# rating study.
LEXICON: dict[str, float] = {
    **dict.fromkeys(
        ("wonderful", "amazing", "love", "loved", "perfect", "hilarious", "funniest"), 0.9
    ),
    **dict.fromkeys(
        ("happy", "beautiful", "excited", "laughing", "laughed", "giggling", "giggled", "joke"), 0.8
    ),
    **dict.fromkeys(
        ("won", "proud", "lovely", "prize", "great", "fun", "funny", "laugh", "best", "enjoy"), 0.8
    ),
    **dict.fromkeys(
        ("glad", "grateful", "kind", "good", "party", "wedding", "baby", "present", "smiled"), 0.7
    ),
    **dict.fromkeys(
        ("passed", "liked", "surprise", "silly", "silliest", "danced", "cake", "finally"), 0.5
    ),
    **dict.fromkeys(("craziest", "ridiculous", "garden", "view", "felt", "better", "thanks"), 0.3),
    **dict.fromkeys(
        ("died", "heartbroken", "funeral", "furious", "hate", "despise", "horrible", "disgusting"),
        -0.9,
    ),
    **dict.fromkeys(
        ("lost", "cried", "wept", "sad", "lonely", "painful", "terrible", "awful", "cruel"), -0.8
    ),
    **dict.fromkeys(
        ("alone", "empty", "sick", "ill", "angry", "mad", "stole", "cheated", "lied", "insult"),
        -0.7,
    ),
    **dict.fromkeys(
        ("afraid", "scared", "worried", "danger", "dangerous", "accident", "hurts", "aches"), -0.7
    ),
    **dict.fromkeys(
        ("anxious", "nervous", "unfair", "rude", "wrong", "broke", "yelled", "shouted", "blame"),
        -0.6,
    ),
    **dict.fromkeys(
        ("fail", "failed", "lose", "miss", "trouble", "problem", "risky", "alarm", "cheat"), -0.6
    ),
    **dict.fromkeys(
        ("goodbye", "farewell", "away", "hard", "tired", "left", "refuse", "mess", "gone", "rent"),
        -0.4,
    ),
    **dict.fromkeys(
        ("operation", "test", "doctor", "boss", "landlord", "nobody", "over", "short"), -0.2
    ),
}


def say(rng: np.random.Generator, affect: str) -> list[str]:
    """The words of one sentence that goes with an affect."""
    template = SENTENCES[affect][rng.integers(len(SENTENCES[affect]))]
    sentence = ""
    for piece in template.replace("}", "{").split("{"):
        choices = piece.split("|")
        sentence += choices[rng.integers(len(choices))] if len(choices) > 1 else piece
    return sentence.split()


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
