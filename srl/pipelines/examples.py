"""Examples that stay in Arrow, 4 to 8 bytes a token, until they are trained on: as Python lists they take ten times that."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from srl.learner.batch import Example
from srl.pipelines.classes import Row


class Examples(Sequence[Example]):
    """Rows of a table, those at `places` or all, each made an example whenever it is asked for."""

    def __init__(self, table: pa.Table, make: Callable[[Row], Example], places: Sequence[int] | None = None):
        self.table, self.make, self.places = table, make, range(table.num_rows) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Examples(self.table, self.make, self.places[index])
        return self.make(self.table.slice(int(self.places[index]), 1).to_pylist()[0])
