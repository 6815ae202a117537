"""Operational logs: JSON lines on stderr, for operators. Never a token, a password or a permit in one.

Tracebacks are logged as text where they are caught: structlog's console renderer would show local variables, and
tokens among them.
"""

from __future__ import annotations

import logging
from typing import TextIO

import structlog


def configure_logging(stream: TextIO) -> None:
    """Send structlog, and what libraries log by the standard module, to `stream` in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each fetch of keys says nothing to anyone
    logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)  # each failure is told by its sink, once
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
