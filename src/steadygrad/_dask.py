"""Workers of a Dask cluster, for all that takes an executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager


@contextmanager
def on_dask(address: str) -> Iterator[Executor]:
    """Connect to the scheduler at an address, until the end of the block.

    Raises:
        ModuleNotFoundError: Dask is not installed.
        ConnectionError: Nobody answers there within ten seconds.
        ValueError: That is no address.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ModuleNotFoundError(
            "expected Dask for --dask, which is not installed: pip install 'steadygrad[dask]'"
        ) from None
    try:
        client = Client(address, timeout=10)
    except OSError as error:
        raise ConnectionError(f"expected a Dask scheduler at {address}, got {error}") from None
    except ValueError as error:
        raise ValueError(f"expected --dask tcp://HOST:PORT, got {address}: {error}") from None
    with client:
        yield client.get_executor()
