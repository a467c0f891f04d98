"""From one line of input to one line of answer, through jsonrpcserver, row by row of the table.

Around each row stand, once: authorising, parameters, the observers, and what an exception becomes. The library
gets requests that are valid already, one at a time, and a methods dict of ours: no bytes, no batches.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from inspect import BoundArguments, Signature, isawaitable, iscoroutinefunction
from types import TracebackType
from typing import Any, Protocol

import msgspec
from jsonrpcserver import Error, Success
from jsonrpcserver.async_dispatcher import dispatch_request as dispatch_async
from jsonrpcserver.dispatcher import create_request
from jsonrpcserver.dispatcher import dispatch_request as dispatch_plain
from jsonrpcserver.request import Request
from jsonrpcserver.result import Result
from jsonrpcserver.sentinels import NOID
from oslash.either import Left

from nexusd.domain.access import Caller
from nexusd.domain.decoding import prepare
from nexusd.domain.errors import InvalidParams, NexusError, ShuttingDown
from nexusd.domain.fields import near_match
from nexusd.rpc import codec
from nexusd.rpc.call import Call, Ended, Method

log = logging.getLogger("nexusd.rpc")

Authorise = Callable[[Caller, str], None]
Answer = bytes | None


class Observer(Protocol):
    """Who watches every call of a known method. `params` is what the caller sent, by name."""

    def admit(self, call: Call, method: Method, params: Mapping[str, Any]) -> Awaitable[object] | None:
        """The call is allowed and about to run; a NexusError refuses it. What comes back is awaited first, which
        only an audited method may be kept waiting for.
        """

    def done(self, ended: Ended) -> None:
        """What it leads to is not awaited, and what goes wrong in it changes no answer."""


class Dispatcher:
    """The table of methods, ready to be called. One line in, at most one line out, both without newline."""

    def __init__(
        self,
        methods: Iterable[Method],
        *,
        authorise: Authorise,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._authorise = authorise
        self._observers = tuple(observers)
        self.rows = tuple(methods)
        self._plain: dict[str, Callable[..., Result]] = {}
        self._async: dict[str, Callable[..., Awaitable[Result]]] = {}
        for method in self.rows:
            self._add(method)

    def answer(self, line: bytes, call: Call, batch_limit: int = 100) -> Answer | Coroutine[Any, Any, Answer]:
        """The answer, None where none is due, or a coroutine that will return either."""
        try:
            message = codec.decode(line)
        except codec.Unparsable as failure:
            return codec.problem("parse_error", str(failure))
        if type(message) is not list:
            return self._one(message, call)
        if not message:
            return codec.problem("invalid_request", "an empty batch")
        if len(message) > batch_limit:
            reason = f"a batch of {len(message)} requests; at most {batch_limit} are taken"
            return codec.problem("invalid_request", reason)
        return self._batch(message, call)

    def _add(self, method: Method) -> None:
        if method.name in self._plain or method.name in self._async:
            raise ValueError(f"two methods named {method.name}")
        prepare(method.params)
        if iscoroutinefunction(method.handler) or method.audited:
            self._async[method.name] = self._async_row(method)
        else:
            self._plain[method.name] = self._plain_row(method)

    def _plain_row(self, method: Method) -> Callable[..., Result]:
        def run(call: Call, /, *positional: Any, **named: Any) -> Result:
            with _Attempt(self._authorise, self._observers, method, call) as attempt:
                attempt.succeed(method.handler(call, attempt.params(positional, named)))
            return attempt.result

        return _open_to_all(run)

    def _async_row(self, method: Method) -> Callable[..., Awaitable[Result]]:
        async def run(call: Call, /, *positional: Any, **named: Any) -> Result:
            with _Attempt(self._authorise, self._observers, method, call) as attempt:
                params = attempt.params(positional, named)
                for admission in attempt.admissions:
                    await admission
                result = method.handler(call, params)
                attempt.succeed(await result if isawaitable(result) else result)
            return attempt.result

        return _open_to_all(run)

    def _one(self, message: Any, call: Call) -> Answer | Coroutine[Any, Any, Answer]:
        reason = codec.fault(message)
        if reason is not None:
            return codec.problem("invalid_request", reason, codec.id_of(message))
        request = create_request(message)
        if request.method in self._async:
            return self._awaited(request, call)
        return self._line(*dispatch_plain(self._plain, call, request))

    async def _awaited(self, request: Request, call: Call) -> Answer:
        return self._line(*await dispatch_async(self._async, call, request))

    async def _batch(self, messages: list[Any], call: Call) -> Answer:
        """One after the other, in order: a batch is one request in flight, and may build upon itself."""
        answers = []
        for message in messages:
            answer = self._one(message, call)
            answers.append(await answer if isinstance(answer, Coroutine) else answer)
            await asyncio.sleep(0)  # a hundred rows at once would keep everybody else waiting
        due = [answer for answer in answers if answer is not None]
        return codec.batch(due) if due else None

    def _line(self, request: Request, result: Result) -> Answer:
        if request.id is NOID:
            return None
        if not isinstance(result, Left):
            return codec.success(result._value.result, request.id)
        error = result._error
        data = error.data if isinstance(error.data, dict) else self._unknown(request.method)
        try:
            return codec.failure(error.code, error.message, data, request.id)
        # Of all that can be wrong with details, none may leave the client without an answer.
        except Exception:
            log.exception("the error that %s raised cannot be told in JSON", request.method)
            return codec.problem("internal", "the error cannot be told in JSON", request.id)

    def _unknown(self, name: str) -> dict[str, Any]:
        hint = _near(name, [*self._plain, *self._async]) or "rpc.discover lists the methods"
        return {"kind": "method_not_found", "module_id": None, "reason": f"no method {name!r}", "hint": hint}


class _Attempt:
    """One call of one row. Whatever goes wrong inside the `with` becomes its result; nothing leaks out."""

    __slots__ = ("_authorise", "_began", "_call", "_method", "_observers", "_sent", "admissions", "result")

    def __init__(
        self, authorise: Authorise, observers: tuple[Observer, ...], method: Method, call: Call
    ) -> None:
        self._authorise = authorise
        self._observers = observers
        self._method = method
        self._call = call
        self._sent: Mapping[str, Any] = {}
        self._began = time.perf_counter()
        self.admissions: list[Awaitable[object]] = []
        self.result: Result

    def params(self, positional: tuple[Any, ...], named: dict[str, Any]) -> msgspec.Struct:
        """The handler's parameters, once it is clear that the caller may and the observers agree."""
        method = self._method
        self._sent = by_name(method, positional) if positional else named
        for permission in (method.permission, method.also):
            if permission is not None:
                self._authorise(self._call.caller, permission)
        params = convert(method, self._sent)
        for observer in self._observers:
            admission = observer.admit(self._call, method, self._sent)
            if admission is not None:
                self.admissions.append(admission)
        return params

    def succeed(self, value: Any) -> None:
        self.result = Success(codec.encode(value))

    def __enter__(self) -> "_Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, where: TracebackType | None
    ) -> bool:
        for admission in self.admissions:
            if isinstance(admission, Coroutine):
                admission.close()  # of a call that was refused before this one's turn came
        if failure is None:
            self._tell_observers(None)
            return True
        if not isinstance(failure, Exception) and not _cancelled_from_within(failure):
            self._tell_observers(ShuttingDown("nexusd left before this was done"))
            return False
        error = failure if isinstance(failure, NexusError) else _internal(self._method, failure)
        self.result = Error(*codec.error_members(error))
        self._tell_observers(error)
        return True

    def _tell_observers(self, error: NexusError | None) -> None:
        elapsed_s = time.perf_counter() - self._began
        ended = Ended(self._call, self._method, self._sent, error, elapsed_s)
        for observer in self._observers:
            try:
                observer.done(ended)
            except Exception:
                log.exception("an observer failed after %s", self._method.name)


def by_name(method: Method, positional: tuple[Any, ...]) -> dict[str, Any]:
    """Positional parameters under their names, in the order of the parameters' fields."""
    names = method.params.__struct_encode_fields__
    if len(positional) > len(names):
        raise InvalidParams(f"{method.name} takes at most {len(names)} parameters, got {len(positional)}")
    return dict(zip(names, positional, strict=False))


def convert(method: Method, sent: Mapping[str, Any]) -> msgspec.Struct:
    """What was sent as the method's parameters, or InvalidParams that names the one at fault."""
    names = method.params.__struct_encode_fields__
    for name in sent:
        if name not in names:
            hint = _near(name, names) or f"{method.name} takes: {', '.join(names) or 'no parameters'}"
            raise InvalidParams(f"unknown parameter {name!r}", hint=hint)
    try:
        return msgspec.convert(sent, method.params)
    except (msgspec.ValidationError, RecursionError) as failure:
        raise InvalidParams(_in_words(str(failure))) from None


def _in_words(failure: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.lines`" with the parameter in front."""
    what, _, place = failure.partition(" - at `$")
    what = (what[:1].lower() + what[1:]).replace("object missing required field", "missing parameter")
    place = place.strip("`.")
    return f"{place}: {what}" if place else what


def _near(word: str, known: Iterable[str]) -> str | None:
    near = near_match(word, known)
    return f"did you mean {near!r}?" if near else None


def _internal(method: Method, failure: BaseException) -> NexusError:
    """What the caller may know of a defect: nothing but where the log tells of it."""
    error_id = secrets.token_hex(4)
    log.error("%s failed unexpectedly (error_id %s)", method.name, error_id, exc_info=failure)
    return NexusError(
        "the daemon met a defect of its own",
        hint=f"nexusd's log has the traceback under error_id {error_id}",
        error_id=error_id,
    )


def _cancelled_from_within(failure: BaseException) -> bool:
    """Whether something that the handler awaited was cancelled, not the call: then an answer is due."""
    if not isinstance(failure, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


class _TakesAnything(Signature):
    """jsonrpcserver works out a function's signature and binds to it at every call, which takes longer than
    all the rest. The parameters are checked by `convert`, so every row has this signature.
    """

    def bind(self, *args: Any, **kwargs: Any) -> BoundArguments:
        return _BOUND


_BOUND = BoundArguments(Signature(), OrderedDict())
_TAKES_ANYTHING = _TakesAnything()


def _open_to_all(run: Callable[..., Any]) -> Callable[..., Any]:
    run.__signature__ = _TAKES_ANYTHING  # type: ignore[attr-defined]
    return run
