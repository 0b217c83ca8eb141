"""TensorBoard's scalars, written without torch or TensorFlow.

Called by the metrics writer. Differs: TensorBoard's own writer hands events to a thread that ends
with the first failed write, after which the caller waits for it for ever.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfleet.run_files.durable import AppendedFile, DiskWatch


class EventFile:
    """One event file of a run, named when the first point comes.

    Importing TensorBoard takes a sixth of a second, which a run that starts Ray has to spare by
    then.
    """

    def __init__(self, directory: Path, watch: DiskWatch) -> None:
        self._directory, self._watch = directory, watch
        self._opened: AppendedFile | None = None

    def add(self, values: Mapping[str, float], env_steps: int, time_s: float) -> None:
        """One point of each scalar."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(wall_time=time_s, step=env_steps, summary=Summary(value=scalars))

    def forget_beyond(self, env_steps: int, time_s: float) -> None:
        """TensorBoard shows no earlier point beyond `env_steps` any more."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        log = SessionLog(status=SessionLog.START)
        self._add(wall_time=time_s, step=env_steps + 1, session_log=log)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        if self._opened is not None:
            self._opened.flush()

    def close(self) -> None:
        """Flush and close; calling it twice does no harm."""
        if self._opened is not None:
            self._opened.close()

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        if self._opened is None:
            now_s = time.time()
            host = f"{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
            name = f"events.out.tfevents.{int(now_s):010d}.{host}"
            self._opened = AppendedFile(self._directory / name, self._watch)
            self._opened.add(_record(Event(wall_time=now_s, file_version="brain.Event:2")))
        self._opened.add(_record(Event(**fields)))


def _record(event: Any) -> bytes:
    """As TensorFlow's record format has it: length and contents, each with a checksum."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
