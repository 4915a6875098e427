"""The exchange of a server's models for those that its folders hold now, while it serves."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from ..catalogue import Catalogue
from .dispatch import Dispatcher

logger = logging.getLogger(__name__)


class Reload:
    """Loads new models in a thread, and puts them in the place of the old ones between two steps of the event
    loop.

    Every request is answered by the models that it met: those that have begun finish with the old ones.

    Args:
        load: makes the new models.
    """

    def __init__(self, load: Callable[[], Catalogue]):
        self._load = load
        self._one = threading.Lock()
        self._dispatcher: Dispatcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, dispatcher: Dispatcher) -> None:
        """Know the server that is to be reloaded; called in its event loop."""
        self._dispatcher, self._loop = dispatcher, asyncio.get_running_loop()

    def start(self) -> threading.Thread | None:
        """Begin to reload, unless that is under way, or nothing is served yet; the thread that does it."""
        if self._dispatcher is None or not self._one.acquire(blocking=False):
            return None
        thread = threading.Thread(target=self._run, name="lora-ensembles-reload", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            self._exchange()
            logger.warning("reloaded")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the new models, the old ones go on
            logger.error("not reloaded, the models are as before: %s", error)
        finally:
            self._one.release()

    def _exchange(self) -> None:
        dispatcher, loop = self._dispatcher, self._loop
        assert dispatcher is not None
        assert loop is not None
        catalogue = self._load()
        dispatcher.check_guarantees(catalogue)
        completions = dispatcher.completions.successors(catalogue)
        completions.start()  # in threads that, like this one, keep no program from its end
        done: Future[None] = Future()

        def exchange() -> None:  # no request is between its look for a model and its place in a queue
            before = dispatcher.completions.become(completions)
            dispatcher.catalogue.become(catalogue)
            threading.Thread(target=before.stop, name="lora-ensembles-old-texts").start()
            done.set_result(None)

        loop.call_soon_threadsafe(exchange)
        done.result()
