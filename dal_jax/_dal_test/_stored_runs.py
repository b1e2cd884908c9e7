"""Tests stored in a run directory, which can be resumed and shared by processes and hosts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax._dal_test._inputs import ImageToTest, TestOptions, check_engine, covariance_of
from dal_jax._dal_test._many_tests import stream_tests
from dal_jax._dal_test._result import TestResult, as_record, contradiction
from dal_jax._version import __version__
from dal_jax.inference import Noise
from dal_jax.localizers import Localizer
from dal_jax.runs import Host, fingerprint, open_run, share, wait_for_hosts
from dal_jax.search import Status


class QueuedImage(NamedTuple):
    """One image of a run.

    Example:
        >>> import numpy as np
        >>> image = ImageToTest(np.ones((2, 2, 1)), np.zeros((2, 2, 1)))
        >>> item = QueuedImage("a.png", None, lambda: image)
        >>> item.load().image.shape
        (2, 2, 1)
    """

    name: str  # name in the records
    identity: Any  # what identifies its content; None: its name alone does
    load: Callable[[], ImageToTest]  # called when its turn comes

    @property
    def key(self) -> str:
        """Key of its record in a run: the same for the same name and identity."""
        return fingerprint(self.name, self.identity)[:32]

    def case(self) -> ImageToTest:
        """Return the loaded case under the item's name, which decides its randomization.

        Returns:
            The case; its place among the items has no influence.

        Raises:
            InputError: The image cannot be loaded.
        """
        return self.load()._replace(name=self.name)


def run_tests(
    directory: str | Path,
    localizer: Localizer,
    items: Sequence[QueuedImage],
    noise: Noise | str,
    options: TestOptions,
    *,
    host: Host = Host(0, 1),  # noqa: B008 (a constant)
    shared: Any = None,
    own_draws: bool = False,
    batch_size: int | None = None,
    devices: Any = None,
    progress: Callable[[int, dict[str, Any]], None] | None = None,
    keep: Callable[[QueuedImage, TestResult], None] | None = None,
) -> list[dict[str, Any]]:
    """Test the images that a run directory does not hold yet, and store each result at once.

    The number of processes or devices and interruptions change results as little as the other
    images of a batch do (see `dal_test_batch`). A finished test is never repeated: its record stays
    as it was written. An image that was refused, such as a file that could not be read, is loaded
    again by the next call. A later call may have more images or fewer.

    Args:
        directory: Directory of the run; created, or continued if it belongs to the same run.
        localizer: Localizer, as in `dal_test`.
        items: Images of the run, the same in all processes, each with another name or identity.
        noise: Covariance of one image.
        options: Options of the tests.
        host: Place of this process among those that share the run.
        shared: Anything else that decides the results, for the fingerprint, such as references.
        own_draws: True if the images bring their draws.
        batch_size: Number of concurrent tests, as in `dal_test_batch`.
        devices: JAX devices, as in `dal_test_batch`.
        progress: Function called with the number of stored results and the latest record, and once
            at the start with an empty record.
        keep: Function called with each image and its whole result, before the record is stored.

    Returns:
        The record of each image, in order: the fields of `as_record` and its name. Process 0 has
        collected them in results.jsonl.

    Raises:
        InputError: An argument does not fit, or the directory belongs to another run.
        RunError: The disk is full, or another process was lost.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from dal_jax import from_score
        >>> def brightness(params, draws, x):
        ...     return x[..., 0]
        >>> localizer, x = from_score(brightness, (1, 1, 1), 2.5), np.full((1, 1, 1), 3.0)
        >>> items = [QueuedImage("a.png", None, lambda: ImageToTest(x, np.zeros_like(x)))]
        >>> with TemporaryDirectory() as folder:
        ...     run_tests(folder, localizer, items, "iid:1.0", TestOptions())[0]["name"]
        'a.png'
    """
    covariance = covariance_of(noise, localizer)
    check_engine(localizer, options)
    what = {"program": "dal_jax", "version": __version__, "options": repr(options)}
    parts = (
        "dal-test",
        __version__,
        localizer,
        covariance,
        options,
        shared,
        own_draws,
    )
    keys = [item.key for item in items]
    own = fingerprint(*parts)
    run = open_run(directory, own, len(items), what, contradiction, keys, _is_refused)
    records = run.finished()
    again = {task: one for task, one in records.items() if run.is_retried(one)}
    wait_for_hosts("start")  # all have read the finished tests before the first one writes
    if progress is not None:
        progress(len(records), {})
    left = [task for task in range(len(items)) if task not in records or task in again]
    mine = share(left, host)
    if mine:
        streamed = stream_tests(
            localizer,
            ((task, items[task].case) for task in mine),
            covariance,
            options,
            own_draws=own_draws,
            batch_size=batch_size,
            devices=devices,
        )
        try:
            with run.writer(host.index) as shard:
                for task, result in streamed:
                    if keep is not None:
                        keep(items[task], result)
                    records[task] = {"name": items[task].name, **as_record(result)}
                    if task not in again or contradiction(again[task], records[task]):
                        shard.append(task, records[task])
                    if progress is not None:
                        progress(len(records), records[task])
        except KeyboardInterrupt:
            kept = f"{len(run.finished())} of {len(items)} tests are kept in {run.path}"
            raise KeyboardInterrupt(f"{kept}, the same command goes on with the others") from None
    wait_for_hosts("end")
    if host.count > 1:
        records = run.finished()
    if host.index == 0:
        run.collect(records=records)
    return [records[task] for task in sorted(records)]


def _is_refused(record: dict[str, Any]) -> bool:
    return record["status"] == Status.INVALID_INPUT.value
