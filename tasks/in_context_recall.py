"""In-context recall: pairs that come again and again, from MAD."""

from dataclasses import dataclass
from typing import ClassVar, Self

from specreg.tasks.mad_recall import RecallTask

__all__ = ["InContextRecall"]


@dataclass(frozen=True, kw_only=True)
class InContextRecall(RecallTask):
    """In-context recall: keys and their values in turn, with a map from keys to values that each sequence has anew.

    Probes recall of pairs that come back at short and long lags. Keys are 0 … ⌊V/2⌋ − 1, values ⌊V/2⌋ … V − 1. A
    sequence is k v k v …, L/2 pairs: keys uniform with repetition, each with the one value that the sequence's random
    map gives it (two keys may share a value). The last key is one of those shown, each equally likely. Where a key
    stands that was shown before, its value is the target; every other position is unscored.

    Sizes: V = 16, L = 128, 12,800 training and 1,280 test examples; varied one at a time: V = 32, 64, 128; L = 256,
    512, 1024; 6,400, 3,200, 1,600, 800 training examples. Inputs (B, L) tokens, targets (B, L), V classes.

    With `faithful`, as in the reference: training scores every next token, predictable or not, and the last value is
    not fed, so that T = L − 1. Its other choice, one query a sequence behind a copy prefix, MAD does not use.

    Chance: 1/⌈V/2⌉, any one value always. MAD's accuracy is `mad.macro_accuracy`.

    Source: Poli, Thomas, Nguyen, Ponnusamy, Deiseroth, Kersting, Suzuki, Hie, Ermon, Ré, Zhang, Massaroli (2024),
    arXiv:2403.17844.

    Raises ValueError for an odd length or one below 4, and for vocab_size < 4.
    """

    name: ClassVar[str] = "in-context-recall"
    probes: ClassVar[str] = "recall of pairs that come back"
    source: ClassVar[str] = "Poli et al. 2024, arXiv:2403.17844"

    @classmethod
    def tiny(cls) -> Self:
        """Return length 32, 16 tokens."""
        return cls(length=32, validation_examples=200, test_examples=200)
