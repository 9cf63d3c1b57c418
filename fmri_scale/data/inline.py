"""Reading in the training process itself: nothing runs beside it, so a debugger sees everything."""

from collections.abc import Callable

from fmri_scale.data.reading import ClipReader, ReadFault
from fmri_scale.data.request import Job, SlotViews


class InlineReader:
    """Reads jobs where they are waited for.

    Parameters
    ----------
    reader
        What reads a clip.
    views
        Gives the arrays of a slot.
    """

    def __init__(self, reader: ClipReader, views: Callable[[int], SlotViews]) -> None:
        self._reader, self._views = reader, views

    def read(self, job: Job) -> None:
        """Read the job's clips."""
        views = self._views(job.slot)
        for place, request in job.clips:
            try:
                job.retries += self._reader.read(request, views, place)
            except ReadFault as fault:
                job.faults[place] = str(fault)
        job.done = True

    def close(self) -> None:
        """Let go of the shards."""
        self._reader.source.close()
