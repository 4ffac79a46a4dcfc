"""Result codes: numbers that can live in arrays, and the sentence that each stands for."""

import enum


class Code(enum.IntEnum):
    """A number with a sentence."""

    sentence: str

    def __new__(cls, number: int, sentence: str) -> "Code":
        member = int.__new__(cls, number)
        member._value_ = number
        member.sentence = sentence
        return member


class Result(Code):
    """What a guard decided last, and why, or which border of an envelope was crossed last."""

    UNDECIDED = 0, "Nothing was decided: no trial is over yet, no losses were given, or an envelope left none to try."
    LEARNED_WON = 1, "From one point the learned optimizer reached a lower loss than the fallback: it moves the params."
    LEARNED_LOST = 2, "From one point the learned optimizer did not clearly beat the fallback: that moves the params."
    LOSS_ROSE = 3, "The loss rose under the learned optimizer: the fallback went on from the last good point."
    NOT_FINITE = (
        4,
        "A loss or gradient of the learned optimizer was not finite: the fallback took over.",
    )
    OUTSIDE_SIZE = 5, "There are far more or far fewer params than the optimizer was trained on."
    OUTSIDE_SCALE = 6, "Most gradients are of sizes that the optimizer was not trained on."
    OUTSIDE_HORIZON = 7, "The run is longer than those that the optimizer was trained on."
    STALLED = 8, "The loss stopped falling under the learned optimizer: the fallback went on from there."
    LEARNED_KEPT = 9, "From one point the fallback did not clearly beat the learned optimizer: that goes on."

    @property
    def of_border(self) -> str:
        """The sentence, of what an envelope saw."""
        return "The run was never outside of what the optimizer was trained on." if self == 0 else self.sentence
