"""What copying and selective copying share: data tokens, blanks, and markers at which the data are repeated."""

from dataclasses import dataclass

from specreg.tasks.task import TokenTask

__all__ = ["CopyTask"]


@dataclass(frozen=True, kw_only=True)
class CopyTask(TokenTask):
    """M data tokens and L blanks, then M markers. Token 0 is the blank, A − 1 the marker, 1 … A − 2 are data."""

    blanks: int = 100
    """Blank steps L before the markers."""
    tokens: int = 10
    """Data tokens M, and as many markers."""
    alphabet: int = 10
    """Distinct tokens A, the blank and the marker among them."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.blanks < 0 or self.tokens < 1:
            given = f"blanks is {self.blanks} and tokens {self.tokens}"
            raise ValueError(f"{given}; give 0 or more blanks and 1 or more tokens")
        if self.alphabet < 4:
            raise ValueError(f"alphabet is {self.alphabet}; blank and marker take two: give 4 or more")

    @property
    def vocab_size(self) -> int:
        """The alphabet A."""
        return self.alphabet

    @property
    def max_length(self) -> int:
        """The length L + 2M of every sequence."""
        return self.blanks + 2 * self.tokens

    @property
    def chance(self) -> float:
        """One over the number of data tokens, 1/(A − 2)."""
        return 1.0 / (self.alphabet - 2)

    def token_name(self, token: int) -> str:
        """Return "·" for the blank, "?" for the marker, else the number."""
        return {0: "·", self.alphabet - 1: "?"}.get(token, str(token))
