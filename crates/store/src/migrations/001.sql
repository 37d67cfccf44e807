-- A released migration is never edited: what changes is added by a later file.
-- States and roles are words without a CHECK, so that a later format can add one.

CREATE TABLE conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL,
    stays_local INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation_id INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    text TEXT NOT NULL,
    thinking TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL,
    failure TEXT NOT NULL DEFAULT '',
    decision_json TEXT,
    created_at_ms INTEGER NOT NULL
) STRICT;

CREATE INDEX messages_of_conversation ON messages (conversation_id, id);
CREATE INDEX messages_being_written ON messages (id) WHERE state = 'writing';

-- What was appended to a message that is still being written. `text = text || ?` copies the whole text each time: an
-- answer of 400 kB in 8,000 appends wrote 3.6 GB that way and 44 MB this way (14 s and 0.3 s, SQLite 3.40, one SSD).
-- The end of the message moves its pieces into `messages`.
CREATE TABLE pieces (
    message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    n INTEGER NOT NULL,
    thinking INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (message_id, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE segments (
    message_id INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    n INTEGER NOT NULL,
    place TEXT NOT NULL,
    model TEXT NOT NULL,
    reason TEXT NOT NULL,
    sentence TEXT NOT NULL,
    decode_tokens_per_sec REAL,
    ttft_ms INTEGER,
    completion_tokens INTEGER,
    started_at_char INTEGER NOT NULL,
    PRIMARY KEY (message_id, n)
) STRICT, WITHOUT ROWID;

-- The row without a conversation is the draft of a chat that doesn't exist yet.
CREATE TABLE drafts (
    conversation_id INTEGER REFERENCES conversations (id) ON DELETE CASCADE,
    text TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX one_draft_each ON drafts (coalesce(conversation_id, 0));
CREATE INDEX drafts_of_conversation ON drafts (conversation_id);

CREATE TABLE nodes (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    url TEXT NOT NULL,
    name TEXT NOT NULL
) STRICT;

CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- A path is bytes: on Linux it need not be UTF-8.
CREATE TABLE added_models (position INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE) STRICT;
