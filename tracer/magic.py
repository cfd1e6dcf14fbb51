"""`%load_ext tracer`: a trace asked in SQL, in a notebook's cell.

    %%sql run.duckdb -o shares      (a file, or the name of a Store; if none is named, the last one)
    SELECT step, share FROM dominance WHERE word = $word
Conventions: ``$word`` is the notebook's variable of that name, bound and never pasted in; nothing can be written.
"""

from contextlib import closing, nullcontext

import pandas as pd
from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from tracer.store import Store


@magics_class
class TraceSQL(Magics):
    """The magic `%%sql`."""

    asked: Store | str = ""

    @magic_arguments()
    @argument("store", nargs="?", help="file of a trace, or name of an open Store; the last one if none is named")
    @argument("-o", "--out", help="variable that takes the table, which is not shown then")
    @cell_magic
    def sql(self, line: str, cell: str) -> pd.DataFrame | None:
        """Return the table that a query gives; $name in it is the notebook's variable."""
        asked, names = parse_argstring(self.sql, line), self.shell.user_ns  # pyright: ignore[reportOptionalMemberAccess]
        if asked.store:
            self.asked = named if isinstance(named := names.get(asked.store), Store) else asked.store
        if not self.asked:
            raise UsageError("%%sql must name a trace the first time, such as %%sql run.duckdb")
        opened = nullcontext(self.asked) if isinstance(self.asked, Store) else Store.open(self.asked)
        with opened as store, closing(store.cursor()) as cursor:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            wanted = {name for one in cursor.extract_statements(cell) for name in one.named_parameters}
            table = cursor.execute(cell, {name: names[name] for name in wanted & set(names)} or None).df()
        return table if asked.out is None else names.update({asked.out: table})
