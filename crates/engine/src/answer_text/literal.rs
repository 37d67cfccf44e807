//! Values as models write them in calls that look like Python (LFM2) or like JavaScript with its own quotes (Gemma 4).

use serde_json::{Map, Number, Value};

/// Gemma's quote; what stands between two of them is taken as it is.
const GEMMA_QUOTE: &str = "<|\"|>";
/// Deeper than any arguments; bounds the recursion.
const DEEPEST: usize = 64;

/// Reads a text from the front. Every function gives `None` where the text is something else.
pub(super) struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// Skips white space, then `expected`.
    pub(super) fn take(&mut self, expected: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(expected)?;
        Some(())
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.trim().is_empty()
    }

    /// A name: letters, digits and what function names are made of.
    pub(super) fn name(&mut self) -> Option<&'a str> {
        let text = self.rest.trim_start();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then_some(name)
    }

    /// What follows `open`, parted by commas, up to `close`.
    pub(super) fn list(
        &mut self,
        open: &str,
        close: &str,
        item: &mut dyn FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.take(open)?;
        while self.take(close).is_none() {
            item(self)?;
            if self.take(",").is_none() {
                return self.take(close);
            }
        }
        Some(())
    }

    pub(super) fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        self.rest = self.rest.trim_start();
        if self.rest.starts_with('[') {
            let mut items = Vec::new();
            self.list("[", "]", &mut |reader| {
                items.push(reader.value(depth + 1)?);
                Some(())
            })?;
            return Some(Value::Array(items));
        }
        if self.rest.starts_with('{') {
            return self.object(depth).map(Value::Object);
        }
        if let Some(text) = self.text() {
            return Some(Value::String(text));
        }
        match self.name_or_number()? {
            "true" | "True" => Some(Value::Bool(true)),
            "false" | "False" => Some(Value::Bool(false)),
            "null" | "None" => Some(Value::Null),
            word => word.parse::<Number>().ok().map(Value::Number),
        }
    }

    /// An object, whose keys may stand without quotes.
    pub(super) fn object(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut members = Map::new();
        self.list("{", "}", &mut |reader| {
            reader.rest = reader.rest.trim_start();
            let key = match reader.text() {
                Some(key) => key,
                None => reader.name()?.to_owned(),
            };
            reader.take(":")?;
            members.insert(key, reader.value(depth + 1)?);
            Some(())
        })?;
        Some(members)
    }

    fn name_or_number(&mut self) -> Option<&'a str> {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '.');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn text(&mut self) -> Option<String> {
        if let Some(rest) = self.rest.strip_prefix(GEMMA_QUOTE) {
            let (text, rest) = rest.split_once(GEMMA_QUOTE)?;
            self.rest = rest;
            return Some(text.to_owned());
        }
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut text = String::new();
        let mut characters = self.rest[1..].chars();
        loop {
            match characters.next()? {
                '\\' => match characters.next()? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'u' => text.push(unicode(&mut characters)?),
                    escaped @ ('\\' | '\'' | '"' | '/') => text.push(escaped),
                    // Python keeps what it doesn't know.
                    other => text.extend(['\\', other]),
                },
                character if character == quote => break,
                character => text.push(character),
            }
        }
        self.rest = characters.as_str();
        Some(text)
    }
}

fn unicode(characters: &mut std::str::Chars<'_>) -> Option<char> {
    let digits = characters.as_str().get(..4)?;
    *characters = characters.as_str()[4..].chars();
    char::from_u32(u32::from_str_radix(digits, 16).ok()?)
}
