use rusqlite::{Connection, TransactionBehavior};

/// Each brings the tables from the version of its index to the next. They only add.
pub(crate) const MIGRATIONS: &[&str] = &[include_str!("migrations/001.sql"), include_str!("migrations/002.sql")];

/// The version of the file's tables: how many migrations it has seen.
pub(crate) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Runs the migrations that the file hasn't seen: all of them or, on an error, none.
pub(crate) fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let newest = migrations.len() as i64;
    if version(connection)? >= newest {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have migrated while this one waited for the lock.
    let found = usize::try_from(version(&transaction)?).unwrap_or(0);
    for sql in migrations.iter().skip(found) {
        transaction.execute_batch(sql)?;
    }
    transaction.pragma_update(None, "user_version", newest)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_migration_keeps_what_is_there() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        connection.execute("INSERT INTO settings VALUES ('theme', 'dark')", []).unwrap();

        let mut more = MIGRATIONS.to_vec();
        more.push("ALTER TABLE settings ADD COLUMN note TEXT NOT NULL DEFAULT 'none'");
        migrate(&mut connection, &more).unwrap();
        migrate(&mut connection, &more).unwrap();

        let row: (String, String) =
            connection.query_row("SELECT value, note FROM settings", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(row, ("dark".to_owned(), "none".to_owned()));
        assert_eq!(version(&connection).unwrap(), more.len() as i64);
    }

    #[test]
    fn segments_and_nodes_of_the_first_format_are_still_read() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &MIGRATIONS[..1]).unwrap();
        connection
            .execute_batch(
                "INSERT INTO conversations VALUES (1, 'Tides', 0, 7);
                 INSERT INTO messages VALUES (2, 1, 'assistant', 'The Moon', '', 'done', '', NULL, 7);
                 INSERT INTO segments VALUES (2, 0, 'Here', 'qwen3-8b', 'fits', 'fits', 41.5, 230, 2, 0);
                 INSERT INTO nodes VALUES (1, 'studio', 'http://studio', 'studio');",
            )
            .unwrap();

        migrate(&mut connection, MIGRATIONS).unwrap();

        let messages = crate::messages::messages_of(&connection, crate::ConversationId(1)).unwrap();
        let expected = crate::Segment {
            place: "Here".into(),
            model: "qwen3-8b".into(),
            reason: "fits".into(),
            sentence: "fits".into(),
            decode_tokens_per_sec: Some(41.5),
            ttft_ms: Some(230),
            completion_tokens: Some(2),
            ..crate::Segment::default()
        };
        assert_eq!(messages[0].segments, [expected]);
        let trust: Option<String> = connection.query_row("SELECT trust FROM nodes", [], |row| row.get(0)).unwrap();
        assert_eq!(trust, None);
    }

    #[test]
    fn a_migration_that_fails_leaves_the_file_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, MIGRATIONS).unwrap();
        let mut more = MIGRATIONS.to_vec();
        more.extend(["CREATE TABLE extra (x INTEGER) STRICT", "this is not SQL"]);

        assert!(migrate(&mut connection, &more).is_err());

        assert_eq!(version(&connection).unwrap(), MIGRATIONS.len() as i64);
        assert!(connection.prepare("SELECT * FROM extra").is_err());
    }
}
