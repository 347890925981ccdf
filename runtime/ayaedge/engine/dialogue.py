"""What is asked: messages and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ayaedge.images.encoded_image import Picture
from ayaedge.text.prompt import Message


@dataclass(frozen=True)
class Dialogue:
    """A conversation up to the question that is to be answered."""

    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    goes_on: bool = False
    """Whether more questions are likely to follow, so that what is known of it is worth keeping."""

    @property
    def questions(self) -> int:
        """How many there are."""
        return sum(message.role == "user" for message in self.messages)

    def without_oldest(self, count: int) -> Dialogue:
        """The same without its `count` oldest questions, their pictures and their answers; the last one must stay."""
        starts = [i for i, message in enumerate(self.messages) if message.role == "user"]
        first, kept = starts[0], starts[count]
        before = sum(message.images for message in self.messages[:first])
        gone = sum(message.images for message in self.messages[first:kept])
        return replace(
            self,
            messages=self.messages[:first] + self.messages[kept:],
            pictures=self.pictures[:before] + self.pictures[before + gone :],
        )
