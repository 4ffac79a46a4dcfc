"""The one exception of this room."""


class ArtifactError(ValueError):
    """An artifact was refused: the message says the cause with its values, the consequence and the remedy.

    **Arguments:** `cause`, `consequence`, `remedy`: a sentence each, without the final full stop. They stay readable
    as attributes of the same names.

        >>> print(ArtifactError("the file is empty", "It holds no optimizer", "Copy it again"))
        the file is empty. It holds no optimizer. Copy it again.
    """

    def __init__(self, cause: str, consequence: str, remedy: str) -> None:
        super().__init__(cause, consequence, remedy)
        self.cause = cause
        self.consequence = consequence
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.cause}. {self.consequence}. {self.remedy}."

    def at(self, where: object) -> "ArtifactError":
        """Return the same error with the place in front of its cause, say the path of the file."""
        return ArtifactError(f"{where}: {self.cause}", self.consequence, self.remedy)
