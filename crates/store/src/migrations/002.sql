-- What a handoff leaves behind of each part of an answer; rows of before keep NULL.
ALTER TABLE segments ADD COLUMN place_id TEXT NOT NULL DEFAULT '';
ALTER TABLE segments ADD COLUMN thinking_at_char INTEGER NOT NULL DEFAULT 0;
ALTER TABLE segments ADD COLUMN continuation TEXT;
ALTER TABLE segments ADD COLUMN gap_ms INTEGER;
ALTER TABLE segments ADD COLUMN ended TEXT;
ALTER TABLE segments ADD COLUMN checksum TEXT;
ALTER TABLE segments ADD COLUMN decision_json TEXT;

-- NULL: nobody said whose machine it is.
ALTER TABLE nodes ADD COLUMN trust TEXT;

-- Where answers went and why. Never a word of what was asked or answered.
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    asked_by TEXT NOT NULL,
    conversation_id INTEGER REFERENCES conversations (id) ON DELETE CASCADE,
    message_id INTEGER REFERENCES messages (id) ON DELETE CASCADE,
    model TEXT NOT NULL,
    place_id TEXT NOT NULL,
    place TEXT NOT NULL,
    reason TEXT NOT NULL,
    sentence TEXT NOT NULL,
    decision_json TEXT NOT NULL
) STRICT;

CREATE INDEX decisions_of_conversation ON decisions (conversation_id);
CREATE INDEX decisions_of_message ON decisions (message_id);
