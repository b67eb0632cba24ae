"""What handles and lazy values need of the tests' side of a link: questions to the program, and ways to end a test."""

from __future__ import annotations

from reward.code.inside.link import Side

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Asker(Side):
    """The tests' side, as far as the objects that stand for the program's know it."""

    raised: BaseException | None = None  # the last error of the program

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What the program answers, or raises."""
        raise NotImplementedError

    def deny(self, status: str, detail: str) -> NoReturn:
        """Ends the test at hand, whatever it catches."""
        raise NotImplementedError

    def forget(self, number: int) -> None:
        """The tests do not read the generator of this number on: the program may close it."""
        raise NotImplementedError
