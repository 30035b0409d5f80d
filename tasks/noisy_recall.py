"""Noisy in-context recall: pairs that come again, noise between them, from MAD."""

from dataclasses import dataclass
from typing import ClassVar, Self

from specreg.tasks.mad_recall import RecallTask

__all__ = ["NoisyRecall"]


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(RecallTask):
    """Noisy in-context recall: as `in-context-recall`, with noise in the place of some pairs.

    Probes recall with what must be ignored between. The highest N of the V tokens are noise, the lower half of the
    others keys, the upper half values. Each pair but the last is with probability `noise` two noise tokens instead,
    uniform; one slot, each equally likely, is protected, so that there is a key to ask for.

    Sizes: V = 32 with N = 16, L = 128, noise 0.2, 12,800 training and 1,280 test examples; varied one at a time:
    V = 48, 80, 144 with N = 16; L = 256, 512, 1024; 6,400, 3,200, 1,600, 800 training examples; noise 0.4, 0.6, 0.8.
    Inputs (B, L) tokens, targets (B, L), V classes.

    With `faithful`, as in the reference: training scores every next token, noise too; the last value is not fed, so
    that T = L − 1; and the protected slot may be the last, which needs no protection. Where all the others are noise,
    which is then possible, the reference raises; here the first slot holds a pair.

    Chance: one over the number of values, any one value always. MAD's accuracy is `mad.macro_accuracy`.

    Source: Poli et al. (2024), arXiv:2403.17844.

    Raises ValueError for an odd length or one below 4, noise outside [0, 1), noise_tokens < 1 and
    vocab_size < noise_tokens + 4.
    """

    name: ClassVar[str] = "noisy-recall"
    probes: ClassVar[str] = "recall with noise between"
    source: ClassVar[str] = "Poli et al. 2024, arXiv:2403.17844"

    vocab_size: int = 32
    """Vocabulary V, noise tokens among it."""
    noise: float = 0.2
    """The probability that a pair is noise instead, in [0, 1)."""
    noise_tokens: int = 16
    """How many of the tokens are noise, N."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0.0 <= self.noise < 1.0:
            raise ValueError(f"noise is {self.noise}; it is a probability in [0, 1)")
        if self.noise_tokens < 1:
            raise ValueError(f"noise_tokens is {self.noise_tokens}; give 1 or more")
        super().__post_init__()

    @classmethod
    def tiny(cls) -> Self:
        """Return length 32, 16 tokens and 4 of noise."""
        return cls(vocab_size=20, noise_tokens=4, length=32, validation_examples=200, test_examples=200)
