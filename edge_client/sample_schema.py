"""The sample database's tables, and what leads from each version of them to the next."""

from __future__ import annotations

from edge_client.database import Migration

_FIRST: Migration = (
    """CREATE TABLE samples (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        split_position REAL NOT NULL,
        added_at REAL NOT NULL,
        size_bytes INTEGER NOT NULL,
        input_dtype TEXT NOT NULL, input_shape TEXT NOT NULL,
        input BLOB NOT NULL, input_crc INTEGER NOT NULL,
        target_dtype TEXT, target_shape TEXT, target BLOB, target_crc INTEGER
    )""",
    "CREATE INDEX samples_by_age ON samples (added_at, target_dtype)",
    "CREATE TABLE totals (size_bytes INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0)",
    """CREATE TRIGGER sample_added AFTER INSERT ON samples
        BEGIN UPDATE totals SET size_bytes = size_bytes + NEW.size_bytes; END""",
    """CREATE TRIGGER sample_removed AFTER DELETE ON samples
        BEGIN UPDATE totals SET size_bytes = size_bytes - OLD.size_bytes; END""",
    """CREATE TRIGGER sample_resized AFTER UPDATE OF size_bytes ON samples
        BEGIN UPDATE totals
        SET size_bytes = size_bytes + NEW.size_bytes - OLD.size_bytes; END""",
)
# A sample's draw is uniform in [0, 1). `offered` counts samples when they get their first label,
# `threshold` is what the reservoir's draws lie below, `duplicates` counts samples that were
# dropped because they had come before.
_SECOND: Migration = (
    "ALTER TABLE samples ADD COLUMN draw REAL NOT NULL DEFAULT 0",
    "UPDATE samples SET draw = 0.5 + random() / 18446744073709551616.0",
    "CREATE INDEX unlabelled_samples ON samples (sequence) WHERE target_dtype IS NULL",
    "CREATE INDEX labelled_samples ON samples (sequence) WHERE target_dtype IS NOT NULL",
    "CREATE INDEX labelled_draws ON samples (draw) WHERE target_dtype IS NOT NULL",
    "ALTER TABLE totals ADD COLUMN labelled_bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE totals ADD COLUMN waiting_bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE totals ADD COLUMN offered INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE totals ADD COLUMN duplicates INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE totals ADD COLUMN threshold REAL NOT NULL DEFAULT 1",
    """UPDATE totals SET
        labelled_bytes = (
            SELECT ifnull(sum(size_bytes), 0) FROM samples WHERE target_dtype IS NOT NULL
        ),
        offered = (SELECT count(*) FROM samples WHERE target_dtype IS NOT NULL)""",
    "DROP TRIGGER sample_removed",
    "DROP TRIGGER sample_resized",
    """CREATE TRIGGER sample_removed AFTER DELETE ON samples
        BEGIN UPDATE totals SET
            size_bytes = size_bytes - OLD.size_bytes,
            labelled_bytes = labelled_bytes
                - CASE WHEN OLD.target_dtype IS NULL THEN 0 ELSE OLD.size_bytes END;
        END""",
    """CREATE TRIGGER sample_labelled AFTER UPDATE OF size_bytes ON samples
        BEGIN UPDATE totals SET
            size_bytes = size_bytes + NEW.size_bytes - OLD.size_bytes,
            labelled_bytes = labelled_bytes
                + CASE WHEN NEW.target_dtype IS NULL THEN 0 ELSE NEW.size_bytes END
                - CASE WHEN OLD.target_dtype IS NULL THEN 0 ELSE OLD.size_bytes END;
        END""",
    """CREATE TABLE waiting_labels (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        added_at REAL NOT NULL,
        size_bytes INTEGER NOT NULL,
        target_dtype TEXT NOT NULL, target_shape TEXT NOT NULL,
        target BLOB NOT NULL, target_crc INTEGER NOT NULL
    )""",
    "CREATE INDEX waiting_labels_by_age ON waiting_labels (added_at)",
    """CREATE TRIGGER label_waits AFTER INSERT ON waiting_labels
        BEGIN UPDATE totals SET waiting_bytes = waiting_bytes + NEW.size_bytes; END""",
    """CREATE TRIGGER label_waits_no_more AFTER DELETE ON waiting_labels
        BEGIN UPDATE totals SET waiting_bytes = waiting_bytes - OLD.size_bytes; END""",
    """CREATE TABLE sources (
        source TEXT PRIMARY KEY,
        first INTEGER NOT NULL, newest INTEGER NOT NULL, seen BLOB NOT NULL,
        received INTEGER NOT NULL, duplicates INTEGER NOT NULL,
        heard INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX sources_by_last_word ON sources (heard)",
    """CREATE TABLE stream_states (
        source TEXT PRIMARY KEY, state BLOB NOT NULL, written INTEGER NOT NULL
    ) WITHOUT ROWID""",
)

# `seen` holds stretches of numbers in place of a window of bits; ids still keep a sample from being
# stored twice.
_THIRD: Migration = ("DELETE FROM sources",)

MIGRATIONS = (_FIRST, _SECOND, _THIRD)
