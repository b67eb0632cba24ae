"""The program's generators and coroutines as the tests see them: generators and coroutines that run on over there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Generator
    from typing import Any

    from reward.code.inside.asking import Asker

SINGLE = 8  # items that are asked for one by one, before several at once
MAX_AHEAD = 4096


class Target:
    """A generator or coroutine of the program, by its number."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


def generator(program: Asker, target: Target) -> Generator[Any, Any, Any]:
    """Asks for more and more items at once, as long as the test does nothing but take them."""
    ahead: list[Any] = []
    is_done, result, taken = False, None, 0
    while True:
        if not ahead and not is_done:
            wanted = 1 if taken < SINGLE else min(taken, MAX_AHEAD)
            items, is_done, result = _reply(program.ask("next", target, wanted))
            ahead = items[::-1]
        if not ahead:
            return result
        taken += 1
        try:
            sent = yield ahead.pop()
        except GeneratorExit:
            program.forget(target.number)
            raise
        except BaseException as error:
            _alone(program, ahead)
            items, is_done, result = _reply(program.ask("throw", target, error))
            ahead = items
        else:
            if sent is not None:
                _alone(program, ahead)
                items, is_done, result = _reply(program.ask("send", target, sent))
                ahead = items


def _reply(reply: Any) -> tuple[list[Any], bool, Any]:
    items, is_done, result = reply
    if type(items) is not list or type(is_done) is not bool:
        raise TypeError("no items")
    return items, is_done, result


def _alone(program: Asker, ahead: list[Any]) -> None:
    if ahead:
        program.deny("ungradable", "a test sends values to a generator after taking many")


async def stepped(program: Asker, target: Any, name: str, error: BaseException | None = None) -> Any:
    """What an awaitable gives, or a method that is awaited; meanwhile the tests' other coroutines have their turns."""
    while True:
        is_done, result = program.ask("step", target, name, error)
        if is_done:
            return result
        try:
            await _Pause()
        except BaseException:
            program.ask("cancel", target)
            raise


class _Pause:
    def __await__(self) -> Generator[None, None, None]:
        yield


def coroutine(program: Asker, target: Target) -> Coroutine[Any, Any, Any]:
    return stepped(program, target, "__await__")


async def async_generator(program: Asker, target: Target) -> AsyncIterator[Any]:
    while True:
        try:
            item = await stepped(program, target, "__anext__")
        except StopAsyncIteration:
            return
        yield item


MAKE = {"generator": generator, "iterator": generator, "coroutine": coroutine, "async_generator": async_generator}
