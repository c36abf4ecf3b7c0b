"""``replicate``: a table's rows and then its changes, each once, whatever happens to the reader."""

from __future__ import annotations

from tests.support.replication import Source, shown


class TestAWindow:
    def test_begins_with_the_tables_rows_and_goes_on_with_its_changes(self, replicated: Source) -> None:
        replicated.run("INSERT INTO {} SELECT g, g, 'before' FROM generate_series(1, 5) g")
        first = replicated.replicate()
        assert [c[0] for c in replicated.changes(first)] == ["r"] * 5
        replicated.run("INSERT INTO {} VALUES (6, 60, 'new')")
        replicated.run("UPDATE {} SET a = -1 WHERE id = 2")
        replicated.run("DELETE FROM {} WHERE id = 3")
        second = replicated.replicate()
        assert replicated.changes(second) == [
            ("c", None, {"id": 6, "a": 60, "b": "new"}),
            ("u", None, {"id": 2, "a": -1, "b": "before"}),
            ("d", {"id": 3}, None),
        ]
        assert (second.counts.consumed, second.counts.forwarded, second.counts.produced) == (3, 3, 4)
        assert [shown(r) for r in replicated.records(second) if r.value is None] == [({"id": 3}, None)]
        assert second.manifest is not None
        assert replicated.replicate().counts.consumed == 0
