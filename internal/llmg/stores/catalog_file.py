"""A catalog in a file, for the processes of one machine: `catalog.yaml`, and beside it `catalog.yaml.audit.jsonl`.

The file holds what people write. The log of changes says which version that is: each of its lines has the version
after the change and the SHA-256 of the file then, and who reads or writes the file holds a lock on the log. A file
that is not the one of the last line was changed by somebody else, by hand perhaps, or by a writer who died between
file and log: whoever sees it first logs that, as `Edit`, and whether it can be used. So each version is in the log,
once.

The file is replaced, never written to: it is whole whenever somebody reads it, whoever dies meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Final, NoReturn, TypeVar

import msgspec
import structlog

from llmg.core.errors import Failure, Kind, invalid
from llmg.ports import AuditEntry, Conflict, Document
from llmg.stores import catalog_text

log = structlog.get_logger("llmg.catalog")

T = TypeVar("T")

EDIT: Final = "Edit"
"""The method of a change that was not asked of the gateway."""

_BLOCK: Final = 1 << 16
_UNWRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOTHING: Final = ""  # the digest of a file that is not there
_Stat = tuple[int, ...]


class _Line(AuditEntry, frozen=True, kw_only=True):
    """A line of the log: `sha256` is the file's after the change."""

    sha256: str


_line_decoder: Final = msgspec.json.Decoder(_Line)
_entry_decoder: Final = msgspec.json.Decoder(AuditEntry)


def _anything(tenants: dict[str, Any]) -> None:
    """Takes all that can be read."""


class FileCatalog:
    """See CatalogStore. `path` may not be there yet: then the catalog is empty."""

    def __init__(
        self, path: Path, *, check: Callable[[dict[str, Any]], None] = _anything, interval: float = 0.25
    ) -> None:
        """`check(tenants)` raises Failure where they can't be used; called on a thread. `interval`: seconds between
        looks at the file. A change is told when it was seen unchanged twice."""
        self._path = path.absolute()
        self._check = check
        self._interval = interval
        self._own = BytesIO()
        self._own_lock = Lock()

    async def load(self) -> Document:
        """See CatalogStore."""
        return await asyncio.to_thread(self._load)

    async def save(self, document: Document, entry: AuditEntry, /) -> None:
        """See CatalogStore."""
        await asyncio.to_thread(self._save, document, entry)

    async def watch(self, seen: int, changed: Callable[[int], Awaitable[None]], /) -> NoReturn:
        """See CatalogStore."""
        before: _Stat | None = None
        known: _Stat | None = None
        unreadable: _Stat | None = None
        while True:
            now = await asyncio.to_thread(self._stat)
            if now == before and now != known:
                try:
                    version = await asyncio.to_thread(self._current)
                except Failure as failure:  # perhaps for the moment only: it is tried again, and told once
                    if now != unreadable:
                        log.warning(failure.message)
                    unreadable = now
                else:
                    known, unreadable = now, None
                    if version != seen:
                        seen = version
                        await changed(version)
            before = now
            await asyncio.sleep(self._interval)

    async def append(self, entry: AuditEntry, /) -> None:
        """See CatalogStore."""
        await asyncio.to_thread(self._append, entry)

    async def entries(self, size: int, token: str, /) -> tuple[Sequence[AuditEntry], str]:
        """See CatalogStore."""
        return await asyncio.to_thread(self._entries, size, token)

    # --- on a thread ---------------------------------------------------------------------------------------------

    def _load(self) -> Document:
        with self._ledger() as ledger:
            data = self._read()
            version = self._version(ledger, data)
        try:
            return Document(version, {} if data is None else catalog_text.parse(data))
        except ValueError as error:
            raise Failure(Kind.INTERNAL, f"the catalog {self._path.name} can't be used: {error}") from None

    def _save(self, document: Document, entry: AuditEntry) -> None:
        data = catalog_text.serialize(document.tenants, as_yaml=self._path.suffix != ".json")
        with self._ledger() as ledger:
            if self._version(ledger, self._read()) != document.version - 1:
                raise Conflict
            self._replace(data)
            ledger.append(entry, _digest(data))

    def _append(self, entry: AuditEntry) -> None:
        with self._ledger() as ledger:
            with suppress(Failure):  # whatever has become of the file, what was asked for is logged
                self._version(ledger, self._read())
            ledger.append(entry, ledger.last()[1])

    def _entries(self, size: int, token: str) -> tuple[Sequence[AuditEntry], str]:
        with self._ledger() as ledger:
            return ledger.entries(size, token)

    def _current(self) -> int:
        with self._ledger() as ledger:
            return self._version(ledger, self._read())

    def _version(self, ledger: _Ledger, data: bytes | None) -> int:
        """That of the file as it is. Raises Failure when the file is gone: it is not taken for an empty catalog."""
        version, known = ledger.last()
        digest = _NOTHING if data is None else _digest(data)
        if digest == known:
            return version
        if data is None:
            raise Failure(Kind.INTERNAL, f"the catalog {self._path.name} is gone")
        edit = AuditEntry(
            time=time.time(),
            actor="",
            method=EDIT,
            resource="",
            before=version,
            after=version + 1,
            outcome=self._outcome(data),
        )
        ledger.append(edit, digest)
        return version + 1

    def _outcome(self, data: bytes) -> str:
        """Of an edit: gateways that run go by it, or keep what was before."""
        try:
            self._check(catalog_text.parse(data))
        except ValueError:
            return Kind.INVALID_REQUEST.value
        except Failure as failure:
            return failure.kind.value
        return "ok"

    def _stat(self) -> _Stat:
        try:
            found = os.stat(self._path)
        except OSError:  # why, who reads it will be told
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure("can't be read", error) from None

    def _replace(self, data: bytes) -> None:
        path = Path(os.path.realpath(self._path))  # a link stays one
        temporary = path.with_name(f".{path.name}.new")  # one name: only who holds the lock writes
        try:
            try:
                mode = stat.S_IMODE(os.stat(path).st_mode)
            except FileNotFoundError:
                mode = 0o600  # upstreams' keys are in it
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_directory(path.parent)
        except OSError as error:
            raise self._failure("can't be written", error) from None

    @contextmanager
    def _ledger(self) -> Iterator[_Ledger]:
        """The log, nobody else's until this is left."""
        path = self._path.with_name(f"{self._path.name}.audit.jsonl")
        try:
            file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")  # noqa: SIM115
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise self._failure("has a log that can't be opened", error) from None
            with self._own_lock:  # the file can't be written either: it is enough to count for ourselves
                yield _Ledger(self._own)
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield _Ledger(file)

    def _failure(self, what: str, error: OSError) -> Failure:
        words = f"the catalog {self._path.name} {what}: {os.strerror(error.errno or 0)}"
        return Failure(Kind.UPSTREAM_UNAVAILABLE, words, detail=str(error))


class _Ledger:
    """The log of changes, locked. A last line without an end was never written: its writer died."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = self._find_end()

    def last(self) -> tuple[int, str]:
        """The version after the last change, and the file's digest then."""
        for _, line in self._lines(self._end):
            found = _decoded(line, _line_decoder)
            return found.after, found.sha256
        return 0, _NOTHING

    def append(self, entry: AuditEntry, sha256: str) -> None:
        """One more."""
        line = msgspec.json.encode(_Line(**msgspec.structs.asdict(entry) | {"sha256": sha256})) + b"\n"
        self._file.truncate(self._end)
        self._file.seek(self._end)
        self._file.write(line)
        self._file.flush()
        if not isinstance(self._file, BytesIO):
            os.fsync(self._file.fileno())
        self._end += len(line)

    def entries(self, size: int, token: str) -> tuple[Sequence[AuditEntry], str]:
        """See CatalogStore. The token is where the last line given begins."""
        end = self._end if not token else self._place(token)
        lines = list(islice(self._lines(end), size))
        start = lines[-1][0] if lines else 0
        return [_decoded(line, _entry_decoder) for _, line in lines], str(start) if start else ""

    def _place(self, token: str) -> int:
        at = int(token) if token.isascii() and token.isdigit() and len(token) < 20 else 0
        if 0 < at <= self._end:
            self._file.seek(at - 1)
            if self._file.read(1) == b"\n":
                return at
        raise invalid("invalid 'page_token': expected one of an answer's next_page_token", "page_token")

    def _find_end(self) -> int:
        """Behind the last line that has an end."""
        end = self._file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            found = self._block(start, end).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return 0

    def _lines(self, end: int) -> Iterator[tuple[int, bytes]]:
        """Where each line before `end` begins, and the line, backwards."""
        start, rest = end, b""
        while start > 0:
            begin = max(0, start - _BLOCK)
            rest = self._block(begin, start) + rest
            start = begin
            first, *lines = rest.splitlines(keepends=True)
            at = start + len(rest)
            for line in reversed(lines):
                at -= len(line)
                yield at, line
            rest = first
        if rest:
            yield 0, rest

    def _block(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        return self._file.read(end - start)


def _decoded(line: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(Kind.INTERNAL, "the catalog's log can't be used: a line is not ours", detail=str(error)) from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sync_directory(path: Path) -> None:
    """The change of a name is as safe as that of a file."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
